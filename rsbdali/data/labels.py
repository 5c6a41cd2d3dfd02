"""Labels of a source in the classes that are asked for: its own, the training set's, a class map's, a label file's.

A label file holds those of a flat folder of images (ImageNet's validation set comes that way), in one of two forms,
recognized by the number of words on a line:

* `name label`: a file name (with or without its extension) and its label, separated by a space, tab or comma; cells may
  be quoted, names may hold spaces. Words behind a class name are ignored, and so is a first line that names columns, so
  Kaggle's `LOC_val_solution.csv` reads as it is.
* `label` alone: one line a file, in the order of the sorted file names, files that are no image included.

A label is a class name (for ImageNet a wnid such as n01440764) or a number counted from 0 in the order of the classes.
The numbers 1..1000 of `ILSVRC2012_validation_ground_truth.txt` follow another order of the classes: numbers of which
none is 0 are refused.
"""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsbdali.data.names import CLASS_NAMES, LABEL_NAMES, PATH_NAMES, first_few, natural_key
from rsbdali.data.sources.base import Scan
from rsbdali.data.text import LabelError, parse_label, read_lines
from rsbdali.errors import DataError, counted

MOST_WORDS = 64  # of a file name with spaces


def read_labels(path: Path, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Label of each file.

    Args:
        path: the label file.
        names: names of all N image files, in canonical order (paths relative to their folder).
        classes: class names; a label's number is its position here.

    Returns:
        int32, shape (N,).

    Raises:
        DataError: no such file, a line that cannot be read, an unknown label, or a file without a label.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path, "label file"), 1) if line]
    if lines and _is_header(lines[0][1], names, classes):
        lines = lines[1:]
    if not lines:
        raise DataError(f"{path}: no labels: expected lines of 'name label', or one label a line")
    alone = _labels_alone(path, lines, classes)
    if alone is not None:
        if len(alone) != len(names):
            raise DataError(
                f"{path}: {counted(len(alone), 'label')} for {counted(len(names), 'image file')}: "
                "expected one line a file"
            )
        number = _numbering(path, alone, classes)
        return np.array([number[label] for label in alone], np.int32)
    rows = _named_rows(path, lines, names, classes)
    number = _numbering(path, [label for _, _, label in rows], classes)
    label_of: dict[str, int] = {}
    for line, name, label in rows:
        if label_of.setdefault(name, number[label]) != number[label]:
            raise DataError(f"{path}: line {line}: {name} is listed with two labels")
    missing = [name for name in names if name not in label_of and os.path.splitext(name)[0] not in label_of]
    if missing:
        raise DataError(
            f"{path}: no label for {missing[0]} (and {len(missing) - 1} more of {counted(len(names), 'file')})"
        )
    return np.array([label_of[n] if n in label_of else label_of[os.path.splitext(n)[0]] for n in names], np.int32)


def read_class_map(path: Path, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names in label order, one a line, as timm's `--class-map`.

    A whole line is the name, as timm reads it. Where those are not the classes of the data, but what is before a
    number at the end of each line is, the numbers give the labels; where the first words are (`n01440764 tench`, as in
    ImageNet's LOC_synset_mapping.txt), they are the names.

    Args:
        path: the file.
        known: class names of the data.

    Raises:
        DataError: no such file, no names, an empty line between names, a name twice, or numbers that are not
            0, 1, 2, … in some order.
    """
    lines = read_lines(path, "class map")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: no class names: expected one a line")
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} is empty: expected one class name a line")
    names = _names_of(path, lines, set(known))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: class {twice!r} is there twice")
    return tuple(names)


def _names_of(path: Path, lines: list[str], known: set[str]) -> list[str]:
    if not known or known <= set(lines):
        return lines
    numbered = [re.fullmatch(r"(.*?)[\s,]+([0-9]{1,9})", line) for line in lines]
    if all(numbered) and not known.isdisjoint(match[1] for match in numbered if match):
        name_of = {int(match[2]): match[1] for match in numbered if match}
        if sorted(name_of) != list(range(len(lines))):
            raise DataError(f"{path}: labels of a class map must be 0 to {len(lines) - 1}, each once")
        return [name_of[i] for i in range(len(lines))]
    words = [re.split(r"[\s,]", line, maxsplit=1)[0] for line in lines]
    return words if known <= set(words) else lines


def _is_header(line: str, names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether a first line names columns."""
    first = _cells(line)[0].lower()
    return first in (*PATH_NAMES, *LABEL_NAMES, *CLASS_NAMES) and not {first, line} & {*names, *classes}


def _cells(line: str) -> list[str]:
    """Cells of one line by its tabs, else by its commas (both may be quoted), else the line itself."""
    delimiter = "\t" if "\t" in line else ","
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except csv.Error:  # a cell beyond csv's bound: it fits to no name, which is what is said then
        return [line]


def _labels_alone(path: Path, lines: list[tuple[int, str]], classes: Sequence[str]) -> list[str] | None:
    """The labels of a file of one label a line; None where names are before them."""
    known = set(classes)
    texts = [line if line in known else _cells(line)[0] if len(_cells(line)) == 1 else line for _, line in lines]
    one = [text in known or (len(_cells(text)) == 1 and not re.search(r"\s", text)) for text in texts]
    if one[0] and not all(one):
        raise DataError(f"{path}: line {lines[one.index(False)][0]}: expected one label as before it")
    return texts if all(one) else None


def _named_rows(
    path: Path, lines: list[tuple[int, str]], names: Sequence[str], classes: Sequence[str]
) -> list[tuple[int, str, str]]:
    """(line number, file name, label) of each line."""
    known, known_classes = {*names, *(os.path.splitext(name)[0] for name in names)}, set(classes)
    rows = []
    for number, line in lines:
        cells = _cells(line)
        name, label = (cells[0], cells[1]) if len(cells) > 1 else _split_at_space(cells[0], known)
        if not label:
            raise DataError(f"{path}: line {number}: expected 'name label' as before it")
        # Kaggle's solutions have boxes behind the class name
        rows.append((number, name, label if label in known_classes else re.split(r"[\s,]", label, maxsplit=1)[0]))
    return rows


def _split_at_space(line: str, known: set[str]) -> tuple[str, str]:
    """File name and what follows: the longest name of a file that the line begins with, else its first word."""
    quoted = re.fullmatch(r'"([^"]*)"\s+(.*)', line)
    if quoted:
        return quoted[1], quoted[2]
    words = re.split(r"(\s+)", line, maxsplit=MOST_WORDS)
    for end in range(len(words) - 2, 0, -2):
        name = "".join(words[:end])
        if name in known:
            return name, "".join(words[end + 1 :])
    return words[0], "".join(words[2:])


def _numbering(path: Path, labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Number of each label that occurs: by class name where all are names, else as counted from 0."""
    label_of = {name: i for i, name in enumerate(classes)}
    distinct = sorted(set(labels))
    unknown = [label for label in distinct if label not in label_of]
    if not unknown:
        return {label: label_of[label] for label in distinct}
    number: dict[str, int] = {}
    for label in distinct:
        try:
            parsed = parse_label(label)
        except LabelError as error:
            raise DataError(f"{path}: {error}") from error
        if not isinstance(parsed, int):
            wrong = label if label not in label_of else unknown[0]
            raise DataError(
                f"{path}: label {wrong[:80]!r} is none of the {counted(len(classes), 'class', 'classes')}, "
                "nor a number from 0"
            )
        number[label] = parsed
    largest = max(number.values())
    if 0 not in number.values():
        raise DataError(
            f"{path}: labels run from {min(number.values())} to {largest}, none is 0: as in ILSVRC2012's ground truth, "
            "whose numbers follow another order of the classes? Give class names, or numbers counted from 0"
        )
    if largest >= len(classes):
        raise DataError(f"{path}: label {largest} is out of range: there {_are(classes)}, counted from 0")
    return number


MOST_SHOWN = 40  # characters of a class name in a message
log = logging.getLogger(__name__)


def labels_of(
    what: str, scan: Scan, classes: Sequence[str] | None, label_file: Path | None, *, need_classes: bool
) -> tuple[tuple[str, ...], np.ndarray]:
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
        raise DataError(f"{what}: label {largest} is out of range: there {_are(classes)}, counted from 0")
    return tuple(classes), label_N


def _are(classes: Sequence[str]) -> str:
    return f"{'is' if len(classes) == 1 else 'are'} {counted(len(classes), 'class', 'classes')}"


def _clipped(name: str) -> str:
    """A name for a message: a file that is no class map has long lines, or no text."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"


def _by_name(what: str, scan: Scan, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    label_of = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in scan.classes if name not in label_of]
    if unknown:
        raise DataError(
            f"{what}: class folder {unknown[0]!r} (of {len(unknown)} such) is none of the "
            f"{counted(len(classes), 'training class', 'training classes')} ({first_few([*map(_clipped, classes)])}): "
            "expected the same class names as in training, or in the class map"
        )
    if len(scan.classes) < len(classes):
        log.warning("%s: holds %d of %s", what, len(scan.classes), counted(len(classes), "class", "classes"))
    translate = np.array([label_of[name] for name in scan.classes], np.int32)
    return tuple(classes), translate[scan.columns["label_N"]]


def _by_file(scan: Scan, classes: Sequence[str] | None, label_file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    if classes is None:
        raise DataError(f"{label_file}: a label file needs class names: give the training set's")
    ends = scan.columns["path_end_N"].tolist()
    blob = scan.columns["path_bytes"].tobytes()
    good = [os.fsdecode(blob[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    bad = [path.rpartition("::")[2] for path, _ in scan.bad]
    names = sorted(good + bad, key=natural_key)
    label_of = dict(zip(names, read_labels(Path(label_file), names, classes), strict=True))
    return tuple(classes), np.array([label_of[name] for name in good], np.int32)
