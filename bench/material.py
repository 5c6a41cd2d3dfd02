"""What the contestants read: the user's images, repeated by links where they are too few to measure with."""

import os
from collections.abc import Iterator
from pathlib import Path

from rsbdali.index import ImageIndex

BATCHES_AN_EPOCH = 64  # so that the turn of an epoch falls into few of the measured windows


def enough_images(index: ImageIndex, batch_size: int, scratch: Path) -> tuple[Path, int]:
    """A tree with at least 64 batches of images: the index's own, or links to it, each image as often as needed.

    Returns:
        The tree's root, and how many times each image stands in it (1: the user's own tree).
    """
    copies = -(-BATCHES_AN_EPOCH * batch_size // len(index))
    if copies <= 1:
        return index.root, 1
    root = scratch / "tiled"
    for name, target in _links(index, copies):
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return root, copies


def _links(index: ImageIndex, copies: int) -> Iterator[tuple[Path, str]]:
    for i in range(len(index)):
        target = os.path.realpath(index.path(i))
        label, suffix = int(index.label_N[i]), Path(target).suffix
        for copy in range(copies):
            yield Path(index.classes[label]) / f"{i:07d}_{copy:04d}{suffix}", target
