"""Label files of flat validation folders."""

from pathlib import Path

import numpy as np
import pytest

from rsbdali.data.labels import read_labels
from rsbdali.errors import DataError

CLASSES = ("n01", "n02", "n10")
NAMES = ("val_1.JPEG", "val_2.JPEG", "val_10.JPEG")


def read(tmp_path: Path, text: str, names: tuple[str, ...] = NAMES, classes: tuple[str, ...] = CLASSES) -> np.ndarray:
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, names, classes)


@pytest.mark.parametrize(
    "text",
    [
        "n10\nn01\nn02\n",
        "2\n0\n1\n",
        "val_10.JPEG n02\nval_1.JPEG n10\nval_2.JPEG n01\nmore.JPEG n01\n",
        "val_1\tn10\n\nval_2\tn01\nval_10\tn02",
        "val_1.JPEG,2\nval_2.JPEG,0\nval_10.JPEG,1",
        "ImageId,PredictionString\nval_1,n10 85 131 499 328 n10 1 2 3 4\nval_2,n01 1 2 3 4\nval_10,n02 5 6 7 8\n",
    ],
)
def test_forms(tmp_path: Path, text: str) -> None:
    label_N = read(tmp_path, text)
    np.testing.assert_array_equal(label_N, [2, 0, 1])
    assert label_N.dtype == np.int32


def test_class_names_that_are_numbers_go_before_counting(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, "7\n5\n7\n", classes=("5", "7")), [1, 0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels"),
        ("n01\nn02\n", "2 labels for 3 image files"),
        ("val_1 n01\nval_2 n02\n", "no label for val_10.JPEG"),
        ("n01\nval_2 n02\nn01\n", "line 2: expected one label"),
        ("n01\nn77\nn02\n", "'n77' is none of the 3 classes"),
        ("1\n2\n3\n", "order of the classes"),
        ("0\n2\n3\n", "label 3 is out of range"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "labels.txt") in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_labels(tmp_path / "none.txt", NAMES, CLASSES)
