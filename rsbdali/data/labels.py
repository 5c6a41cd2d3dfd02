"""Labels of a source in the classes that are asked for: its own, the training set's, a class map's, a label file's.

A label file holds those of a flat folder of images (ImageNet's validation set comes that way), in one of two forms,
told apart by the number of words on a line:

* `name label`: a file name (with or without its extension) and its label, separated by a space, tab or comma. Further
  words are ignored, and so is a first line that names columns, so Kaggle's `LOC_val_solution.csv` reads as it is.
* `label` alone: one line a file, in the order of the sorted file names, files that are no image included.

A label is a class name (for ImageNet a wnid such as n01440764) or a number counted from 0 in the order of the classes.
The numbers 1..1000 of `ILSVRC2012_validation_ground_truth.txt` follow another order of the classes and are refused.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsbdali.data.names import natural_key
from rsbdali.data.sources.base import Scan
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


log = logging.getLogger(__name__)


def labels_of(
    what: str, scan: Scan, classes: Sequence[str] | None, label_file: Path | None, *, need_classes: bool
) -> tuple[tuple[str, ...], np.ndarray]:  # fmt: skip
    """Class names, and the label of each image in them.

    Args:
        what: the source, for messages.
        scan: what it holds.
        classes: class names to count in; None: the source's own.
        label_file: labels of a flat folder (see `labels`).
        need_classes: False to accept images without labels.

    Returns:
        The names, and int32 (N,), -1 where unknown.

    Raises:
        DataError: no labels, or classes or labels that do not fit.
    """
    label_N = scan.columns["label_N"]
    has_labels = bool(scan.classes) or bool((label_N >= 0).all())
    if label_file is not None and not has_labels:
        return _by_file(scan, classes, label_file)
    if label_file is not None:
        log.warning("%s: has classes of its own, so the label file %s is not used", what, label_file)
    if not has_labels:
        if need_classes:
            raise DataError(f"{what}: no class folders: expected {what}/<class>/<image>, or a label file")
        return (), label_N
    if not scan.classes:
        return _by_number(what, label_N, classes)
    return (scan.classes, label_N) if classes is None else _by_name(what, scan, classes)


def _by_number(what: str, label_N: np.ndarray, classes: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    largest = int(label_N.max())
    if classes is None:
        return tuple(str(i) for i in range(largest + 1)), label_N
    if largest >= len(classes):
        raise DataError(f"{what}: label {largest} is out of range: there are {len(classes)} classes, counted from 0")
    return tuple(classes), label_N


def _by_name(what: str, scan: Scan, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    place = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in scan.classes if name not in place]
    if unknown:
        raise DataError(
            f"{what}: class folder {unknown[0]!r} (of {len(unknown)} such) is none of the {len(classes)} "
            f"training classes ({', '.join(classes[:3])}, ...): expected the same class names as in training"
        )
    if len(scan.classes) < len(classes):
        log.warning("%s: holds %d of %d classes", what, len(scan.classes), len(classes))
    translate = np.array([place[name] for name in scan.classes], np.int32)
    return tuple(classes), translate[scan.columns["label_N"]]


def _by_file(
    scan: Scan, classes: Sequence[str] | None, label_file: Path
) -> tuple[tuple[str, ...], np.ndarray]:  # fmt: skip
    if classes is None:
        raise DataError(f"{label_file}: a label file needs class names: give the training set's")
    ends = scan.columns["path_end_N"].tolist()
    blob = scan.columns["path_bytes"].tobytes()
    good = [os.fsdecode(blob[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    bad = [path.rpartition("::")[2] for path, _ in scan.bad]
    names = sorted(good + bad, key=natural_key)
    label_of = dict(zip(names, read_labels(Path(label_file), names, classes), strict=True))
    return tuple(classes), np.array([label_of[name] for name in good], np.int32)
