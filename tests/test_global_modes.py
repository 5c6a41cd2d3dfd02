"""torch's global and thread-wide modes, which trainers set for themselves: batches are the same under all of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rsbdali import create_loader
from rsbdali.integrations.tuple_loader import Pair, TupleLoader
from rsbdali.ops.lamb import Lamb
from rsbdali.recipe import Recipe

MIXING = {"img_size": 24, "test_img_size": 24, "aa": "rand-m9-mstd0.5-inc1", "mixup": 0.2, "cutmix": 1.0}


@contextmanager
def setting(set_: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    set_(value)
    try:
        yield
    finally:
        set_(before)


# what tensors without a device of their own go to, "meta", fails whoever reads them: it stands for a GPU
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: setting(torch.set_default_device, "meta", None),
    "with meta": lambda: torch.device("meta"),
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: setting(torch.set_default_dtype, torch.float16, torch.float32),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@pytest.fixture
def data(image_tree: Callable[..., Path]) -> Path:
    """Sixteen images and one that does not decode, so that rows are replaced as well."""
    return image_tree(classes=2, per_class=8, odd=("truncated",)).parent


def loader(data: Path, kind: str) -> TupleLoader:
    common = {"recipe": "a3", "device": "cpu", "num_workers": 1, "on_bad": lambda path, reason: None}
    if kind == "eval":
        return create_loader(data / "train", 24, 8, **common)
    recipe = Recipe.load("a3", MIXING)
    return create_loader(data, None, 8, True, **{**common, "recipe": recipe, "decode": kind})


def batches(data: Path, kind: str) -> list[Pair]:
    with loader(data, kind) as pairs:
        return [pair for _ in range(2) for pair in pairs]


# a graph takes half a second to build
@pytest.mark.parametrize(("kind", "names"), [("cpu", [*MODES]), ("eval", [*MODES]), ("graph", ["meta", "float64"])])
def test_batches_are_equal_under_every_mode(data: Path, kind: str, names: list[str]) -> None:
    expected = batches(data, kind)
    for name in names:
        with MODES[name]():
            found = batches(data, kind)
        assert len(found) == len(expected), name
        for (images, targets), (right_images, right_targets) in zip(found, expected, strict=True):
            assert (images.dtype, targets.dtype) == (right_images.dtype, right_targets.dtype), name
            assert images.device.type == targets.device.type == "cpu", name
            assert torch.equal(images, right_images), name
            assert torch.equal(targets, right_targets), name


@pytest.mark.parametrize("kind", ["cpu", "graph"])
def test_batches_begun_in_inference_mode_can_be_trained_on(data: Path, kind: str) -> None:
    weight = torch.ones((), requires_grad=True)
    with loader(data, kind) as pairs:
        passing = iter(pairs)
        with torch.inference_mode():
            first = next(passing)
        for images, _ in (first, *passing, *pairs):
            (images * weight).sum().backward()
            images.add_(1)
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_optimizer_counts_in_float32(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    optimizer = Lamb(model.parameters(), lr=0.1)
    with setting(torch.set_default_dtype, dtype, torch.float32):
        model(torch.ones(1, 3, dtype=torch.float32)).sum().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["step"].dtype == torch.float32
