"""What the candidates read: the user's images, repeated by links where they are too few to measure with.

`python -m rsbdali.bench.material DATA FOLDER COUNT` makes FOLDER/train of at least COUNT links to the images of DATA,
and FOLDER/val of one link each: something to try a training run on where there is no ImageNet.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rsbdali.data.index import ImageIndex
from rsbdali.data.interval_table import FOLDER_NAME, PackedImage, path_key, write_intervals
from rsbdali.data.splits import open_split
from rsbdali.errors import DataError

BATCHES_AN_EPOCH = 64  # so that the turn of an epoch falls into few of the measured windows


def enough_images(index: ImageIndex, batch_size: int, scratch: Path) -> tuple[Path, int]:
    """A tree with at least 64 batches of images: the index's own, or links to it, each image as often as needed.

    Returns:
        The tree's root, and how many times each image is in it (1: the user's own tree).

    Raises:
        DataError: the images are no folder of files.
    """
    if index.name != str(index.root):
        raise DataError(f"{index.name}: measured are folders of image files, and the peers read nothing else")
    copies = -(-BATCHES_AN_EPOCH * batch_size // len(index))
    if copies <= 1:
        return index.root, 1
    link_tree(index, scratch / "tiled", copies)
    return scratch / "tiled", copies


def link_tree(index: ImageIndex, root: Path, copies: int) -> None:
    """Make a tree of class folders in which every image is there `copies` times, as symbolic links.

    Images that can be read in part can be so there as well.
    """
    packed = []
    for i, name, target in _links(index, copies):
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        if (intervals := index.intervals_of(i)) is not None:
            packed.append(PackedImage(path_key(os.fsencode(name)), int(index.nbytes_N[i]), intervals))
    if packed:
        write_intervals(root / FOLDER_NAME, packed)


def _links(index: ImageIndex, copies: int) -> Iterator[tuple[int, Path, str]]:
    for i in range(len(index)):
        target = os.path.realpath(index.path(i))
        label, suffix = int(index.label_N[i]), Path(target).suffix
        for copy in range(copies):
            yield i, Path(index.classes[label]) / f"{i:07d}_{copy:04d}{suffix}", target


def _main(data: str, folder: str, count: str) -> None:
    index = open_split(data, "any")
    link_tree(index, Path(folder) / "train", -(-int(count) // len(index)))
    link_tree(index, Path(folder) / "val", 1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
