"""Parquet files with embedded images, in the layout of ImageNet on the Hugging Face hub.

A column `image` (struct of `bytes` and `path`), a column `label` (int64), class names in the schema's metadata; many
files files of row groups of a hundred rows or so. Here they are listed; `parquet_reader.py` reads them.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rsbdali.data.columns import to_scan
from rsbdali.data.scan import DEFAULT_THREADS, Progress, Scan
from rsbdali.data.sources.base import Found, Place, header_or_reason
from rsbdali.data.sources.storage import BlobFile, FileInfo, Storage
from rsbdali.data.sources.tar import fingerprint_of
from rsbdali.errors import DataError


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading Parquet needs pyarrow: pip install 'rsbdali[parquet]'") from error
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
        """See `Source`; reads every image once, since sizes stand nowhere else; progress counts Parquet files."""
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

    def _list(self, shard: int) -> tuple[list[Found], tuple[str, ...]]:
        """Images of one file, row group by row group, and its class names."""
        import pyarrow

        name = self._files[shard].name
        found: list[Found] = []
        try:
            file = pyarrow_parquet().ParquetFile(BlobFile(self._storage.open(name)))
            self._check(name, file.schema_arrow)
            columns = [c for c in ("image", "label") if c in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                found += _rows(table, shard, len(found), name)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self._what}: {name} cannot be read: {error}") from error
        return found, class_names(file.schema_arrow)

    def _check(self, name: str, schema: Any) -> None:
        import pyarrow

        if "image" not in schema.names or not pyarrow.types.is_struct(schema.field("image").type):
            raise DataError(
                f"{self._what}: {name} has columns {', '.join(schema.names)}: expected image (struct of bytes and "
                "path) and label, as ImageNet on the Hugging Face hub"
            )


def class_names(schema: Any) -> tuple[str, ...]:
    """Class names of the column `label` in a schema's Hugging Face metadata; none where they stand not there."""
    content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = content.get("info", {}).get("features", {}).get("label", {})
    names = feature.get("names") or []
    if isinstance(names, dict):  # older files: {"0": name, ...}
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names)


def _rows(table: Any, shard: int, first: int, name: str) -> list[Found]:
    images = table.column("image").combine_chunks()
    paths = images.field("path").to_pylist() if "path" in [f.name for f in images.type] else [None] * len(images)
    labels = table.column("label").to_pylist() if "label" in table.column_names else [None] * len(images)
    found = []
    for row, (path, label, data) in enumerate(zip(paths, labels, images.field("bytes"), strict=True), first):
        place = Place(path or f"{name}-{row:09d}", shard, row, len(data.as_buffer()) if data.is_valid else 0)
        header = header_or_reason(_reader_of(data.as_buffer(), row), place) if data.is_valid else "no bytes in its row"
        # the hub's test split has -1
        found.append(Found(place, header, None if label is None or label < 0 else int(label)))
    return found


def _reader_of(buffer: Any, row: int) -> Any:
    def pread(count: int, at: int) -> bytes:
        data: bytes = buffer[at - row : at - row + count].to_pybytes()
        return data

    return pread
