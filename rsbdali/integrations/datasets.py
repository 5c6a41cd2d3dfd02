"""What a user gives as data, as an `ImageIndex`: a location, an index, or a dataset object (`rsbdali.data.listing`)."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rsbdali.data.index import ImageIndex, index_listing
from rsbdali.data.listing import listing_of
from rsbdali.data.splits import _of_location
from rsbdali.distributed.collectives import on_all_ranks, rank_zero_first
from rsbdali.distributed.devices import as_current
from rsbdali.distributed.world import World


@dataclass(frozen=True, eq=False)
class OpenedData:
    """The images of what a user gave.

    Attributes:
        index: rows in the user's order.
        item_N: int64, the item of a list or dataset that each row is; None where items are the rows of an index.
        items: number of items.
    """

    index: ImageIndex
    item_N: np.ndarray | None
    items: int


def open_index(data: Any, *, is_training: bool, world: World, device: torch.device) -> OpenedData:
    """The images of `data`, the same on all ranks; rank 0 looks first whether they are as in the cache.

    Args:
        data: an `ImageIndex`; a folder or URL with train/ and val/ (or shards of these names), of which it takes one; a
            folder of class folders, or any other location that `ImageIndex.load` reads; or what
            `ImageIndex.from_dataset` takes.
        is_training: which split.
        world: the processes that call this together.
        device: this rank's, by which collectives go.

    Raises:
        DataError: no such data, or a dataset that cannot be translated.
    """
    with as_current(device):
        return _opened(data, is_training, world)


def _opened(data: Any, is_training: bool, world: World) -> OpenedData:
    if isinstance(data, str | os.PathLike):
        data = _of_location(os.fspath(data), is_training, world)
    if isinstance(data, ImageIndex):
        return OpenedData(data, None, len(data))
    listed = on_all_ranks(lambda: listing_of(data), world)
    index, item_N = rank_zero_first(lambda first: index_listing(listed, check=first), world)
    count = len(listed.listing.labels if listed.item_M is None else listed.item_M)
    return OpenedData(index, item_N if len(index) < count else None, count)
