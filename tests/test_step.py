"""One step: accumulation equals the whole batch, the loss comes a step late, gradients are clipped as timm does."""

from functools import partial

import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy

from helpers import fakes
from helpers.common import CPU
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError
from rsbdali.ops.bce import bce_loss
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model
from rsbdali.training.optim import create_optimizer
from rsbdali.training.step import TrainStep, slices


def make_step(recipe: Recipe, model: torch.nn.Module, dtype: torch.dtype = torch.float32, **more: object) -> TrainStep:
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    optimizer = create_optimizer(model, recipe)
    return TrainStep(model, optimizer, scaler, recipe, device=CPU, amp_dtype=dtype, world=World(), **more)


def plain_model() -> torch.nn.Module:
    """No BatchNorm, so that rows do not depend on their neighbors."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, fakes.CLASSES))


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("cap", [None, 1, 2, 3, 64, 100])
def test_slices_cover_the_rows_evenly(rows: int, cap: int | None) -> None:
    cut = slices(rows, cap)
    assert [i for s in cut for i in range(s.start, s.stop)] == list(range(rows))
    sizes = [s.stop - s.start for s in cut]
    assert max(sizes) <= (cap or rows)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("micro_batch_size", [None, 5, 16])
@pytest.mark.parametrize("bce", [True, False])
def test_accumulated_gradient_is_that_of_the_global_mean(micro_batch_size: int | None, bce: bool) -> None:
    recipe = fakes.recipe(micro_batch_size=micro_batch_size, bce_loss=bce, opt="sgd", lr=1.0, weight_decay=0)
    model, oracle = plain_model(), plain_model()
    step = make_step(recipe, model)
    groups = [fakes.FakeTrainLoader(recipe).batch(0, 0, g) for g in range(2)]
    assert step(groups, update=1) is None

    images = torch.cat([g.images for g in groups])
    labels = (torch.cat([getattr(g, n) for g in groups]) for n in ("label_N", "partner_label_N", "lam_N"))
    logits_NC = oracle(images)
    if bce:
        loss = bce_loss(logits_NC, *labels)
    else:
        own_N, partner_N, _ = labels  # λ is .9
        soft_NC = 0.9 * torch.eye(fakes.CLASSES)[own_N] + 0.1 * torch.eye(fakes.CLASSES)[partner_N]
        loss = SoftTargetCrossEntropy()(logits_NC, soft_NC)
    loss.backward()
    result = step.last_result()
    assert result is not None
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    # the same sum in another order
    torch.testing.assert_close(model[1].weight.grad, oracle[1].weight.grad, rtol=1e-4, atol=1e-6)


def test_loss_and_flags_come_one_step_late() -> None:
    recipe = fakes.recipe()
    loader, step = fakes.FakeTrainLoader(recipe), make_step(recipe, create_model(fakes.recipe(), fakes.CLASSES))
    results = []
    for s in range(3):
        flags = partial(list, [float(s), 0.5])
        results.append(step([loader.batch(0, s, g) for g in range(2)], update=s + 1, flags=flags))
    assert results[0] is None
    assert [result[1:] for result in results[1:] if result] == [
        (1.0, (0.0, 0.5)),
        (1.0, (1.0, 0.5)),
    ]  # there is no scale
    last = step.last_result()
    assert last is not None
    assert last[1:] == (1.0, (2.0, 0.5))
    assert step.last_result() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_format_learns(dtype: torch.dtype) -> None:
    recipe = fakes.recipe()
    loader = fakes.FakeTrainLoader(recipe)
    step = make_step(recipe, create_model(recipe, fakes.CLASSES).train(), dtype)
    for s in range(8):
        step([loader.batch(0, 0, g) for g in range(2)], update=s + 1)
        if s == 1:
            first = step.last_result()
    last = step.last_result()
    assert first is not None
    assert last is not None
    assert last.loss < first.loss


def test_gradients_are_clipped() -> None:
    recipe = fakes.recipe(clip_grad=0.01, opt="sgd")
    model = plain_model()
    make_step(recipe, model)([fakes.FakeTrainLoader(recipe).batch(0, 0, g) for g in range(2)], update=1)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in model.parameters()]))
    assert norm.item() == pytest.approx(0.01, rel=1e-3)  # clip_grad_norm_ adds 1e-6 to the norm it divides by


def test_averaged_weights_follow() -> None:
    recipe = fakes.recipe()
    model = create_model(recipe, fakes.CLASSES)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    loader, step = fakes.FakeTrainLoader(recipe), make_step(recipe, model, ema=ema)
    expected = None
    for s in range(3):
        step([loader.batch(0, s, g) for g in range(2)], update=s + 1)
        weight = model.fc.weight.detach()
        # timm copies the weights at its first update
        expected = weight.clone() if expected is None else 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(ema.module.fc.weight, expected)


def test_out_of_memory_says_what_to_set() -> None:
    class Greedy(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    recipe = fakes.recipe(opt="sgd")
    step = make_step(recipe, Greedy(2, 2))
    with pytest.raises(DeviceError, match=r"16 images of 32 × 32 pixels: micro_batch_size=8"):
        step([fakes.FakeTrainLoader(recipe).batch(0, 0, 0)], update=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait_for_the_gpu() -> None:
    device = torch.device("cuda", 0)
    recipe = fakes.recipe(clip_grad=1.0, drop_path=0.1, model="test_convnext")
    model = create_model(recipe, fakes.CLASSES).to(device).train()
    step = TrainStep(
        model,
        create_optimizer(model, recipe),
        torch.amp.GradScaler("cuda", enabled=False),
        recipe,
        device=device,
        amp_dtype=torch.bfloat16,
        world=World(),
        ema=timm.utils.ModelEmaV3(model, decay=0.9),
    )
    loader = fakes.FakeTrainLoader(recipe)
    groups = [loader.batch(0, 0, g) for g in range(2)]
    for group in groups:
        for name in ("images", "label_N", "partner_label_N", "lam_N"):
            setattr(group, name, getattr(group, name).to(device))
    step(groups, update=1)  # sets everything up
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for s in range(3):
            step(groups, update=s + 2, flags=lambda: [0.0, 1.0])
    finally:
        torch.cuda.set_sync_debug_mode(before)
    result = step.last_result()
    assert result is not None
    assert result[1:] == (1.0, (0.0, 1.0))
