"""Bad images: named once, limited, replaced row by row by the plan's own draws."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.errors import DataError
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.loader.bad_images import BadImages
from rsbdali.recipe import Recipe

SMALL = {"img_size": 32, "test_img_size": 32, "global_batch_size": 8, "mix_groups": 1}


def test_bad_images_are_named_once_and_limited() -> None:
    seen: list[tuple[str, str]] = []
    bad = BadImages(lambda path, reason: seen.append((path, reason)), limit=2)
    bad.add("a", "cut")
    bad.add("a", "cut")
    bad.add("b", "empty")
    assert seen == [("a", "cut"), ("b", "empty")]
    assert bad.reasons == {"a": "cut", "b": "empty"}
    with pytest.raises(DataError, match="max_bad_images=2"):
        bad.add("c", "text")


def spoil(index: ImageIndex, samples: list[int]) -> None:
    """Cut headers and scans behind the index's back."""
    for k, i in enumerate(samples):
        path = Path(index.path(i))
        path.write_bytes(path.read_bytes()[: 120 if k % 2 else 400])


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_neighbors_of_a_bad_row_are_bitwise_as_before(image_tree: Callable[..., Path], decode: str) -> None:
    root = image_tree(classes=2, per_class=12)
    recipe = Recipe.load("a3", SMALL | {"mixup": 0, "cutmix": 0})
    index = ImageIndex.scan(root)
    loader = TrainLoader(index, recipe, device="cpu", decode=decode, num_threads=2, dtype=torch.uint8)
    clean = list(loader)
    loader.close()
    spoil(index, [3, 4, 10])
    loader = TrainLoader(index, recipe, device="cpu", decode=decode, num_threads=2, dtype=torch.uint8)
    for before, after in zip(clean, loader, strict=True):
        same_N = before.plan.sample_N == after.plan.sample_N
        assert torch.equal(before.images[same_N], after.images[same_N])
        assert set(before.plan.sample_N[~same_N].tolist()) <= {3, 4, 10}
        assert not set(after.plan.sample_N.tolist()) & {3, 4, 10}
        assert torch.equal(after.label_N, torch.from_numpy(index.label_N[after.plan.sample_N].astype(np.int64)))
    assert len(loader.bad.reasons) == 3
    loader.close()


def test_a_set_with_no_good_image_ends(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=4))
    spoil(index, list(range(8)))
    loader = TrainLoader(index, Recipe.load("a3", SMALL), device="cpu", num_threads=2)
    with pytest.raises(DataError, match="100 images in a row do not decode"):
        next(iter(loader))
    assert len(loader.bad.reasons) == 8
    loader.close()


def test_evaluation_takes_every_image_that_is_whole(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=12))
    recipe = Recipe.load("a3", SMALL)
    clean = torch.cat([batch.images for batch in EvalLoader(index, recipe, device="cpu", batch_size=5)])
    spoil(index, [0, 7, 8, 9, 23])
    loader = EvalLoader(index, recipe, device="cpu", batch_size=5)
    batches = list(loader)
    kept_N = np.delete(np.arange(24), [0, 7, 8, 9, 23])
    assert torch.equal(torch.cat([batch.images for batch in batches]), clean[kept_N])
    assert torch.cat([batch.label_N for batch in batches]).tolist() == index.label_N[kept_N].tolist()
    assert sorted(loader.bad.reasons) == sorted(index.path(i) for i in (0, 7, 8, 9, 23))


def test_a_callback_that_raises_leaves_a_loader_that_works(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=12))
    expected = [batch.plan.sample_N.tolist() for batch in TrainLoader(index, Recipe.load("a3", SMALL), device="cpu")]
    spoil(index, [5])

    def fail(path: str, reason: str) -> None:
        raise ZeroDivisionError(path)

    loader = TrainLoader(index, Recipe.load("a3", SMALL), device="cpu", on_bad=fail)
    with pytest.raises(ZeroDivisionError):
        list(loader)
    loader.set_epoch(0)
    found = [batch.plan.sample_N.tolist() for batch in loader]
    assert len(found) == len(expected)
    assert all(5 not in samples for samples in found)
