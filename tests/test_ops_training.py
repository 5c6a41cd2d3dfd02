"""Training with fused mix and BCE equals training with their plain references: the same losses over 20 real steps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import triton_tools
from rsbdali.distributed.world import World
from rsbdali.ops.mix import mix_normalize
from rsbdali.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from rsbdali.training.optim import create_optimizer
from rsbdali.training.step import TrainStep

LEARNING_RATES = {"sgd": 0.2, "lamb": 0.02}


def train_20_steps(device: torch.device, opt: str) -> list[float]:
    """Losses of the real step over mixed uint8 batches, with whatever ops the environment chooses."""
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "model": "resnet18",
            "img_size": 32,
            "test_img_size": 32,
            "epochs": 1,
            "opt": opt,
            "global_batch_size": 4,
            "mix_groups": 1,
            "lr": LEARNING_RATES[opt],
            "warmup_epochs": 0,
            "smoothing": 0.1,
            "bce_loss": True,
            "bce_target_thresh": 0.2,
        }
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=4, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).to(device, memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    optimizer = create_optimizer(model, recipe)
    step = TrainStep(model, optimizer, scaler, recipe, device=device, amp_dtype=torch.float32, world=World())
    losses = []
    for update in range(20):
        step([mixed_batch(update, device)], update=update + 1)
        result = step.last_result()
        assert result is not None
        losses.append(result.loss)
    return losses


def mixed_batch(update: int, device: torch.device) -> SimpleNamespace:
    """Four rows whose class is their brightness: mixup and CutMix in turn."""
    generator = torch.Generator().manual_seed(update)
    label_N = torch.randperm(4, generator=generator)
    noise_NHWC = torch.randint(0, 64, (4, 16, 24, 3), generator=generator)
    images_NHWC = (label_N[:, None, None, None] * 60 + noise_NHWC).to(torch.uint8).to(device)
    partner_N, box_N4 = np.array([3, 2, 1, 0]), np.zeros((4, 4), np.int32)
    lam_N = np.full(4, 0.7, np.float32)
    if update % 2:
        box_N4[:] = (3, 11, 7, 19)
        lam_N[:] = 0.75
    images = mix_normalize(images_NHWC, partner_N, lam_N, box_N4, IMAGENET_MEAN, IMAGENET_STD)
    return SimpleNamespace(
        images=images,
        label_N=label_N.to(device),
        partner_label_N=label_N.flip(0).to(device),
        lam_N=torch.from_numpy(lam_N).to(device),
        epoch=0,
        step=update,
        group=0,
    )


@contextmanager
def references() -> Iterator[None]:
    before = os.environ.pop("RSBDALI_KERNELS", None)
    os.environ["RSBDALI_KERNELS"] = "reference"
    try:
        yield
    finally:
        del os.environ["RSBDALI_KERNELS"]
        if before is not None:
            os.environ["RSBDALI_KERNELS"] = before


def assert_same(fused: list[float], plain: list[float]) -> None:
    assert fused != plain, "both ran the same code"
    assert np.mean(plain[-4:]) < 0.9 * np.mean(plain[:4])
    np.testing.assert_allclose(fused, plain, rtol=1e-5)  # seen on the CPU: 3e-7


def check_training() -> None:
    """With SGD: LAMB's kernels have tests of their own, and take the interpreter ten times longer."""
    fused = train_20_steps(torch.device("cpu"), "sgd")
    with references():
        plain = train_20_steps(torch.device("cpu"), "sgd")
    assert_same(fused, plain)


def test_training_equals_training_with_references() -> None:
    assert triton_tools.interpret(__file__) == {"check_training": ""}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("opt", ["sgd", "lamb"])
def test_training_on_the_gpu_equals_training_with_references(opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fused = train_20_steps(torch.device("cuda", 0), opt)
    with references():
        plain = train_20_steps(torch.device("cuda", 0), opt)
    assert_same(fused, plain)


if __name__ == "__main__":
    triton_tools.report([check_training])
