"""Object stores behind fsspec URLs (`s3://`, `hf://`, `gs://`, …): listed, and read by range, with retries.

Credentials and endpoints are those of the store's own tools; for S3 the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_PROFILE) and ~/.aws.
"""

import errno
import importlib
import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from rsbdali.data.sources.storage import Blob, FileInfo
from rsbdali.errors import DataError, SourceError, UnreadableImage

# Most bytes between two parts of an image that are fetched with them: about as many as come while one more request
# waits for its answer (an estimate: 10 ms, 25 MB/s by each of many connections). Most JPEGs are smaller: one request.
GAP_BYTES = 256 << 10
RETRY_WAITS_S = (0.1, 0.5, 2.0)  # between tries, on top of what the store's own client does
# what changes with an object; blob_id is the hub's
STAMPS = ("ETag", "etag", "blob_id", "LastModified", "mtime", "updated", "created")
PACKAGES = {"s3": "pip install fsspec s3fs", "hf": "pip install huggingface_hub"}
log = logging.getLogger(__name__)
T = TypeVar("T")


@cache
def _transient() -> tuple[type[BaseException], ...]:
    """What a store's client raises where another try may help; not all of it is an OSError."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError:  # a client that is not installed raises nothing
            continue
    return tuple(found)


def retried(what: str, call: Callable[[], T]) -> T:
    """`call()`, tried again where the store does not answer.

    Raises:
        UnreadableImage: there is no such object, or it ends before the range asked for.
        SourceError: access is denied, or no try has worked.
    """
    for wait in (*RETRY_WAITS_S, None):
        try:
            return call()
        except FileNotFoundError as error:
            raise UnreadableImage(f"{what}: no such object") from error
        except PermissionError as error:
            raise SourceError(f"{what}: access denied: {error}") from error
        except _transient() as error:
            if getattr(error, "errno", None) == errno.EINVAL:  # a range beyond the end
                raise UnreadableImage(f"{what}: is shorter than it was: {error}") from error
            if wait is None:
                raise SourceError(f"{what}: the store fails, {len(RETRY_WAITS_S) + 1} tries: {error}") from error
            log.info("%s: %s: trying again in %g s", what, error, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


class RemoteStorage:
    """A prefix of an object store, see `rsbdali.data.sources.storage.Storage`.

    Args:
        base: URL.

    Raises:
        DataError: the package for this kind of URL is missing.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        scheme = base.partition(":")[0]
        try:
            import fsspec

            self._fs, root = fsspec.core.url_to_fs(base)
        except ImportError as error:
            hint = PACKAGES.get(scheme, f"the fsspec package for {scheme}://")
            raise DataError(f"{base}: {error}: needs {hint}") from error
        except ValueError as error:
            raise DataError(f"{base}: {error}") from error
        self._root = root.rstrip("/")

    def files(self) -> tuple[list[FileInfo], list[str]]:
        """See `Storage`."""
        entries = self._list(lambda: self._fs.ls(self._root, detail=True))
        folders = [self._name(e) for e in entries if e["type"] == "directory"]
        return self._infos(entries), sorted(name for name in folders if name)

    def walk(self) -> list[FileInfo]:
        """All objects below the prefix, by name."""
        return self._infos(list(self._list(lambda: self._fs.find(self._root, detail=True)).values()))

    def open(self, name: str, size: int | None = None) -> Blob:
        """See `Storage`; nothing is asked of the store until bytes are read."""
        return RemoteBlob(self._fs, f"{self._root}/{name}", f"{self.base}/{name}", size)

    def open_to_list(self, name: str, size: int) -> Blob:
        """See `Storage`: by blocks, since headers are close together."""
        return BlockBlob(self.open(name, size), LIST_BLOCK_BYTES)

    def _list(self, call: Callable[[], T]) -> T:
        self._fs.invalidate_cache()
        try:
            return retried(self.base, call)
        except UnreadableImage as error:
            raise DataError(f"{self.base}: no such bucket or prefix") from error

    def _name(self, entry: dict[str, Any]) -> str:
        return str(entry["name"]).rstrip("/")[len(self._root) :].lstrip("/")

    def _infos(self, entries: list[dict[str, Any]]) -> list[FileInfo]:
        files = [e for e in entries if e["type"] == "file" and self._name(e)]
        stamps = [next((str(e[key]) for key in STAMPS if e.get(key)), "") for e in files]
        return sorted(FileInfo(self._name(e), int(e["size"]), stamp) for e, stamp in zip(files, stamps, strict=True))


class RemoteBlob:
    """An object, read by range.

    Args:
        fs: fsspec's file system.
        path: the object as `fs` calls it.
        url: as users call it.
        size: its size where it is known.
    """

    def __init__(self, fs: Any, path: str, url: str, size: int | None) -> None:
        self._fs, self._path, self._url, self._size = fs, path, url, size

    @property
    def size(self) -> int:
        """Bytes of the object."""
        if self._size is None:
            self._size = int(retried(self._url, lambda: self._fs.info(self._path))["size"])
        return self._size

    def pread(self, count: int, at: int) -> bytes:
        """See `Blob`."""
        if self._size is not None:
            count = min(count, self._size - at)
        if count <= 0:
            return b""
        data: bytes = retried(self._url, lambda: self._fs.cat_file(self._path, start=at, end=at + count))
        return data


LIST_BLOCK_BYTES = 8 << 20


class BlockBlob:
    """A blob read in large blocks, of which the last few are kept.

    Args:
        blob: the blob; its size is asked for.
        block_bytes: size of a block.
        most: blocks kept.
    """

    def __init__(self, blob: Blob, block_bytes: int, most: int = 2) -> None:
        self._blob, self._block_bytes, self._most = blob, block_bytes, most
        self._blocks: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.size = blob.size

    def pread(self, count: int, at: int) -> bytes:
        """See `Blob`."""
        stop = min(at + count, self.size)
        if stop <= at:
            return b""
        first = at // self._block_bytes
        with self._lock:
            data = b"".join(self._block(i) for i in range(first, -(-stop // self._block_bytes)))
        return data[at - first * self._block_bytes :][: stop - at]

    def _block(self, i: int) -> bytes:
        if i not in self._blocks:
            while len(self._blocks) >= self._most:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[i] = self._blob.pread(self._block_bytes, i * self._block_bytes)
        return self._blocks[i]
