"""Images that a program lists: files with their labels, or the items of an object that reads them.

    Listing: N labels, N files or a function that reads item i ──> ListedSource ──> Scan, as of any other source

The scan has the canonical order of all sources; its `offset_N` says which item of the listing a row is.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rsbdali.data.columns import to_scan
from rsbdali.data.header import InvalidImageError, read_header
from rsbdali.data.sources.base import (
    CHUNK,
    DEFAULT_THREADS,
    Entry,
    Progress,
    ReadRequest,
    Scan,
    StoredImage,
    header_or_reason,
)
from rsbdali.data.sources.folder import FileReader
from rsbdali.errors import DataError, UnreadableImage

Label = int | str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """Encoded images by number, of an object of the user's.

    Attributes:
        read: encoded bytes of item i; from any thread.
        path: a name for item i, which gives the order within its class.
        identity: text that changes when the items do, under which their headers are cached; None: they are not cached.
    """

    read: Callable[[int], bytes]
    path: Callable[[int], str]
    identity: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """N images as a program lists them.

    Attributes:
        what: the data, for messages.
        labels: N numbers from 0, or N class names; None where a label is unknown.
        classes: class names in label order; None: those that occur.
        root: folder that the paths of files start from; of items what comes before their names in messages.
        images: N paths of files, absolute or relative to `root`; or the items.
    """

    what: str
    labels: Sequence[Label]
    classes: tuple[str, ...] | None
    root: str
    images: Sequence[str] | Items

    @property
    def identity(self) -> str | None:
        """What identifies this listing; None where that cannot be known."""
        if isinstance(self.images, Items):
            named: Sequence[object] | None = self.images.identity and [self.images.identity]
        else:
            named = self.images
        if named is None:
            return None
        digest = hashlib.blake2b(digest_size=32)
        for text in (self.root, *named, *self.labels):
            digest.update(f"{text}\0".encode("utf-8", "surrogateescape"))
        return f"listing\0{digest.hexdigest()}"


class ListedSource:
    """The images of a listing as a `Source`."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def fingerprint(self) -> bytes:
        """See `Source`; of files sizes and times of last change, of items what they say themselves."""
        digest = hashlib.blake2b(str(self._listing.identity).encode(), digest_size=32)
        if not isinstance(self._listing.images, Items):
            for path in self._listing.images:
                digest.update(f"{_status(os.path.join(self._listing.root, path))}".encode("utf-8", "surrogateescape"))
        return digest.digest()

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`."""
        listing, count = self._listing, len(self._listing.labels)
        found: list[Entry] = []
        with ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="index") as pool:
            for part in pool.map(lambda start: list(self._entries(start)), range(0, count, CHUNK)):
                found += part
                if progress is not None:
                    progress(len(found), count)
        kind = "items" if isinstance(listing.images, Items) else "files"
        return to_scan(listing.what, found, kind=kind, numbered=True)

    def _entries(self, start: int) -> Iterator[Entry]:
        for i, label in enumerate(self._listing.labels[start : start + CHUNK], start):
            entry = self._item(self._listing.images, i) if isinstance(self._listing.images, Items) else self._file(i)
            name = label if isinstance(label, str) else None
            yield entry._replace(label=label if isinstance(label, int) else None, class_name=name)

    def _file(self, i: int) -> Entry:
        assert not isinstance(self._listing.images, Items)
        name = self._listing.images[i]
        path = os.path.join(self._listing.root, name)
        status = _status(path)
        if isinstance(status, str):
            return Entry(StoredImage(name, -1, i, 0), f"cannot be read: {status}")
        image = StoredImage(name, -1, i, status[0])
        try:
            return Entry(image, read_header(path, status[0]))
        except InvalidImageError as error:
            return Entry(image, str(error))

    def _item(self, items: Items, i: int) -> Entry:
        image = StoredImage(items.path(i), -1, i, 0)
        try:
            data = _bytes_of(items, i)
        except UnreadableImage as error:
            return Entry(image, str(error))
        image = image._replace(nbytes=len(data))
        return Entry(image, header_or_reason(lambda n, at: data[at - i : at - i + n], image))


class ItemReader:
    """Reads the items of a listing, see `rsbdali.data.sources.base.Reader`."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def read(self, image: StoredImage) -> bytes:
        """See `Reader`."""
        return _bytes_of(self._items, image.offset)

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """Nothing: the object is asked when an image is needed."""

    def close(self) -> None:
        """Nothing: the object is the user's."""


def listed_reader(listing: Listing) -> FileReader | ItemReader:
    """Reads the images of a listing."""
    return ItemReader(listing.images) if isinstance(listing.images, Items) else FileReader(listing.root)


def _bytes_of(items: Items, i: int) -> bytes:
    """Encoded bytes of item i.

    Raises:
        UnreadableImage: a file or a connection behind it fails. Any other error of the user's object passes as it is.
        DataError: it gives no bytes.
    """
    try:
        data = items.read(i)
    except OSError as error:
        raise UnreadableImage(f"read({i}) fails: {error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise DataError(f"read({i}) gives {type(data).__name__}: expected the encoded image as bytes")
    return bytes(data)


def _status(path: str) -> tuple[int, int] | str:
    """Size and time of last change of a file, or why there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        return getattr(error, "strerror", None) or str(error)
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else "is no regular file"
