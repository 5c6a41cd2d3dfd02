"""Parquet files with embedded images, in the layout of ImageNet on the Hugging Face hub.

A column `image` (struct of `bytes` and `path`), a column `label` (int64), class names in the schema's metadata; many
files of row groups of a hundred rows or so. `ParquetSource` lists them.

`ParquetReader` reads images in any order. Pages are compressed, so one image costs its whole row group. Decoded row
groups are kept within a bound of bytes, the least recently used go first, and those of the plans ahead are read in the
background.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from rsbdali.data.columns import to_scan
from rsbdali.data.names import CLASS_NAMES, LABEL_NAMES
from rsbdali.data.sources.base import DEFAULT_THREADS, Entry, Progress, ReadRequest, Scan, StoredImage, header_or_reason
from rsbdali.data.sources.forks import restarted_in_children
from rsbdali.data.sources.storage import BlobFile, FileInfo, Storage, fingerprint_of
from rsbdali.data.text import LabelError, parse_label
from rsbdali.errors import DataError, UnreadableImage


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


class ParquetSource:
    """Images in Parquet files.

    Args:
        what: the source as the user wrote it, for messages.
        storage: where the files are.
        files: the Parquet files.
    """

    def __init__(self, what: str, storage: Storage, files: Sequence[FileInfo]) -> None:
        self._what, self._storage, self._files = what, storage, files

    def fingerprint(self) -> bytes:
        """See `Source`."""
        return fingerprint_of(self._files)

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`; reads every image once, since sizes are nowhere else; progress counts Parquet files."""
        pyarrow_parquet()
        shards, found = [file.name for file in self._files], []
        names: tuple[str, ...] | None = None
        with ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="index") as pool:
            for done, (images, classes) in enumerate(pool.map(self._list, range(len(shards))), 1):
                if names is not None and classes != names:
                    raise DataError(f"{self._what}: {shards[done - 1]} has other class names than {shards[0]}")
                names = classes
                found += images
                if progress is not None:
                    progress(done, len(shards))
        if not found:
            raise DataError(f"{self._what}: no rows in {len(shards)} Parquet files")
        known = names if names and any(f.label is not None for f in found) else None
        return to_scan(self._what, found, kind="parquet", shards=shards, classes=known)

    def _list(self, shard: int) -> tuple[list[Entry], tuple[str, ...]]:
        """Images of one file, row group by row group, and its class names."""
        import pyarrow

        name = self._files[shard].name
        found: list[Entry] = []
        try:
            file = pyarrow_parquet().ParquetFile(BlobFile(self._storage.open(name)))
            _check(file.schema_arrow)
            columns = [c for c in ("image", "label") if c in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                found += _rows(table, shard, len(found), name)
            return found, class_names(file.schema_arrow)
        except (pyarrow.ArrowException, OSError, DataError) as error:
            raise DataError(f"{self._what}: {name} cannot be read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _check(schema: Any) -> None:
    """Refuse other columns than those of ImageNet on the hub."""
    from pyarrow import types

    struct = schema.field("image").type if "image" in schema.names else None
    parts = {field.name: field.type for field in struct} if struct is not None and types.is_struct(struct) else {}
    content = parts.get("bytes")
    if content is None or not (types.is_binary(content) or types.is_large_binary(content)):
        raise DataError(
            f"has columns {', '.join(schema.names)[:200]}: expected image (struct of bytes and path) and label, as "
            "ImageNet on the Hugging Face hub"
        )
    if "path" in parts and not (types.is_string(parts["path"]) or types.is_large_string(parts["path"])):
        raise DataError("image.path is no text")
    if "label" in schema.names and not _is_label(schema.field("label").type):
        raise DataError(f"column label is {schema.field('label').type}: expected one number or class name an image")
    if "label" not in schema.names and (other := [n for n in (*LABEL_NAMES, *CLASS_NAMES) if n in schema.names]):
        raise DataError(f"has a column {other[0]!r} and none named label: rename it")


def _is_label(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        test(kind)
        for test in (
            types.is_integer,
            types.is_boolean,
            types.is_floating,
            types.is_string,
            types.is_large_string,
            types.is_null,
        )
    )


def class_names(schema: Any) -> tuple[str, ...]:
    """Class names of the column `label` in a schema's Hugging Face metadata; none where they are not there."""
    try:
        feature: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the metadata of the schema is not JSON: {error}") from error
    for key in ("info", "features", "label", "names"):
        feature = feature.get(key) if isinstance(feature, dict) else None
    if isinstance(feature, dict):  # older files: {"0": name, ...}
        if sorted(feature) != sorted(map(str, range(len(feature)))):
            raise DataError(f"class names in the schema's metadata are not numbered 0 to {len(feature) - 1}, each once")
        feature = [feature[str(i)] for i in range(len(feature))]
    names = feature if isinstance(feature, list) else []
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DataError("class names in the schema's metadata are not text, each once")
    return tuple(names)


def _rows(table: Any, shard: int, first: int, name: str) -> list[Entry]:
    images = table.column("image").combine_chunks()
    paths = images.field("path").to_pylist() if "path" in [f.name for f in images.type] else [None] * len(images)
    labels = table.column("label").to_pylist() if "label" in table.column_names else [None] * len(images)
    found = []
    for row, (path, label, data) in enumerate(zip(paths, labels, images.field("bytes"), strict=True), first):
        image = StoredImage(path or f"{name}-{row:09d}", shard, row, len(data.as_buffer()) if data.is_valid else 0)
        header = header_or_reason(_reader_of(data.as_buffer(), row), image) if data.is_valid else "no bytes in its row"
        try:  # the hub's test split has -1
            value = None if label is None else parse_label(str(int(label) if isinstance(label, bool) else label))
        except LabelError as error:
            raise DataError(f"row {row}: {error}") from error
        number, text = (None, value) if isinstance(value, str) else (value, None)
        found.append(Entry(image, header, number, text))
    return found


def _reader_of(buffer: Any, row: int) -> Any:
    def pread(count: int, at: int) -> bytes:
        data: bytes = buffer[at - row : at - row + count].to_pybytes()
        return data

    return pread


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
        self.restart()
        restarted_in_children(self)

    def restart(self) -> None:
        """See `sources.forks`."""
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._groups: OrderedDict[Group, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, image: StoredImage) -> bytes:
        """See `Reader`."""
        file, group, row = self._find(image)
        future, is_mine = self._claim(file, group)
        if is_mine:
            self._fill(future, file, group)
        data = future.result()[row].as_py()
        if not isinstance(data, bytes) or len(data) != image.nbytes:
            raise UnreadableImage(f"{self._shards[image.shard]}: row {image.offset} is not what it was when indexed")
        return data

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """Start on the row groups of these images, as many as half of the bound holds."""
        room = self._bound // 2  # the other half is for what is being read
        try:
            wanted = {group: file for file, group, _ in (self._find(request.image) for request in requests)}
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

    def _find(self, image: StoredImage) -> tuple[_File, Group, int]:
        """The file and row group that hold an image, and its row there."""
        file = self._file(image.shard)
        group = int(np.searchsorted(file.start_G, image.offset, side="right")) - 1
        if group >= len(file.nbytes_G):
            raise UnreadableImage(f"{file.name}: has no row {image.offset} any more")
        return file, (image.shard, group), image.offset - int(file.start_G[group])

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
