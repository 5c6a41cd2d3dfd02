"""The demo data: real JPEGs, repeatable, resumable, and classes that can be told apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_split
from rsbdali.errors import DataError
from rsbdali.tools.demo_data import CLASSES, MARKER, draw, make_demo_data


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.JPEG"))}


def small(out: Path, **options: int) -> str:
    return str(make_demo_data(out, **{"images_per_class_train": 3, "images_per_class_val": 1, **options}))


def test_layout(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = make_demo_data(
        tmp_path / "demo",
        images_per_class_train=3,
        images_per_class_val=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert (made.train, made.val, made.made) == (30, 10, 40)
    assert steps == [(i, 40) for i in range(1, 41)]
    train = ImageIndex.scan(find_split(tmp_path / "demo", "train"))
    val = ImageIndex.scan(find_split(tmp_path / "demo", "val"), classes=train.classes)
    assert train.classes == val.classes == CLASSES
    assert np.bincount(train.label_N).tolist() == [3] * 10
    assert np.bincount(val.label_N).tolist() == [1] * 10
    for index in (train, val):
        assert not index.bad
        assert not index.flags_N.any()
        assert index.width_N.min() >= 300
        assert index.height_N.max() <= 600
        assert len(set(index.width_N.tolist())) > 5


def test_repeatable_and_different_by_seed_and_split(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small(tmp_path / name, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())
    assert len(set(a.values())) == len(a) == 40


def test_a_second_call_makes_nothing_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert "40 made now" in small(out)
    before = contents(out)
    assert "all there already" in small(out)
    for name in list(before)[::3]:
        (out / name).unlink()
    assert "14 made now" in small(out)
    assert contents(out) == before


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and no demo data"):
        small(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    with pytest.raises(DataError, match="is not empty and no demo data"):
        small(tmp_path / "other" / "thesis.txt")
    small(tmp_path / "demo")
    with pytest.raises(DataError, match=f"other parameters \\({MARKER}\\)"):
        small(tmp_path / "demo", seed=1)
    with pytest.raises(DataError, match="cannot be written"):
        small(tmp_path / "other" / "thesis.txt" / "below")


@pytest.mark.parametrize("name", CLASSES)
def test_pictures(name: str) -> None:
    images = [draw(name, np.random.default_rng(seed)) for seed in range(4)]
    for image in images:
        assert image.mode == "RGB"
        grey_HW = np.asarray(image.convert("L"), np.float32)
        assert grey_HW.std() > 15  # the class stands out from its ground
        halves = [grey_HW[:, :150], grey_HW[:, -150:]]
        assert min(half.std() for half in halves) > 10  # all over the picture, so that crops show it
    same = draw(name, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(same), np.asarray(images[0]))


def test_color_does_not_give_the_class_away() -> None:
    """Mean colors of two classes differ no more than chance allows."""
    means_KSC = np.array(
        [
            [
                np.asarray(draw(name, np.random.default_rng([seed, k])).resize((1, 1), Image.Resampling.BOX))[0, 0]
                for seed in range(30)
            ]
            for k, name in enumerate(("discs", "stripes", "zigzag"))
        ],
        np.float64,
    )
    spread = means_KSC.std(axis=1).mean()
    assert np.ptp(means_KSC.mean(axis=1), axis=0).max() < 1.2 * spread
