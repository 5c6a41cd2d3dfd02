"""What `rsbdali index` prints."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rsbdali.data.index import ImageIndex
from rsbdali.errors import DataError
from rsbdali.tools.index_summary import report, summary

ImageTree = Callable[..., Path]


def printed(folder: Path, **options: object) -> str:
    text = StringIO()
    report(Console(file=text, width=40), folder, **options)
    return text.getvalue()


def test_summary(image_tree: ImageTree) -> None:
    index = ImageIndex.scan(image_tree(classes=3, per_class=4, odd=("png", "no_eoi", "empty", "cmyk")))
    found = json.loads(json.dumps(summary(index)))
    assert found["images"] == len(index) == 15
    assert found["classes"] == 3
    assert found["bad"] == 1
    assert found["images_per_class"] == {"min": 4, "max": 7}
    assert found["bytes"] == index.nbytes_N.sum()
    assert found["formats"] == {"JPEG": 14, "PNG": 1}
    assert found["flags"] == {"NO_EOI": 1, "CMYK": 1, "OTHER_FORMAT": 1, "CONVERT": 1}
    assert found["width"]["p0"] == index.width_N.min()
    assert found["height"]["p100"] == index.height_N.max()


def test_both_splits_are_printed_and_each_odd_file_named_once(image_tree: ImageTree) -> None:
    train = image_tree(odd=("empty", "text", "truncated", "cmyk"))
    image_tree(split="val")
    text = printed(train.parent)
    assert f"{train}\n  images    14 " in text
    assert f"{train.parent / 'val'}\n  images    12 " in text
    lines = text.splitlines()
    for kind, words in {
        "empty": "empty file",
        "text": "not an image",
        "truncated": "no end-of-image marker",
        "cmyk": "CMYK, read through an RGB copy",
    }.items():
        (line,) = (line for line in lines if f"odd_{kind}.JPEG" in line)
        assert words in line


def test_a_folder_of_class_folders_and_a_flat_one(image_tree: ImageTree) -> None:
    root = image_tree()
    assert "classes   3, 4 images each" in printed(root)
    assert "none (a flat folder)" in printed(root / "class0")


def test_rebuild_and_threads(image_tree: ImageTree) -> None:
    root = image_tree()
    assert printed(root) == printed(root, rebuild=True, threads=2)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        printed(tmp_path / "gone")
