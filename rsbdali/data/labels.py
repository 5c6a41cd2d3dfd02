"""Labels of a flat folder of images, read from a text file (ImageNet's validation set comes that way).

Two forms, told apart by the number of words on a line:

* `name label`: a file name (with or without its extension) and its label, separated by a space, tab or comma. Further
  words are ignored, and so is a first line that names columns, so Kaggle's `LOC_val_solution.csv` reads as it is.
* `label` alone: one line a file, in the order of the sorted file names, files that are no image included.

A label is a class name (for ImageNet a wnid such as n01440764) or a number counted from 0 in the order of the classes.
The numbers 1..1000 of `ILSVRC2012_validation_ground_truth.txt` follow another order of the classes and are refused.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsbdali.errors import DataError


def read_labels(path: Path, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Label of each file.

    Args:
        path: the label file.
        names: names of all N image files, in canonical order (paths relative to their folder).
        classes: class names; a label's number is its place here.

    Returns:
        int32, shape (N,).

    Raises:
        DataError: no such file, a line that cannot be read, an unknown label, or a file without a label.
    """
    rows = _read_rows(path)
    number = _numbering(path, [words[-1] for _, words in rows], classes)
    if len(rows[0][1]) == 1:
        if len(rows) != len(names):
            raise DataError(f"{path}: {len(rows)} labels for {len(names)} image files: expected one line a file")
        return np.array([number[words[0]] for _, words in rows], np.int32)
    label_of = {words[0]: number[words[1]] for _, words in rows}
    missing = [name for name in names if name not in label_of and os.path.splitext(name)[0] not in label_of]
    if missing:
        raise DataError(f"{path}: no label for {missing[0]} (and {len(missing) - 1} more of {len(names)} files)")
    return np.array([label_of[n] if n in label_of else label_of[os.path.splitext(n)[0]] for n in names], np.int32)


def read_class_map(path: Path) -> tuple[str, ...]:
    """Class names in label order, one a line, as timm's `--class-map`; a number after the name may give its label.

    Raises:
        DataError: no such file, no names, a name twice, or numbers that are not 0, 1, 2, … in some order.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: class map cannot be read: {error}") from error
    numbered = [re.fullmatch(r"(.*?)[\s,]+(\d+)", line) for line in lines]
    names = lines
    if lines and all(numbered):
        place = {int(match[2]): match[1] for match in numbered if match}
        if sorted(place) != list(range(len(lines))):
            raise DataError(f"{path}: labels of a class map must be 0 to {len(lines) - 1}, each once")
        names = [place[i] for i in range(len(lines))]
    if not names:
        raise DataError(f"{path}: no class names: expected one a line")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{path}: class {twice!r} stands there twice")
    return tuple(names)


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, [label] or [name, label]) of each line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{path}: label file cannot be read: {error.strerror}") from error
    rows = [(number, re.split(r"[\s,]+", line.strip())[:2]) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and rows[0][1][0].lower() in ("imageid", "filename", "file", "name", "image"):
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path}: no labels: expected lines of 'name label', or one label a line")
    width = len(rows[0][1])
    for line, words in rows:
        if len(words) != width:
            raise DataError(f"{path}: line {line}: expected {'name label' if width == 2 else 'one label'} as before it")
    return rows


def _numbering(path: Path, labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Number of each label that occurs: by class name where all are names, else as counted from 0."""
    place = {name: i for i, name in enumerate(classes)}
    distinct = sorted(set(labels))
    unknown = [label for label in distinct if label not in place]
    if not unknown:
        return {label: place[label] for label in distinct}
    if not all(re.fullmatch(r"\d+", label) for label in distinct):
        raise DataError(f"{path}: label {unknown[0]!r} is none of the {len(classes)} classes, nor a number from 0")
    number = {label: int(label) for label in distinct}
    largest = max(number.values())
    if largest == len(classes) and 0 not in number.values():
        raise DataError(
            f"{path}: labels run from 1 to {largest}, as in ILSVRC2012's ground truth, whose numbers follow another "
            "order of the classes: give class names, or numbers counted from 0"
        )
    if largest >= len(classes):
        raise DataError(f"{path}: label {largest} is out of range: there are {len(classes)} classes, counted from 0")
    return number
