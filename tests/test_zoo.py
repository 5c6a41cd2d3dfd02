"""A zoo of broken and misnamed images: no loader dies of it, what Pillow decodes is used, the rest is named once."""

from collections import Counter
from pathlib import Path

import pytest

from helpers import zoo
from rsbdali.data.index import ImageIndex
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.recipe import Recipe

ROWS = 64
RECIPE = {
    "img_size": 32,
    "test_img_size": 32,
    "global_batch_size": ROWS,
    "mix_groups": 1,
    "scale": [1.0, 1.0],
    "ratio": [0.3, 3.0],  # whole images, so that every cut lies within the crop
}


@pytest.fixture(params=["before the scan", "after the scan"])
def zoo_index(request: pytest.FixtureRequest, tmp_path: Path) -> ImageIndex:
    zoo.write_zoo(tmp_path, plain=98)
    if request.param == "before the scan":
        zoo.break_zoo(tmp_path)
    index = trimmed(tmp_path)
    if request.param == "after the scan":
        zoo.break_zoo(tmp_path)
    assert len(index) + len(index.bad) == len(list(tmp_path.glob("*/*")))
    return index


def trimmed(root: Path) -> ImageIndex:
    """The index after plain images were removed, so that an epoch is whole batches and takes every image."""
    more = len(ImageIndex.scan(root)) % ROWS
    for path in list(root.glob("*/plain*.jpg"))[:more]:
        path.unlink()
    return ImageIndex.scan(root)


def bad_by_pillow(index: ImageIndex) -> Counter[str]:
    found = Counter(str(path) for path in index.root.glob("*/*") if not zoo.whole(path))
    assert len(found) >= 12
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_evaluation_takes_what_pillow_decodes(zoo_index: ImageIndex, threads: int) -> None:
    named = Counter(bad.path for bad in zoo_index.bad)
    recipe = Recipe.load("a3", RECIPE)
    loader = EvalLoader(
        zoo_index,
        recipe,
        device="cpu",
        batch_size=ROWS,
        num_threads=threads,
        on_bad=lambda path, reason: named.update([path]),
    )
    images = sum(len(batch.images) for batch in loader)
    loader.close()
    bad = bad_by_pillow(zoo_index)
    assert named == bad
    assert images == len(zoo_index) + len(zoo_index.bad) - len(bad)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_training_replaces_what_pillow_refuses(zoo_index: ImageIndex, decode: str, threads: int) -> None:
    named = Counter(bad.path for bad in zoo_index.bad)
    recipe = Recipe.load("a3", RECIPE)
    loader = TrainLoader(
        zoo_index,
        recipe,
        device="cpu",
        decode=decode,
        num_threads=threads,
        on_bad=lambda path, reason: named.update([path]),
    )
    drawn = set()
    for batch in loader:
        assert batch.images.shape == (ROWS, 3, 32, 32)
        drawn |= {zoo_index.path(i) for i in batch.plan.sample_N.tolist()}
    loader.close()
    assert named == bad_by_pillow(zoo_index)
    assert drawn == {str(path) for path in zoo_index.root.glob("*/*")} - set(named)
