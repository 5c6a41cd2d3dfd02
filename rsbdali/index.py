"""Which images there are: paths, labels and sizes as columns, scanned once and cached.

The class of an image is the first folder below the root (torchvision's `ImageFolder`; the same as timm's leaf folder in
a tree of one level); images may lie any number of folders deeper. One canonical order: classes by timm's `natural_key`,
then relative path by the same key. Only headers are read. Files that are no image are left out and named in `bad`.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rsbdali import index_cache
from rsbdali.errors import DataError
from rsbdali.header import Care, Format
from rsbdali.labels import read_labels
from rsbdali.rgb_copy import rgb_copy
from rsbdali.scan import Progress, Scan, scan_tree
from rsbdali.tree import Tree, natural_key, walk

__all__ = ["BadFile", "Care", "Format", "ImageIndex", "find_images", "find_split"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadFile:
    """A file (absolute path) that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageIndex:
    """N images as columns: no Python object per image, about 70 bytes an image with short paths.

    Attributes:
        root: the scanned folder, absolute.
        classes: class names in label order; empty where labels are unknown.
        label_N: int32, -1 where unknown.
        width_N: int32, pixels as stored and decoded (EXIF orientation is not applied, as in timm).
        height_N: int32.
        nbytes_N: int64, file size.
        format_N: uint8, `header.Format` of the content.
        care_N: uint8, `header.Care` flags.
        path_bytes: uint8, all relative paths in a row.
        path_end_N: int64, where each path ends in `path_bytes`.
        bad: files left out.
        cache_dir: where RGB copies go; None for the default.
    """

    root: Path
    classes: tuple[str, ...]
    label_N: np.ndarray
    width_N: np.ndarray
    height_N: np.ndarray
    nbytes_N: np.ndarray
    format_N: np.ndarray
    care_N: np.ndarray
    path_bytes: np.ndarray
    path_end_N: np.ndarray
    bad: tuple[BadFile, ...] = ()
    cache_dir: Path | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.width_N)

    def __repr__(self) -> str:
        return f"ImageIndex({str(self.root)!r}: {len(self)} images, {self.num_classes} classes, {len(self.bad)} bad)"

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where labels are unknown."""
        return len(self.classes)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the columns take."""
        return sum(value.nbytes for value in (getattr(self, f.name) for f in fields(self)) if hasattr(value, "nbytes"))

    def relative_path(self, i: int) -> str:
        """Path of image i below the root."""
        start = self.path_end_N[i - 1] if i else 0
        return os.fsdecode(self.path_bytes[start : self.path_end_N[i]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.relative_path(range(len(self))[i]))

    def source_path(self, i: int) -> str:
        """Absolute path to decode image i from: the file, or an RGB PNG copy where `Care.CONVERT` asks for one.

        The copy is made on first use (`rgb_copy`).
        """
        if self.care_N[i] & Care.CONVERT:
            return rgb_copy(self.path(i), self.cache_dir)
        return self.path(i)

    def path_array(self, i: int) -> np.ndarray:
        """`source_path(i)` as uint8, shape (length,), as `fn.io.file.read` takes it."""
        return np.frombuffer(os.fsencode(self.source_path(i)), np.uint8)

    @classmethod
    def scan(
        cls, root: str | os.PathLike[str], *, classes: Sequence[str] | None = None, labels: Path | None = None,
        need_classes: bool = True, threads: int | None = None, progress: Progress | None = None,
    ) -> "ImageIndex":  # fmt: skip
        """Walk a folder and read every header, without any cache.

        Args:
            root: folder of class folders, or a flat folder of images.
            classes: class names that labels refer to (the training set's, for a validation set); None: the folders'.
            labels: label file of a flat folder (see `labels`).
            need_classes: False to accept a flat folder without labels (`label_N` is -1 then).
            threads: threads that read headers.
            progress: called as progress(files done, files in all), from this thread.

        Raises:
            DataError: no such folder, no images, no class folders, or classes or labels that do not fit.
        """
        scan = scan_tree(_root(root), _walk(root), threads, progress)
        return _labelled(_from_scan(_root(root), scan), classes, labels, need_classes)

    @classmethod
    def load(
        cls, root: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None, labels: Path | None = None, need_classes: bool = True,
        check: bool = True, rebuild: bool = False, threads: int | None = None, progress: Progress | None = None,
    ) -> "ImageIndex":  # fmt: skip
        """The index from the cache where the tree is unchanged, else scanned and cached.

        Unchanged means: the same image files by relative path, size and time of last change, links followed.

        Args:
            root: as in `scan`.
            cache_dir: cache folder instead of `$XDG_CACHE_HOME/rsbdali`.
            classes: as in `scan`; not part of what is cached, nor are labels.
            labels: as in `scan`.
            need_classes: as in `scan`.
            check: False to take a cache as it is, because another process (rank 0) has just checked it.
            rebuild: True to scan again and replace the cache.
            threads: as in `scan`.
            progress: as in `scan`; not called where the cache is used.

        Raises:
            DataError: as in `scan`.
        """
        folder = None if cache_dir is None else Path(cache_dir)
        file = index_cache.cache_file(folder or index_cache.default_folder(), _root(root))
        tree = _walk(root) if check else None
        fingerprint = tree.fingerprint() if tree else None
        scan = None if rebuild else index_cache.read(file, fingerprint)
        if scan is None:
            tree = tree or _walk(root)
            scan = scan_tree(_root(root), tree, threads, progress)
            index_cache.write(file, fingerprint or tree.fingerprint(), scan)
        return _labelled(_from_scan(_root(root), scan, folder), classes, labels, need_classes)


def find_split(data_dir: str | os.PathLike[str], split: str) -> Path:
    """Folder of a split: DIR/train for "train"; DIR/val or DIR/validation for "val".

    Raises:
        DataError: none of them is there.
    """
    data_dir = Path(data_dir)
    names = {"train": ("train",), "val": ("val", "validation")}[split]
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    expected = " or ".join(str(data_dir / name) for name in names)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder: expected {expected}/<class>/<image>")
    raise DataError(f"{data_dir}: no {split} folder: expected {expected}/<class>/<image>")


def find_images(data_dir: str | os.PathLike[str]) -> Path:
    """DIR/train where there is one, else DIR itself.

    Raises:
        DataError: DIR is no folder.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder: expected a folder of images, or one that holds train/")
    return data_dir / "train" if (data_dir / "train").is_dir() else data_dir


def _root(root: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(root))


def _walk(root: str | os.PathLike[str]) -> Tree:
    if not os.path.isdir(root):
        what = "not a folder" if os.path.exists(root) else "no such folder"
        raise DataError(f"{os.fspath(root)}: {what}: expected a folder of class folders with images")
    try:
        return walk(os.fspath(root))
    except OSError as error:
        raise DataError(f"{os.fspath(root)}: folder cannot be listed: {error.strerror}") from error


def _from_scan(root: Path, scan: Scan, cache_dir: Path | None = None) -> ImageIndex:
    bad = tuple(BadFile(os.path.join(root, path), reason) for path, reason in scan.bad)
    columns: dict[str, Any] = scan.columns
    return ImageIndex(root=root, classes=scan.classes, bad=bad, cache_dir=cache_dir, **columns)


def _labelled(index: ImageIndex, classes: Sequence[str] | None, labels: Path | None, need_classes: bool) -> ImageIndex:
    """Check and translate labels: to the given classes, or from a label file for a flat folder."""
    if not len(index):
        first = index.bad[0]
        raise DataError(f"{index.root}: no usable images: all {len(index.bad)} fail, {first.path}: {first.reason}")
    if labels is not None and not index.classes:
        return _label_by_file(index, classes, labels)
    if labels is not None:
        log.warning("%s: has class folders, so the label file %s is not used", index.root, labels)
    if not index.classes and need_classes:
        raise DataError(f"{index.root}: no class folders: expected {index.root}/<class>/<image>, or a label file")
    if classes is None or not index.classes:
        return index
    place = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in index.classes if name not in place]
    if unknown:
        raise DataError(
            f"{index.root}: class folder {unknown[0]!r} (of {len(unknown)} such) is none of the {len(classes)} "
            f"training classes ({', '.join(classes[:3])}, ...): expected the same class names as in training"
        )
    if len(index.classes) < len(classes):
        log.warning("%s: holds %d of %d classes", index.root, len(index.classes), len(classes))
    translate = np.array([place[name] for name in index.classes], np.int32)
    return replace(index, classes=tuple(classes), label_N=translate[index.label_N])


def _label_by_file(index: ImageIndex, classes: Sequence[str] | None, labels: Path) -> ImageIndex:
    if classes is None:
        raise DataError(f"{labels}: a label file needs class names: give the training set's")
    good = [index.relative_path(i) for i in range(len(index))]
    bad = [os.path.relpath(file.path, index.root) for file in index.bad]
    names = sorted(good + bad, key=natural_key)
    label_of = dict(zip(names, read_labels(Path(labels), names, classes), strict=True))
    return replace(index, classes=tuple(classes), label_N=np.array([label_of[name] for name in good], np.int32))
