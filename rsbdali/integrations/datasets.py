"""What a user gives as data, as an `ImageIndex`: a location, an index, or a dataset of timm or torchvision.

A dataset object is read for its folder and its class numbers only: our pipeline opens and decodes the files itself.
"""

import os
from collections.abc import Mapping
from typing import Any

from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import _load, _of_location
from rsbdali.distributed.world import World
from rsbdali.errors import DataError


def open_index(data: Any, *, is_training: bool, world: World) -> ImageIndex:
    """The images of `data`, the same on all ranks; rank 0 looks first whether they are as in the cache.

    Args:
        data: an `ImageIndex`; a folder or URL with train/ and val/ (or shards of these names), of which it takes one; a
            folder of class folders, or any other location that `ImageIndex.load` reads; a `timm.data.ImageDataset` or
            a torchvision `ImageFolder`.
        is_training: which split.
        world: the processes that call this together.

    Raises:
        DataError: no such data, or a dataset that is more than a folder of images.
    """
    if isinstance(data, ImageIndex):
        return data
    if isinstance(data, str | os.PathLike):
        return _of_location(os.fspath(data), is_training, world)
    return _of_dataset(data, world)


def _of_dataset(dataset: Any, world: World) -> ImageIndex:
    root, class_to_idx = _folder_of(dataset)
    if getattr(dataset, "target_transform", None) is not None:
        raise DataError("dataset.target_transform cannot be honored: labels are class numbers here")
    names = sorted(class_to_idx, key=class_to_idx.__getitem__)
    if [class_to_idx[name] for name in names] != list(range(len(names))):
        raise DataError(f"{root}: the dataset's class map has gaps or names a class twice: one name a number is needed")
    index = _load(root, world, tuple(names))
    if not len(index) <= len(dataset) <= len(index) + len(index.bad):
        raise DataError(
            f"{root}: the dataset has {len(dataset):,} images and its folder {len(index):,}: a selection of images "
            "cannot be translated, give a folder that holds just them"
        )
    return index


def _folder_of(dataset: Any) -> tuple[str, Mapping[str, int]]:
    """Folder and class numbers of a dataset object that we know."""
    from timm.data import ImageDataset
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from torchvision.datasets import ImageFolder

    if isinstance(dataset, ImageFolder):
        return str(dataset.root), dataset.class_to_idx
    if not isinstance(dataset, ImageDataset):
        raise DataError(
            f"dataset of type {type(dataset).__name__}: expected a folder, an ImageIndex, timm's ImageDataset or "
            "torchvision's ImageFolder"
        )
    if not isinstance(dataset.reader, ReaderImageFolder):
        raise DataError(f"timm's {type(dataset.reader).__name__} is not read here, only folders: give the location")
    for name, plain in (("load_bytes", False), ("input_img_mode", "RGB"), ("additional_features", None)):
        if getattr(dataset, name) != plain:
            raise DataError(f"dataset.{name}={getattr(dataset, name)!r} cannot be honored: only {plain!r} is")
    return str(dataset.reader.root), dataset.reader.class_to_idx
