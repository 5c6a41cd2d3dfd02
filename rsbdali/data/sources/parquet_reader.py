"""Images out of Parquet files in any order.

Pages are compressed, so one image costs its whole row group. Decoded row groups are kept within a bound of bytes, the
least recently used go first, and those of the plans ahead are read in the background.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from rsbdali.data.sources.base import Place, UnreadableImage
from rsbdali.data.sources.parquet import pyarrow_parquet
from rsbdali.data.sources.storage import BlobFile, Storage

CACHE_BYTES = 1 << 30
READ_THREADS = 4
OPEN_FILES = 256  # below the usual limit of 1024 a process
Group = tuple[int, int]  # file, row group


class _File:
    """An open Parquet file; its lock guards it, since pyarrow's reader is for one thread at a time."""

    def __init__(self, storage: Storage, name: str) -> None:
        import pyarrow

        try:
            self.file = pyarrow_parquet().ParquetFile(BlobFile(storage.open(name)))
        except pyarrow.ArrowException as error:
            raise UnreadableImage(f"{name} cannot be read: {error}") from error
        self.name, self.lock = name, threading.Lock()
        groups = [self.file.metadata.row_group(i) for i in range(self.file.num_row_groups)]
        self.start_G = np.cumsum([0, *(group.num_rows for group in groups)])
        self.nbytes_G = [group.total_byte_size for group in groups]

    def images(self, group: int) -> Any:
        """The encoded images of a row group, a pyarrow array."""
        import pyarrow

        try:
            with self.lock:
                table = self.file.read_row_group(group, columns=["image.bytes"], use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise UnreadableImage(f"{self.name}: row group {group} cannot be read: {error}") from error
        return table.column("image").combine_chunks().field("bytes")


class _Kept(NamedTuple):
    """A row group decoded or under way, and its size."""

    future: "Future[Any]"
    nbytes: int


class ParquetReader:
    """Images by (file, row), see `rsbdali.data.sources.base.Reader`.

    Args:
        storage: where the files are.
        shards: their names.
        cache_bytes: bound of the decoded row groups kept (the latest is kept whatever its size).
    """

    def __init__(self, storage: Storage, shards: Sequence[str], cache_bytes: int = CACHE_BYTES) -> None:
        pyarrow_parquet()
        self._storage, self._shards, self._bound = storage, shards, cache_bytes
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._groups: OrderedDict[Group, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, place: Place) -> bytes:
        """See `Reader`."""
        file, group, row = self._find(place)
        future, is_mine = self._claim(file, group)
        if is_mine:
            self._fill(future, file, group)
        data = future.result()[row].as_py()
        if not isinstance(data, bytes) or len(data) != place.nbytes:
            raise UnreadableImage(f"{self._shards[place.shard]}: row {place.offset} is not what it was when indexed")
        return data

    def fetch_ahead(self, places: Sequence[Place]) -> None:
        """Start on the row groups of these images, as many as half of the bound holds."""
        room = self._bound // 2  # the other half is for what is being read
        try:
            wanted = {group: file for file, group, _ in map(self._find, places)}
            for group, file in wanted.items():
                room -= file.nbytes_G[group[1]]
                if room < 0:
                    return
                future, is_mine = self._claim(file, group)
                if is_mine:
                    self._background().submit(self._fill, future, file, group)
        except UnreadableImage:
            return  # whoever reads the image says so

    def close(self) -> None:
        """See `Reader`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        with self._lock:
            self._groups.clear()
            self._files.clear()
            self._kept_bytes = 0

    def _background(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="rsbdali-parquet")
            return self._pool

    def _find(self, place: Place) -> tuple[_File, Group, int]:
        """The file and row group that hold an image, and its row there."""
        file = self._file(place.shard)
        group = int(np.searchsorted(file.start_G, place.offset, side="right")) - 1
        if group >= len(file.nbytes_G):
            raise UnreadableImage(f"{file.name}: has no row {place.offset} any more")
        return file, (place.shard, group), place.offset - int(file.start_G[group])

    def _file(self, shard: int) -> _File:
        with self._lock:
            found = self._files.get(shard)
            if found is not None:
                self._files.move_to_end(shard)
                return found
        opened = _File(self._storage, self._shards[shard])  # not under the lock: it reads
        with self._lock:
            found = self._files.setdefault(shard, opened)
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return found

    def _claim(self, file: _File, group: Group) -> tuple["Future[Any]", bool]:
        """The row group's future, and whether the caller is the one to fill it."""
        with self._lock:
            kept = self._groups.get(group)
            if kept is not None:
                self._groups.move_to_end(group)
                return kept.future, False
            kept = self._groups[group] = _Kept(Future(), file.nbytes_G[group[1]])
            self._kept_bytes += kept.nbytes
            while self._kept_bytes > self._bound and len(self._groups) > 1:
                self._forget(next(iter(self._groups)))
            return kept.future, True

    def _fill(self, future: "Future[Any]", file: _File, group: Group) -> None:
        try:
            future.set_result(file.images(group[1]))
        except BaseException as error:  # whoever waits for it raises it
            with self._lock:
                kept = self._groups.get(group)
                if kept is not None and kept.future is future:
                    self._forget(group)  # the next reader tries again
            future.set_exception(error)

    def _forget(self, group: Group) -> None:
        self._kept_bytes -= self._groups.pop(group).nbytes
