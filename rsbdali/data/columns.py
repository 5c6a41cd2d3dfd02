"""Images found in a source turned into a `Scan`: classes, canonical order, columns; the same for every source.

Classes, by what the source says of its images:

* names and numbers (a Parquet schema, JSON beside an image): the numbers order the classes, one name each;
* names alone (folders in tar members): by `natural_key`, as for a folder of class folders;
* numbers alone (`.cls`): kept as they are; names may come later, from a class map or the training set;
* neither: a flat set without labels.

Within a class images go by `natural_key` of their relative path, so one data set has one order in every form.
"""

import os
from collections.abc import Sequence

import numpy as np

from rsbdali.data.header import Header
from rsbdali.data.names import natural_key
from rsbdali.data.sources.base import Entry, Scan
from rsbdali.data.text import MOST_LABEL
from rsbdali.errors import DataError, counted


def to_scan(
    what: str,
    found: Sequence[Entry],
    *,
    kind: str,
    shards: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    bad: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    numbered: bool = False,
) -> Scan:
    """Order images and make columns of them.

    Args:
        what: the source, for messages.
        found: all images, those that are none included.
        kind: the source's form, kept in the cache (`sources.registry`).
        shards: names that `StoredImage.shard` counts in.
        classes: class names that the labels count in, where the source lists them all.
        bad: (name, reason) of other things left out.
        notes: what the source has to say, see `Scan`.
        numbered: `offset_N` holds `StoredImage.offset` although there are no shards.

    Raises:
        DataError: labels that contradict each other.
    """
    labeled = [f for f in found if f.class_name is not None or f.label is not None]
    if labeled and len(labeled) < len(found):
        notes = (
            *notes,
            f"{counted(len(found) - len(labeled), 'image without a label is', 'images without a label are')} left out",
        )
    kept = labeled or list(found)
    names, label_F = ((), [-1] * len(kept)) if not labeled else _labels(what, kept, classes)
    order = sorted(range(len(kept)), key=lambda i: (label_F[i], natural_key(kept[i].image.path)))
    good = [i for i in order if not isinstance(kept[i].header, str)]
    failed = [(display(kept[i], shards), str(kept[i].header)) for i in order if isinstance(kept[i].header, str)]
    columns = _columns([kept[i] for i in good], [label_F[i] for i in good], numbered)
    return Scan(
        classes=names,
        columns=columns,
        bad=(*bad, *failed),
        kind=kind,
        shards=tuple(shards),
        notes=(*notes, *notes_on_classes(names, columns["label_N"])),
    )


def notes_on_classes(classes: Sequence[str], label_N: np.ndarray) -> tuple[str, ...]:
    """Notes on labels that may not be what was meant: classes without images, numbers from 1, an image a class."""
    if not len(label_N) or label_N.min() < 0:
        return ()
    count_C = np.bincount(label_N, minlength=len(classes))
    empty = np.flatnonzero(count_C == 0)
    notes = []
    if not classes and len(empty) == 1 and empty[0] == 0:
        notes.append(f"labels run from 1 to {len(count_C) - 1}: numbers count from 0, so class 0 has no images")
    elif len(empty):
        name = repr(classes[empty[0]]) if classes else str(empty[0])
        has = "has" if len(empty) == 1 else "have"
        all_classes = counted(len(count_C), "class", "classes")
        notes.append(f"{len(empty)} of {all_classes} {has} no usable images, {name} the first")
    if 2 < len(label_N) == np.count_nonzero(count_C):
        notes.append(f"each of the {len(label_N)} images has a class of its own: are these the labels?")
    return tuple(notes)


def display(found: Entry, shards: Sequence[str]) -> str:
    """Name of an image relative to its source: `shard::path`, or the path of a file."""
    return f"{shards[found.image.shard]}::{found.image.path}" if found.image.shard >= 0 else found.image.path


def _labels(what: str, found: Sequence[Entry], classes: Sequence[str] | None) -> tuple[tuple[str, ...], Sequence[int]]:
    """Class names in label order (none where only numbers are known), and each image's label."""
    numbers = [-1 if f.label is None else f.label for f in found]
    if max(numbers) > MOST_LABEL:
        raise DataError(f"{what}: label {max(numbers)} is too large: expected at most {MOST_LABEL}")
    if classes is not None:
        outside = next((n for n in numbers if not 0 <= n < len(classes)), None)
        if outside is not None:
            raise DataError(f"{what}: label {outside} is out of range of {counted(len(classes), 'class name')}")
        return tuple(classes), numbers
    if any(f.class_name is None for f in found):
        if min(numbers) < 0:
            raise DataError(f"{what}: some images have a class name and others a number: expected one or the other")
        return (), numbers
    number_of = {str(f.class_name): n for f, n in zip(found, numbers, strict=True)}
    if min(numbers) < 0 <= max(numbers):
        raise DataError(
            f"{what}: some images have a class name alone and others a number too: expected the same of all"
        )
    pairs = {(str(f.class_name), n) for f, n in zip(found, numbers, strict=True)}
    if len(pairs) > len(number_of) or (min(numbers) >= 0 and len(set(numbers)) < len(number_of)):
        raise DataError(f"{what}: labels and class names contradict each other: expected one number a class name")
    by_name = sorted(number_of, key=natural_key)
    names = tuple(sorted(by_name, key=lambda name: number_of[name]))  # without numbers all are -1: by name alone
    label_of = {name: i for i, name in enumerate(names)}
    return names, [label_of[str(f.class_name)] for f in found]


def _columns(found: Sequence[Entry], labels: Sequence[int], numbered: bool) -> dict[str, np.ndarray]:
    columns = header_columns(
        [os.fsencode(f.image.path) for f in found],
        [f.image.nbytes for f in found],
        np.array(labels, np.int32),
        [f.header for f in found if not isinstance(f.header, str)],
    )
    in_shards = bool(found) and found[0].image.shard >= 0
    return columns | {
        "shard_N": np.array([f.image.shard for f in found] if in_shards else [], np.int32),
        "offset_N": np.array([f.image.offset for f in found] if in_shards or numbered else [], np.int64),
    }


def header_columns(
    paths: list[bytes], sizes: list[int], label_N: np.ndarray, headers: list[Header]
) -> dict[str, np.ndarray]:
    """Columns that every source has, from its N images in order; `COLUMNS` without where they are in shards."""
    header_N4 = np.array(headers, np.int32).reshape(-1, 4)
    return {
        "label_N": label_N,
        "width_N": header_N4[:, 0].copy(),
        "height_N": header_N4[:, 1].copy(),
        "nbytes_N": np.array(sizes, np.int64),
        "format_N": header_N4[:, 2].astype(np.uint8),
        "flags_N": header_N4[:, 3].astype(np.uint8),
        "path_bytes": np.frombuffer(b"".join(paths), np.uint8),
        "path_end_N": np.cumsum([len(path) for path in paths], dtype=np.int64),
    }
