"""A walked folder turned into columns: every header read in threads, in canonical order, files that are no image apart.

Canonical order: classes by timm's `natural_key`, then relative path by the same key.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsbdali.data.header import Header, NoImageError, read_header
from rsbdali.data.sources.folder import EXTENSIONS, Tree, natural_key
from rsbdali.errors import DataError

CHUNK = 512  # files that one thread reads in a row
# More threads than cores: on a disk or a network each waits; in a warm cache 1 to 16 take about the same time.
DEFAULT_THREADS = 16
COLUMNS = (
    "label_N", "width_N", "height_N", "nbytes_N", "format_N", "care_N", "path_bytes", "path_end_N", "shard_N",
    "offset_N",
)  # fmt: skip
Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What a source holds, by its own classes; nothing here depends on where it lies.

    Attributes:
        classes: first-level folders that hold image files, in label order; empty for a flat folder, and where labels
            are mere numbers.
        columns: the arrays of `ImageIndex` that COLUMNS names (label_N is -1 throughout for a flat folder).
        bad: (relative path, reason) of files left out.
        kind: the form of the source, see `rsbdali.data.sources.registry`.
        shards: files that hold many images each, relative to the source; none where each image is a file.
    """

    classes: tuple[str, ...]
    columns: dict[str, np.ndarray]
    bad: tuple[tuple[str, str], ...]
    kind: str = "files"
    shards: tuple[str, ...] = ()


def scan_tree(root: Path, tree: Tree, threads: int | None = None, progress: Progress | None = None) -> Scan:
    """Read the header of every file of a tree.

    Args:
        root: the walked folder.
        tree: its image files.
        threads: threads that read headers, 16 by default.
        progress: called as progress(files done, files in all), from the calling thread.

    Raises:
        DataError: no file is named like an image.
    """
    classes, groups = _by_class(root, tree)
    files = [file for group in groups for file in sorted(group, key=lambda file: natural_key(file[0]))]
    label_F = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    if not classes:
        label_F[:] = -1
    headers = _read_headers(root, files, threads or DEFAULT_THREADS, progress)
    found = [(name, header) for (name, _), header in zip(files, headers, strict=True) if isinstance(header, str)]
    return Scan(classes=classes, columns=_columns(files, label_F, headers), bad=(*tree.unreadable, *found))


def _by_class(root: Path, tree: Tree) -> tuple[tuple[str, ...], list[list[tuple[str, int]]]]:
    """Class names in order, and (relative path, size) of the files of each; no names and one group if flat."""
    by_class: dict[str, list[tuple[str, int]]] = {}
    for folder in tree.folders:
        if folder.names:
            paths = (os.path.join(folder.path, name) for name in folder.names)
            by_class.setdefault(folder.path.split(os.sep, 1)[0], []).extend(zip(paths, folder.sizes, strict=True))
    if not by_class:
        raise DataError(f"{root}: no images: expected files named {', '.join(EXTENSIONS)} in class folders")
    loose = by_class.pop("", [])
    if by_class and loose:
        log.warning("%s: %d images beside the class folders are left out", root, len(loose))
    classes = tuple(sorted(by_class, key=natural_key))
    return classes, [by_class[name] for name in classes] or [loose]


def _read_headers(
    root: Path, files: list[tuple[str, int]], threads: int, progress: Progress | None
) -> list[Header | str]:
    """Header of each file, or why there is none, in order."""
    prefix = os.path.join(root, "")

    def read_chunk(start: int) -> list[Header | str]:
        return [_header_or_reason(prefix + name, nbytes) for name, nbytes in files[start : start + CHUNK]]

    headers: list[Header | str] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        for chunk in pool.map(read_chunk, range(0, len(files), CHUNK)):
            headers.extend(chunk)
            if progress is not None:
                progress(len(headers), len(files))
    return headers


def _header_or_reason(path: str, nbytes: int) -> Header | str:
    try:
        return read_header(path, nbytes)
    except NoImageError as error:
        return str(error)


def _columns(files: list[tuple[str, int]], label_F: np.ndarray, headers: list[Header | str]) -> dict[str, np.ndarray]:
    """Columns of the N good ones of F files."""
    kept_N = np.flatnonzero([not isinstance(header, str) for header in headers])
    columns = header_columns(
        [os.fsencode(files[i][0]) for i in kept_N],
        [files[i][1] for i in kept_N],
        label_F[kept_N],
        [header for header in headers if not isinstance(header, str)],
    )
    return columns | {"shard_N": np.empty(0, np.int32), "offset_N": np.empty(0, np.int64)}


def header_columns(
    paths: list[bytes], sizes: list[int], label_N: np.ndarray, headers: list[Header]
) -> dict[str, np.ndarray]:  # fmt: skip
    """Columns that every source has, from its N images in order; `COLUMNS` without the places in shards."""
    header_N4 = np.array(headers, np.int32).reshape(-1, 4)
    return {
        "label_N": label_N,
        "width_N": header_N4[:, 0].copy(),
        "height_N": header_N4[:, 1].copy(),
        "nbytes_N": np.array(sizes, np.int64),
        "format_N": header_N4[:, 2].astype(np.uint8),
        "care_N": header_N4[:, 3].astype(np.uint8),
        "path_bytes": np.frombuffer(b"".join(paths), np.uint8),
        "path_end_N": np.cumsum([len(path) for path in paths], dtype=np.int64),
    }
