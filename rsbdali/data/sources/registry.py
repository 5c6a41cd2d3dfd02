"""Which form a data set has, and the source and the reader for it.

Forms (`Scan.kind`): "files", a folder of images or a table of them, read by path; "tar"; "parquet"; "objects", images
that are an object each in a store.
"""

import os
from collections.abc import Sequence

from rsbdali.data.names import is_image_name
from rsbdali.data.sources.base import Reader, Scan, Source
from rsbdali.data.sources.folder import FileReader, FolderSource
from rsbdali.data.sources.location import Location
from rsbdali.data.sources.object_store import GAP_BYTES, RemoteStorage
from rsbdali.data.sources.objects import ObjectSource
from rsbdali.data.sources.parquet import ParquetReader, ParquetSource
from rsbdali.data.sources.read_ahead import AheadReader
from rsbdali.data.sources.storage import FileInfo, LocalStorage, RangeReader, Storage
from rsbdali.data.sources.table import TableSource
from rsbdali.data.sources.tar import TarSource
from rsbdali.errors import DataError

TABLES = (".csv", ".tsv")
TAR_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused by name


def storage_of(location: Location) -> Storage:
    """The folder or the prefix that a location is in.

    Raises:
        DataError: a URL for which a package is missing.
    """
    return RemoteStorage(location.base) if location.is_url else LocalStorage(location.base)


def image_root(location: Location, root: str | os.PathLike[str] | None) -> str:
    """The folder that paths of a "files" data set start from."""
    if root is not None and not is_table(location):
        raise DataError(f"{location.text}: an image root is for a table of paths (.csv, .tsv), and this is none")
    return location.base if root is None else os.path.abspath(root)


def is_table(location: Location) -> bool:
    """Whether the location is a table of paths."""
    return location.pattern is not None and location.pattern.lower().endswith(TABLES)


def open_source(location: Location, root: str | os.PathLike[str] | None = None) -> Source:
    """The source at a location.

    Raises:
        DataError: nothing there, or a form that is not known.
    """
    folder = image_root(location, root)
    if is_table(location):
        if location.is_url:
            raise DataError(f"{location.text}: a table of paths is read from local files only")
        return TableSource(location.text, folder)
    if location.pattern is None and not location.is_url and _holds_image_files(location.base):
        return FolderSource(location.base)
    storage = storage_of(location)
    files, folders = storage.files()
    if location.pattern is not None:
        chosen = set(location.choose([file.name for file in files]))
        return _of_files(location, storage, [file for file in files if file.name in chosen])
    if isinstance(storage, RemoteStorage) and (folders or any(is_image_name(file.name) for file in files)):
        return ObjectSource(location.text, storage)
    return _of_files(location, storage, files)


def reader_of(scan: Scan, location: Location, root: str) -> Reader:
    """Reads the images of a scan; files of this machine below `root`."""
    if scan.kind == "files":
        return FileReader(root)
    storage = storage_of(location)
    if scan.kind == "parquet":
        return ParquetReader(storage, scan.shards)
    if location.is_url:
        return AheadReader(RangeReader(storage, scan.shards, GAP_BYTES))
    return RangeReader(storage, scan.shards)


def _holds_image_files(folder: str) -> bool:
    """Whether to walk a local folder for image files; True as well where that cannot work: the walk says why."""
    if not os.path.isdir(folder):
        return True
    try:
        with os.scandir(folder) as entries:
            others = False
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or is_image_name(entry.name):
                    return True
                others = others or _shard_form(entry.name) is not None
    except OSError:
        return True
    return not others


def _shard_form(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(".parquet"):
        return "parquet"
    return "tar" if lower.endswith(TAR_ENDINGS) else None


def _of_files(location: Location, storage: Storage, files: Sequence[FileInfo]) -> Source:
    """A source of shards."""
    shards = [file for file in files if _shard_form(file.name)]
    forms = {_shard_form(file.name) for file in shards}
    if not shards or (location.pattern is not None and len(shards) < len(files)):
        what = f"{files[0].name} is neither" if files and location.pattern is not None else "nothing of that is there"
        raise DataError(f"{location.text}: expected images, .tar or .parquet files, or a .csv: {what}")
    if len(forms) > 1:
        raise DataError(f"{location.text}: holds both .tar and .parquet files: name those meant, as in DIR/train-*.tar")
    if forms == {"parquet"}:
        return ParquetSource(location.text, storage, shards)
    return TarSource(location.text, storage, shards)
