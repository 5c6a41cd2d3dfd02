"""Scans kept on disk: one .npz a source, under the XDG cache folder, named by the source's real path or URL.

A cache is used only when its fingerprint equals the tree's as it is now; one that is stale, damaged or of another
version is ignored and replaced. Nothing here is pickled.
"""

import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from rsbdali.atomic import write_atomically
from rsbdali.data.sources.base import COLUMNS, Scan
from rsbdali.errors import DataError

VERSION = 4
log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/rsbdali`, or `~/.cache/rsbdali` (a relative value is ignored, as XDG asks)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "rsbdali"
    except RuntimeError as error:  # a container's user without a name
        raise DataError("there is no home folder to keep the cache in: set HOME or XDG_CACHE_HOME") from error


def cache_file(folder: Path, identity: str) -> Path:
    """Where the scan of a source is kept, by what identifies it (its real path, its URL)."""
    name = hashlib.blake2b(os.fsencode(identity), digest_size=16).hexdigest()
    return folder / "index" / f"{name}.npz"


def read(path: Path, fingerprint: bytes | None) -> Scan | None:
    """The scan in a cache file, or None where there is none to be trusted.

    Args:
        path: the cache file.
        fingerprint: of the tree now; None to take the cache unchecked (another process has just checked it).
    """
    try:
        with path.open("rb") as file:
            return _parse(file, fingerprint)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the index cache %s cannot be used (%s): scanning again", path, error)
        return None


def _parse(file: IO[bytes], fingerprint: bytes | None) -> Scan | None:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("not an archive of arrays")
    if archive["version"].item() != VERSION:
        return None
    if fingerprint is not None and archive["fingerprint"].tobytes() != fingerprint:
        return None
    texts = json.loads(archive["texts"].tobytes())
    bad = tuple((path, reason) for path, reason in texts["bad"])
    # reading an array verifies its checksum
    columns = {name: archive[name] for name in COLUMNS}
    return Scan(
        classes=tuple(texts["classes"]),
        columns=columns,
        bad=bad,
        kind=texts["kind"],
        shards=tuple(texts["shards"]),
        notes=tuple(texts["notes"]),
    )


def write(path: Path, fingerprint: bytes, scan: Scan) -> bool:
    """Write a cache file atomically. A folder that cannot be written to is logged, not fatal.

    Returns:
        Whether the scan is cached now.
    """
    # JSON escapes the surrogates that encode undecodable bytes of file names, and reads them back
    words = {"classes": scan.classes, "bad": scan.bad, "kind": scan.kind, "shards": scan.shards, "notes": scan.notes}
    texts = json.dumps(words).encode()
    head = {"version": np.array(VERSION), "fingerprint": np.frombuffer(fingerprint, np.uint8)}
    columns = {**head, "texts": np.frombuffer(texts, np.uint8), **scan.columns}
    try:
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **columns))
    except OSError as error:
        log.warning("the index cannot be cached in %s (%s): it will be scanned each time", path.parent, error)
        return False
    return True
