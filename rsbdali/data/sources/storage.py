"""Files that hold many images: listed, and read by offset from any thread. Others than local ones: `object_store.py`.

`RangeReader` reads images that are stored in shards unchanged: bytes from an offset on.
"""

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rsbdali.data.sources.base import ByteRange, ReadRequest, StoredImage
from rsbdali.errors import DataError, UnreadableImage

OPEN_FILES = 256  # below the usual limit of 1024 a process


class FileInfo(NamedTuple):
    """A file: name relative to its storage, size in bytes, and something that changes when it is written again."""

    name: str
    size: int
    stamp: str


class Blob(Protocol):
    """Bytes by offset, for any number of threads."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    def pread(self, count: int, at: int) -> bytes:
        """`count` bytes from offset `at`; fewer only at the end.

        Raises:
            UnreadableImage: the file is gone, or cannot be read.
            SourceError: the store does not answer.
        """
        ...


class Storage(Protocol):
    """A folder, or a prefix of an object store."""

    base: str

    def files(self) -> tuple[list[FileInfo], list[str]]:
        """Files directly in it, by name, and the names of its folders.

        Raises:
            DataError: no such folder, or it cannot be listed.
        """
        ...

    def open(self, name: str) -> Blob:
        """A file by its name.

        Raises:
            UnreadableImage: no such file, or it cannot be read.
        """
        ...

    def open_to_list(self, name: str, size: int) -> Blob:
        """A file of known size that will be read from front to end in small pieces."""
        ...


class LocalStorage:
    """A folder of this machine.

    Args:
        base: the folder.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def files(self) -> tuple[list[FileInfo], list[str]]:
        """See `Storage`; hidden files are left out."""
        try:
            with os.scandir(self.base) as entries:
                shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
            folders = [e.name for e in shown if e.is_dir()]
            found = [(e.name, e.stat()) for e in shown if e.is_file()]
        except OSError as error:
            raise DataError(f"{self.base}: folder cannot be listed: {error.strerror}") from error
        return [FileInfo(name, status.st_size, str(status.st_mtime_ns)) for name, status in found], folders

    def open(self, name: str) -> Blob:
        """See `Storage`."""
        return LocalBlob(os.path.join(self.base, name))

    def open_to_list(self, name: str, size: int) -> Blob:
        """See `Storage`; the kernel reads ahead."""
        return self.open(name)


class LocalBlob:
    """An open file; it is closed when the last thread that reads it lets go.

    Args:
        path: the file.

    Raises:
        UnreadableImage: no such file, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # a pipe must not block
        except OSError as error:
            raise UnreadableImage(f"{path}: cannot be read: {error.strerror}") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # not where opening failed
            self._file.close()

    def pread(self, count: int, at: int) -> bytes:
        """See `Blob`."""
        try:
            return os.pread(self._file.fileno(), count, at)
        except OSError as error:
            raise UnreadableImage(f"{self.path}: cannot be read: {error.strerror}") from error


class OpenBlobs:
    """Blobs of a storage by name, the least recently used let go.

    Args:
        storage: opens them.
        most: how many are kept.
    """

    def __init__(self, storage: Storage, most: int = OPEN_FILES) -> None:
        self._storage, self._most = storage, most
        self._open: OrderedDict[str, Blob] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Blob:
        """The open blob."""
        with self._lock:
            blob = self._open.get(name)
            if blob is not None:
                self._open.move_to_end(name)
                return blob
        blob = self._storage.open(name)  # not under the lock: a store may be slow
        with self._lock:
            self._open[name] = blob
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return blob

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._open.clear()


class BlobFile(io.RawIOBase):
    """A blob as a file object, as tarfile and pyarrow want one.

    Args:
        blob: where bytes come from.
        start: first position.
    """

    def __init__(self, blob: Blob, start: int = 0) -> None:
        super().__init__()
        self._blob, self._at = blob, start

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blob.size}[whence]
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from the position on."""
        left = max(0, self._blob.size - self._at)
        data = self._blob.pread(left if size is None or size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data


def fingerprint_of(files: Sequence[FileInfo]) -> bytes:
    """32 bytes that change when a file comes, goes, or changes its name, size or stamp."""
    digest = hashlib.blake2b(digest_size=32)
    for file in files:
        digest.update("\0".join(map(str, (*file, ""))).encode("utf-8", "surrogateescape"))
    return digest.digest()


def joined(parts: Sequence[ByteRange], gap_bytes: int) -> Iterator[list[ByteRange]]:
    """Parts of an image that are read at once: neighbors with at most `gap_bytes` between them."""
    group: list[ByteRange] = []
    for part in parts:
        if group and part.start - (group[-1].start + group[-1].nbytes) > gap_bytes:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


class RangeReader:
    """Images by (shard, offset, length), see `rsbdali.data.sources.base.PartReader`; shard -1: in a file of its own.

    Args:
        storage: where the shards are.
        shards: their names.
        gap_bytes: most bytes between two parts that are read with them rather than skipped.
    """

    def __init__(self, storage: Storage, shards: Sequence[str], gap_bytes: int = 0) -> None:
        self._shards, self._storage, self._blobs, self._gap_bytes = shards, storage, OpenBlobs(storage), gap_bytes

    def read(self, image: StoredImage) -> bytes:
        """See `Reader`."""
        if image.shard < 0:  # an object is read once: nothing to keep open
            name, blob = image.path, self._storage.open(image.path)
        else:
            name = self._shards[image.shard]
            blob = self._blobs.get(name)
        data = blob.pread(image.nbytes, image.offset)
        if len(data) < image.nbytes:
            raise UnreadableImage(f"{name} is cut short: {len(data)} of {image.nbytes} bytes are there")
        return data

    def read_parts(self, image: StoredImage, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        """See `PartReader`."""
        at = 0
        for group in joined(parts, self._gap_bytes):
            first, end = group[0].start, group[-1].start + group[-1].nbytes
            data = self.read(image._replace(offset=image.offset + first, nbytes=end - first))
            for start, count in group:
                out_B[at : at + count] = np.frombuffer(data, np.uint8, count, start - first)
                at += count

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """Nothing: the kernel reads ahead."""

    def close(self) -> None:
        """See `Reader`."""
        self._blobs.clear()
