"""A data set written again as a folder of seekable images, each under its own name, and where their intervals are.

OUT/train/<class>/<image> …    written again without loss, or copied where that is not possible
OUT/train/rsbdali-intervals.npy
OUT/manifest.json
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rsbdali.atomic import write_atomically
from rsbdali.data.index import ImageIndex
from rsbdali.data.interval_table import FOLDER_NAME, PackedImage, path_key, write_intervals
from rsbdali.data.names import is_image_name
from rsbdali.errors import DataError
from rsbdali.tools.pack_seekable import Seekable, check_seekable, make_seekable

Progress = Callable[[], None]


class FolderRecord(NamedTuple):
    """A split that was written: its images, how many are read in part, and how many of those by whole lines."""

    images: int
    seekable: int
    whole_lines: int


def write_folder(index: ImageIndex, root: Path, workers: int, progress: Progress) -> FolderRecord:
    """Write all images of an index below a folder; those that are there already are only checked.

    Args:
        index: images in class folders.
        root: the folder.
        workers: threads.
        progress: called after each image.

    Raises:
        DataError: images that are not in class folders, one that cannot be read, a folder that cannot be written to.
    """
    targets = {os.fspath(_target(index, i, root)) for i in range(len(index))}  # before any is written
    _refuse_leftovers(root, targets)
    found: list[PackedImage] = []
    whole_lines = 0
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
            try:
                for i, image in enumerate(pool.map(partial(_write, index, root), range(len(index)))):
                    key = path_key(os.fsencode(index.relative_path(i)))
                    found.append(PackedImage(key, len(image.encoded), image.intervals))
                    whole_lines += image.whole_lines
                    progress()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # an error, or Ctrl-C: what is written stays, for the next run
                raise
        write_intervals(root / FOLDER_NAME, found)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be written: {error.strerror}") from error
    return FolderRecord(len(found), sum(image.intervals is not None for image in found), whole_lines)


def _refuse_leftovers(root: Path, targets: set[str]) -> None:
    """Images of an earlier packing that the source no longer has would be read along with the others."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if is_image_name(name) and path not in targets:
                raise DataError(f"{path}: is no image of the source: remove it, or choose an empty folder")


def _target(index: ImageIndex, i: int, root: Path) -> Path:
    path, label = index.relative_path(i), int(index.label_N[i])
    folder = path.partition("/")[0]
    if not index.classes or index.classes[label] != folder or ".." in path.split("/"):
        raise DataError(f"{index.path(i)}: is in no folder of its class: pack into shards (--shards)")
    return root / path


def _write(index: ImageIndex, root: Path, i: int) -> Seekable:
    """Write one image, or check the one that is there."""
    stored, target = index.read_stored(i), _target(index, i, root)
    there = check_seekable(stored, target.read_bytes()) if target.is_file() else None
    if there is not None:
        return there
    image = make_seekable(stored)
    write_atomically(target, lambda file: file.write(image.encoded))
    target.chmod(0o644)
    return image
