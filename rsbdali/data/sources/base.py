"""What every source gives: images found, and a reader that fetches one of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from rsbdali.data.header import Header, InvalidImageError, Pread, read_header_from

CHUNK = 512  # files that one thread reads in a row
# More threads than cores: on a disk or a network each waits; in a warm cache 1 to 16 take about the same time.
DEFAULT_THREADS = 16
COLUMNS = (
    "label_N",
    "width_N",
    "height_N",
    "nbytes_N",
    "format_N",
    "flags_N",
    "path_bytes",
    "path_end_N",
    "shard_N",
    "offset_N",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What a source holds, by its own classes; nothing here depends on where it is.

    Attributes:
        classes: first-level folders that hold image files, in label order; empty for a flat folder, and where labels
            are mere numbers.
        columns: the arrays of `ImageIndex` that COLUMNS names (label_N is -1 throughout for a flat folder).
        bad: (relative path, reason) of files left out.
        kind: the form of the source, see `rsbdali.data.sources.registry`.
        shards: files that hold many images each, relative to the source; none where each image is a file.
        notes: what a user should know of the data and cannot see, a sentence each.
    """

    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    bad: tuple[tuple[str, str], ...]
    kind: str = "files"
    shards: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class StoredImage(NamedTuple):
    """One image as its source stores it: where its encoded bytes are.

    Attributes:
        path: its path relative to the source, for the store of one object an image.
        shard: number of its shard in the source's list; -1 where an image is a file of its own.
        offset: first byte within the shard; in Parquet the row.
        nbytes: length in bytes.
    """

    path: str
    shard: int
    offset: int
    nbytes: int


class ByteRange(NamedTuple):
    """Some bytes of an image: where they begin, counted from its first byte, and how many they are."""

    start: int
    nbytes: int


class ReadRequest(NamedTuple):
    """What is read of an image.

    Attributes:
        image: the image.
        parts: ranges in ascending order; none for all of it.
    """

    image: StoredImage
    parts: tuple[ByteRange, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that are asked for."""
        return sum(part.nbytes for part in self.parts) if self.parts else self.image.nbytes


class Entry(NamedTuple):
    """One image met while a source was listed.

    Attributes:
        image: as it is stored; its path has the class folder first where names carry a class.
        header: size and kind, or why it is no image.
        label: its number where the source gives one.
        class_name: its class where the source names it.
    """

    image: StoredImage
    header: Header | str
    label: int | None = None
    class_name: str | None = None


class Reader(Protocol):
    """Encoded images, for any number of threads."""

    def read(self, image: StoredImage) -> bytes:
        """The encoded bytes of one image.

        Raises:
            UnreadableImage: they are not there (any more).
            SourceError: the source does not answer.
        """
        ...

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """What will be read soon, in that order; a source far away starts on it in the background.

        Others need not look at `requests`, which may be made while they are taken.
        """
        ...

    def close(self) -> None:
        """Close files and end threads; reading on opens them again."""
        ...


class PartReader(Reader, Protocol):
    """A reader of a source whose images can be read in part."""

    def read_parts(self, image: StoredImage, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        """Read parts of an image, in ascending order, one behind the other into uint8 (length,).

        Raises:
            UnreadableImage, SourceError: as `read`.
        """
        ...


class Source(Protocol):
    """One data set in one form."""

    def fingerprint(self) -> bytes:
        """32 bytes that change when the data does (names, sizes, times of last change)."""
        ...

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """List all images and read their headers.

        Raises:
            DataError: nothing usable is there, or the data has another form than its name says.
        """
        ...


def header_or_reason(pread: Pread, image: StoredImage) -> Header | str:
    """The header of an image, or why it has none.

    Args:
        pread: reads the blob that holds the image.
        image: its bytes within the blob.
    """

    def within(count: int, at: int) -> bytes:
        return pread(max(0, min(count, image.nbytes - at)), image.offset + at)

    try:
        return read_header_from(within, image.path, image.nbytes)
    except InvalidImageError as error:
        return str(error)
