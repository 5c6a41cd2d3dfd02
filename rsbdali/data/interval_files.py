"""Where the files of restart intervals of a data set are on this machine; those of an object store are copied here.

    s3://bucket/train-000000.intervals.npy ──> <cache>/intervals/<digest of URL, size and ETag>.npy

The lengths in them stay on the disk and are read where an image needs them (`rsbdali.data.interval_table`). So
the files of a store become files of the cache folder, one for each version.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rsbdali.atomic import write_atomically
from rsbdali.data.cache import default_folder
from rsbdali.data.interval_table import interval_names
from rsbdali.data.sources.base import Scan
from rsbdali.data.sources.location import Location
from rsbdali.data.sources.object_store import RemoteStorage
from rsbdali.data.sources.storage import FileInfo
from rsbdali.errors import UnreadableImage

THREADS = 16  # copies under way at a time
log = logging.getLogger(__name__)


def interval_files(
    location: Location, folder: str, scan: Scan, cache_dir: Path | None = None
) -> Sequence[str | os.PathLike[str] | None]:
    """The file of each shard, or that of the folder; None where a store has none.

    Args:
        location: where the data set is.
        folder: of this machine, where the images or shards are; not used for a store.
        scan: the data set.
        cache_dir: where copies go; None for the default.

    Raises:
        SourceError: the store does not answer.
    """
    names = interval_names(scan)
    if not location.is_url or not names:
        return [os.path.join(folder, name) for name in names]
    storage = RemoteStorage(location.base)
    there = {file.name: file for file in storage.files()[0]}
    copies = (cache_dir or default_folder()) / "intervals"
    with ThreadPoolExecutor(THREADS, thread_name_prefix="index") as pool:
        return list(pool.map(lambda name: _copied(storage, there.get(name), copies), names))


def _copied(storage: RemoteStorage, file: FileInfo | None, copies: Path) -> Path | None:
    """The copy of a store's file; None where there is no file, or no copy can be made: images are read whole then."""
    if file is None:
        return None
    version = "\0".join([storage.base, file.name, str(file.size), file.stamp])
    path = copies / f"{hashlib.blake2b(os.fsencode(version), digest_size=16).hexdigest()}.npy"
    if path.exists():
        return path
    try:
        content = storage.open(file.name, file.size).pread(file.size, 0)
        write_atomically(path, lambda out: out.write(content))
    except (OSError, UnreadableImage) as error:  # the pixels are the same without it
        log.warning("%s/%s cannot be copied (%s): its images are read as a whole", storage.base, file.name, error)
        return None
    return path
