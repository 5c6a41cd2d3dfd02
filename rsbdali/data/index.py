"""Which images there are: paths, labels and sizes as columns, scanned once and cached.

The class of an image is the first folder below the root (torchvision's `ImageFolder`; the same as timm's leaf folder in
a tree of one level); images may be any number of folders deeper. Other sources say it in their own way
(`rsbdali.data.sources`). One canonical order for all: classes by timm's `natural_key`, then relative path by the same
key. Only headers are read. Files that are no image are left out and named in `bad`.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from rsbdali.data.header import ImageFlags
from rsbdali.data.image_parser import parse
from rsbdali.data.index_loading import (
    InvalidFile,
    LabelOptions,
    ScanOptions,
    load_listing,
    load_location,
    scan_location,
)
from rsbdali.data.interval_table import IntervalTable
from rsbdali.data.intervals import Intervals
from rsbdali.data.listing import Listed, files_listing, listing_of
from rsbdali.data.rgb_copy import PillowError, png_size, rgb_copy
from rsbdali.data.selection import canonical_rows, draw_share, row_numbers, take_columns
from rsbdali.data.sources.base import COLUMNS, ByteRange, Progress, Reader, ReadRequest, StoredImage
from rsbdali.data.sources.folder import FileReader
from rsbdali.data.sources.listed import Label
from rsbdali.data.sources.location import Location
from rsbdali.data.sources.read_ahead import AheadReader
from rsbdali.data.sources.storage import RangeReader
from rsbdali.errors import DataError, UnreadableImage, counted

PART_READERS = (FileReader, RangeReader, AheadReader)  # see `sources.base.PartReader`


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageIndex:
    """N images as columns: no Python object per image, about 70 bytes an image with short paths.

    Attributes:
        root: the scanned folder, absolute; of shards their folder.
        classes: class names in label order; empty where labels are unknown.
        label_N: int32, -1 where unknown.
        width_N: int32, pixels as stored and decoded (EXIF orientation is not applied, as in timm).
        height_N: int32.
        nbytes_N: int64, bytes of the encoded image.
        format_N: uint8, `header.Format` of the content.
        flags_N: uint8, `header.ImageFlags` flags.
        path_bytes: uint8, all relative paths in a row.
        path_end_N: int64, where each path ends in `path_bytes`.
        shard_N: int32, position in `shards`; empty where every image is a file or an object.
        offset_N: int64, first byte within the shard (in Parquet the row); of a list the item; else empty as well.
        intervals: where restart intervals are, of images that were packed to be read in part; None where none were.
        canonical_N: int64, rows in the canonical order, which shuffles start from; empty where it is their own.
        name: the source as text: the folder, the pattern of its shards, its URL.
        shards: files that hold many images each, relative to the root.
        bad: files left out.
        notes: see `Scan.notes`.
        reader: fetches encoded images.
        cache_dir: where RGB copies go; None for the default.
    """

    root: Path
    classes: tuple[str, ...]
    label_N: np.ndarray
    width_N: np.ndarray
    height_N: np.ndarray
    nbytes_N: np.ndarray
    format_N: np.ndarray
    flags_N: np.ndarray
    path_bytes: np.ndarray
    path_end_N: np.ndarray
    reader: Reader = field(repr=False)
    shard_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    offset_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    intervals: IntervalTable | None = field(default=None, repr=False)
    canonical_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    name: str = ""
    shards: tuple[str, ...] = ()
    bad: tuple[InvalidFile, ...] = ()
    notes: tuple[str, ...] = ()
    cache_dir: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.root))

    def __len__(self) -> int:
        return len(self.width_N)

    def __repr__(self) -> str:
        counts = f"{counted(len(self), 'image')}, {counted(self.num_classes, 'class', 'classes')}"
        return f"ImageIndex({self.name!r}: {counts}, {len(self.bad)} bad)"

    def __getitem__(self, i: int) -> tuple[str, int]:
        """Path and label of image i, as in torchvision's `samples`; the label is -1 where unknown."""
        return self.path(i), int(self.label_N[self._row(i)])

    def _row(self, i: int) -> int:
        """A row by its number, from the end where that is negative, as in a list."""
        if isinstance(i, slice):
            raise TypeError(f"{self!r} takes one number, as in index[0]: index.subset takes several")
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return range(len(self))[i]

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where labels are unknown."""
        return len(self.classes)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Label of each class name, as torchvision's datasets have it."""
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def targets(self) -> list[int]:
        """Label of each image, as torchvision's datasets have it."""
        labels: list[int] = self.label_N.tolist()
        return labels

    @property
    def memory_bytes(self) -> int:
        """Bytes that the columns take."""
        return sum(value.nbytes for value in (getattr(self, f.name) for f in fields(self)) if hasattr(value, "nbytes"))

    @cached_property
    def digest(self) -> str:
        """Fingerprint of paths, labels and sizes (pixels and bytes), in hex; the same for all sources."""
        if len(self.canonical_N):
            return self.subset(self.canonical_N).digest
        digest = hashlib.blake2b(self.path_bytes.tobytes(), digest_size=16)
        for column_N in (self.path_end_N, self.label_N, self.width_N, self.height_N, self.nbytes_N):
            digest.update(column_N.astype("<i8").tobytes())
        return digest.hexdigest()

    def relative_path(self, i: int) -> str:
        """Path of image i below the root, or within its shard."""
        i = self._row(i)
        start = self.path_end_N[i - 1] if i else 0
        return os.fsdecode(self.path_bytes[start : self.path_end_N[i]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of image i; for an image in a shard `shard::path`, for one in a store its URL."""
        i, path = self._row(i), self.relative_path(i)
        location = Location.parse(self.name)
        if not len(self.shard_N) and not location.is_url:
            return os.path.join(self.root, path)
        return location.join(f"{self.shards[self.shard_N[i]]}::{path}" if len(self.shard_N) else path)

    def read_bytes(self, i: int) -> np.ndarray:
        """Encoded image that decodes to the RGB pixels of image i: uint8, shape (length,); from any thread.

        It is a JPEG, PNG or WebP of the index's size, checked by the parser that DALI uses: the stored bytes where they
        are that, else Pillow's RGB copy (`read_copy`).

        Raises:
            UnreadableImage: its bytes are not there (any more), have changed, or Pillow does not read them either.
            SourceError: the source does not answer.
        """
        stored = self.read_stored(i)
        if not self.flags_N[i] & ImageFlags.CONVERT and self._parses(i, stored):
            return np.frombuffer(stored, np.uint8)
        return self._copy(i, stored)

    def intervals_of(self, i: int) -> Intervals | None:
        """The restart intervals of image i; None where it is read as a whole."""
        return self.intervals.of(i) if self.intervals is not None else None

    def read_parts(self, i: int, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        """Read some parts of the stored bytes of image i, one behind the other into uint8 (length,).

        Raises:
            UnreadableImage, SourceError: as `read_bytes`.
        """
        assert isinstance(self.reader, PART_READERS), "intervals of a source that is read as a whole"
        self.reader.read_parts(self._stored_image(i), parts, out_B)

    def read_copy(self, i: int) -> np.ndarray:
        """PNG of Pillow's RGB pixels of image i, for what DALI does not decode: uint8, shape (length,).

        Raises:
            UnreadableImage, SourceError: as `read_bytes`; Pillow does not decode the image either.
        """
        return self._copy(i, self.read_stored(i))

    def _parses(self, i: int, stored: bytes) -> bool:
        """Whether DALI may see the stored bytes.

        Raises:
            UnreadableImage: the image now has another size, so that no crop fits it any more.
        """
        parsed = parse(stored)
        if parsed is not None:
            self._check_size(i, parsed.width, parsed.height)
        return parsed is not None and parsed.format == self.format_N[i]

    def _copy(self, i: int, stored: bytes) -> np.ndarray:
        try:
            png = rgb_copy(stored, self.cache_dir)
        except PillowError as error:
            changed = "changed since it was indexed: " if len(stored) != self.nbytes_N[i] else ""
            reason = str(error) if stored else "empty file"
            raise UnreadableImage(changed + reason) from error
        self._check_size(i, *png_size(png))
        return np.frombuffer(png, np.uint8)

    def _check_size(self, i: int, width: int, height: int) -> None:
        if (width, height) != (self.width_N[i], self.height_N[i]):
            raise UnreadableImage(
                f"changed since it was indexed: {width} x {height} pixels, then {self.width_N[i]} x {self.height_N[i]}"
            )

    def read_stored(self, i: int) -> bytes:
        """The bytes of image i as its source holds them; from any thread.

        Raises:
            UnreadableImage, SourceError: as `read_bytes`.
        """
        return self.reader.read(self._stored_image(i))

    def fetch_ahead(self, sample_N: np.ndarray, parts: Iterable[Sequence[ByteRange]] | None = None) -> None:
        """Say that these images will be read soon, in that order; a source that is far away starts on them.

        Args:
            sample_N: rows of the index.
            parts: what `read_parts` will read of each, none for all of it. Only a source that is far away takes them.
        """
        each = repeat(()) if parts is None else parts
        pairs = zip(sample_N.tolist(), each, strict=False)
        self.reader.fetch_ahead(ReadRequest(self._stored_image(i), tuple(some)) for i, some in pairs)

    def _stored_image(self, i: int) -> StoredImage:
        shard = int(self.shard_N[i]) if len(self.shard_N) else -1
        offset = int(self.offset_N[i]) if len(self.offset_N) else 0
        return StoredImage(self.relative_path(i), shard, offset, int(self.nbytes_N[i]))

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ImageIndex":
        """An index of some of the images, in the order given, with all classes.

        Args:
            rows: numbers of rows (one may come several times), or a mask of shape (N,).

        Raises:
            DataError: no rows, or one that is not there.
        """
        row_M = row_numbers(rows, len(self))
        columns: dict[str, Any] = take_columns({name: getattr(self, name) for name in COLUMNS}, row_M)
        intervals = None if self.intervals is None else self.intervals.take(row_M)
        canonical_N = canonical_rows(self.canonical_N, row_M)
        return replace(self, **columns, canonical_N=canonical_N, intervals=intervals)

    def split(self, fraction: float, seed: int = 0) -> tuple["ImageIndex", "ImageIndex"]:
        """Two indexes, such as for training and validation: the rest, and a share of each class drawn from the seed.

        Which images they are does not depend on the order of the rows.

        Args:
            fraction: share of the second part, between 0 and 1; of each class it is rounded to whole images.
            seed: another one draws another part.

        Raises:
            DataError: one part would be empty.
        """
        chosen_N = draw_share(self.label_N, self.canonical_N, fraction, seed)
        return self.subset(~chosen_N), self.subset(chosen_N)

    @classmethod
    def from_lists(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        labels: Sequence[Label] | np.ndarray | None,
        *,
        classes: Sequence[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> "ImageIndex":
        """The index of image files, in the order given; their headers are cached as those of a folder are.

        Files that are no image, and those without a label where others have one, are left out.

        Args:
            paths: N paths, absolute or relative to `root`.
            labels: N numbers from 0 or N class names, as a list, array or tensor; None: no labels (-1).
            classes: class names in label order; None: those that occur, by `natural_key`, or the numbers.
            root: folder of relative paths; None: the current one.
            cache_dir: as in `load`.
            threads: as in `scan`.
            progress: as in `scan`.

        Raises:
            DataError: no usable images, or labels that do not fit.
        """
        listed = Listed(files_listing(paths, labels, classes=classes, root=root))
        options: dict[str, Any] = {"cache_dir": cache_dir, "threads": threads, "progress": progress}
        return index_listing(listed, need_classes=labels is not None, **options)[0]

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        check: bool = True,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> "ImageIndex":
        """The index of a dataset object's images, in its order.

        Args:
            dataset: a list of (path, label), a tuple (paths, labels), torchvision's `ImageFolder`, timm's
                `ImageDataset` over a folder, a Hugging Face `Dataset` with a column of images, an object with `len()`,
                `read(i) -> bytes` and `targets`, or torch's `Subset` of one of these.
            cache_dir: as in `load`.
            check: as in `load`.
            threads: as in `scan`.
            progress: as in `scan`.

        Raises:
            DataError: it cannot be translated, or as in `scan`.
        """
        options: dict[str, Any] = {"cache_dir": cache_dir, "threads": threads, "progress": progress}
        return index_listing(listing_of(dataset), check=check, **options)[0]

    @classmethod
    def scan(
        cls,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        labels: Path | None = None,
        need_classes: bool = True,
        threads: int | None = None,
        progress: Progress | None = None,
        class_map: Path | None = None,
        image_root: str | os.PathLike[str] | None = None,
    ) -> "ImageIndex":
        """List a source and read every header, without any cache.

        Args:
            root: folder of class folders, or a flat folder of images, or another source: tar or Parquet files (a
                folder of them, one, a pattern), a .csv or .tsv of paths and labels, a URL.
            classes: class names that labels refer to (the training set's, for a validation set); None: the source's.
            labels: label file of a flat folder (see `labels`).
            need_classes: False to accept images without labels (`label_N` is -1 then).
            threads: threads that read headers.
            progress: called as progress(files done, files in all), from this thread.
            class_map: file of class names in label order, instead of `classes`.
            image_root: folder that the relative paths of a table start from, instead of the table's own.

        Raises:
            DataError: no such source, no images, no classes, or classes or labels that do not fit.
        """
        labels_by = LabelOptions(classes=classes, class_map=class_map, label_file=labels, need_classes=need_classes)
        options = ScanOptions(threads=threads, progress=progress)
        return cls(**scan_location(Location.parse(root), image_root, labels_by, options))

    @classmethod
    def load(
        cls,
        root: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
        labels: Path | None = None,
        need_classes: bool = True,
        check: bool = True,
        rebuild: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
        class_map: Path | None = None,
        image_root: str | os.PathLike[str] | None = None,
    ) -> "ImageIndex":
        """The index from the cache where the source is unchanged, else scanned and cached.

        Unchanged means: the same files by relative path, size and time of last change, links followed.

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
            class_map: as in `scan`.
            image_root: as in `scan`.

        Raises:
            DataError: as in `scan`.
        """
        labels_by = LabelOptions(classes=classes, class_map=class_map, label_file=labels, need_classes=need_classes)
        options = ScanOptions(
            cache_dir=None if cache_dir is None else Path(cache_dir),
            check=check,
            rebuild=rebuild,
            threads=threads,
            progress=progress,
        )
        return cls(**load_location(Location.parse(root), image_root, labels_by, options))


def index_listing(
    listed: Listed,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    check: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    need_classes: bool = True,
) -> tuple[ImageIndex, np.ndarray]:
    """The index of what a program lists, rows in the order of the items, and the item that each row is: int64 (N,).

    Args:
        listed: the listing, and which of its items are meant.
        cache_dir: as in `ImageIndex.load`.
        check: likewise.
        threads: likewise.
        progress: likewise.
        need_classes: likewise.

    Raises:
        DataError: no usable images, or labels that do not fit.
    """
    listing, folder = listed.listing, None if cache_dir is None else Path(cache_dir)
    labels_by = LabelOptions(classes=listing.classes, need_classes=need_classes)
    options = ScanOptions(cache_dir=folder, check=check, threads=threads, progress=progress)
    index = ImageIndex(**load_listing(listing, labels_by, options))
    row_of_item = np.full(len(listing.labels), -1)
    row_of_item[index.offset_N] = np.arange(len(index))
    row_M = row_of_item if listed.item_M is None else row_of_item[listed.item_M]
    item_K = np.flatnonzero(row_M >= 0)  # the others were left out
    if not len(item_K):
        raise DataError(f"{listing.what}: none of the {counted(len(row_M), 'image')} chosen is usable")
    return index.subset(row_M[item_K]), item_K
