"""The memory that a step is predicted to take, against figures that were counted before, and the line about it."""

import re
from types import SimpleNamespace

import pytest
import torch

from helpers import fakes
from helpers.fake_cuda import allow_cuda_autocast, needs_no_driver
from rsbdali.distributed.world import World
from rsbdali.recipe import Recipe
from rsbdali.training import gpu_memory
from rsbdali.training.gpu_memory import GIB, Memory, predict, say_memory
from rsbdali.training.model import create_model

GPU = torch.device("cuda", 0)
pytestmark = needs_no_driver


@pytest.fixture(scope="module")
def resnet50() -> torch.nn.Module:
    return create_model(Recipe.load("a3"), 1000)


@pytest.mark.parametrize(("rows", "side", "gib"), [(512, 160, 10.7), (256, 224, 10.5), (512, 224, 20.9)])
def test_saved_activations_of_resnet50(
    resnet50: torch.nn.Module, rows: int, side: int, gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_cuda_autocast(monkeypatch)
    memory = predict(resnet50, rows, (side, side), device=GPU, dtype=torch.float16, averaged=False)
    assert memory.saved / GIB == pytest.approx(gib, abs=0.05)
    # weights, gradients and two moments, and BatchNorm's statistics
    assert memory.state == pytest.approx(4 * 4 * 25_557_032, rel=2e-3)
    assert all(parameter.device.type == "cpu" for parameter in resnet50.parameters())
    assert resnet50.bn1.num_batches_tracked == 0


def test_a_layer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_cuda_autocast(monkeypatch)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 1))
    counts = 3 * 8, 8 + 1
    images, hidden = 6 * 3 * 10 * 10, 6 * 8 * 10 * 10  # the second is ReLU's result: the convolution's is not kept
    whole = predict(layers, 6, (10, 10), device=GPU, dtype=torch.float32, averaged=True)
    assert whole == Memory(saved=4 * (images + hidden), state=5 * 4 * sum(counts))
    half = predict(layers, 6, (10, 10), device=GPU, dtype=torch.float16, averaged=False)
    assert half == Memory(saved=2 * (images + hidden + 3 * 8 + 8), state=4 * 4 * sum(counts))  # and weights of 16 bits


class Asking(torch.nn.Module):
    """A model whose shapes depend on its values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[: int(images.sum())]


@pytest.mark.parametrize(
    ("model", "there", "level", "says"),
    [
        (None, 2**34, "INFO", r"GPU memory: \d+\.\d GiB predicted of 16.0: \d+\.\d for a pass of 8 images of 32 × 32"),
        (None, 1000, "WARNING", "will not fit: --set micro_batch_size=4"),
        (Asking(), 2**34, "INFO", r"not predicted, shapes of this model depend on its values \(DataDependentOutput"),
    ],
)
def test_the_line_of_the_start(
    model: torch.nn.Module | None,
    there: int,
    level: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    allow_cuda_autocast(monkeypatch)
    properties = SimpleNamespace(total_memory=there)
    monkeypatch.setattr(gpu_memory.torch.cuda, "get_device_properties", lambda _: properties)
    recipe = fakes.recipe(micro_batch_size=8)
    state = SimpleNamespace(model=model or create_model(recipe, fakes.CLASSES), ema=None)
    with caplog.at_level("INFO"):
        say_memory(state, recipe, World(), GPU, torch.bfloat16)
    assert [record.levelname for record in caplog.records] == [level]
    assert re.search(says, caplog.text)
