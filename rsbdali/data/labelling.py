"""Labels of a scanned source in the classes that are asked for: the source's own, the training set's, a class map's."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsbdali.data.labels import read_labels
from rsbdali.data.scan import Scan
from rsbdali.data.sources.folder import natural_key
from rsbdali.errors import DataError

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
