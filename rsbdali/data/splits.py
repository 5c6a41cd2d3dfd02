"""Which part of a data folder is the training set and which the validation set, in any form that data comes in."""

import fnmatch
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.location import Location
from rsbdali.data.sources.registry import storage_of
from rsbdali.distributed.collectives import on_all_ranks, rank_zero_first
from rsbdali.distributed.world import World
from rsbdali.errors import DataError

Split = Literal["train", "val", "any"]
NAMES = {"train": ("train",), "val": ("val", "validation")}
MOST_LOOKED_AT = 100  # folders below the one that was given
# in this order; * matches numbers of shards, {} for the split's name
FORMS = (
    "{}.tar",
    "{}-*.tar",
    "{}_*.tar",
    "*-{}-*.tar",
    "*_{}_*.tar",
    "{}.parquet",
    "{}-*.parquet",
    "data/{}.parquet",
    "data/{}-*.parquet",
    "{}.csv",
    "{}.tsv",
)


def open_split(location: str | os.PathLike[str], split: Split, **options: Any) -> ImageIndex:
    """The index of a split of some data: the door for every program that is given a location.

    Args:
        location: folder, shards, table or URL that holds the split.
        split: train, val, or any: the training set where there is one, else all that is there.
        **options: of `ImageIndex.load`.

    Raises:
        DataError: there is no such split, or it cannot be used.
    """
    found = find_images(location) if split == "any" else find_split(location, split)
    return ImageIndex.load(found, **options)


def find_split(data_dir: str | os.PathLike[str], split: str) -> Path:
    """What of DIR is a split: DIR/train for "train"; DIR/val or DIR/validation for "val".

    Where there is no such folder: shards or a table of that name, DIR/train-*.tar, DIR/data/train-*.parquet,
    DIR/train.csv and so on (`FORMS`). DIR may be a URL.

    Returns:
        A path, pattern or URL for `ImageIndex.load`.

    Raises:
        DataError: none of them is there.
    """
    location = Location.parse(data_dir)
    names = NAMES[split]
    if not location.is_url:
        folder = next((name for name in names if os.path.isdir(os.path.join(location.text, name))), None)
        found = folder or _in_files(location, names)
        expected = " or ".join(os.path.join(os.fspath(data_dir), name) for name in names)
        if found is None and not os.path.isdir(location.text):
            raise DataError(f"{os.fspath(data_dir)}: no such folder: expected {expected}/<class>/<image>")
    else:
        folders = storage_of(location).files()[1]
        found = next((name for name in names if name in folders), None) or _in_files(location, names)
        expected = " or ".join(f"{location.text}/{name}" for name in names)
    if found is None:
        raise DataError(
            f"{location.text if location.is_url else os.fspath(data_dir)}: no {split} folder: expected "
            f"{expected}/<class>/<image>{'' if location.is_url else _nearby(location, os.fspath(data_dir), names)}"
        )
    return Path(f"{location.text}/{found}") if location.is_url else Path(data_dir) / found


def _nearby(location: Location, data_dir: str, names: Sequence[str]) -> str:
    """A folder that has the split: below, or above, where a level too many or too few was given."""
    data_dir = data_dir if os.path.isdir(data_dir) else location.text  # file:///data
    below = sorted(entry.path for entry in os.scandir(data_dir) if entry.is_dir())[:MOST_LOOKED_AT]
    above = os.path.normpath(os.path.join(data_dir, ".."))
    for near in (above, os.path.normpath(os.path.join(above, "..")), *below):
        if any(os.path.isdir(os.path.join(near, name)) for name in names):
            return f"; {near} has one: is that the data?"
    return ""


def find_images(data_dir: str | os.PathLike[str]) -> Path:
    """DIR/train (or shards of that name) where there is one, else DIR itself.

    Raises:
        DataError: DIR is no folder.
    """
    location = Location.parse(data_dir)
    if location.pattern is not None or location.is_url:
        return Path(location.text) if location.pattern is not None else _train_or_all(location)
    if not os.path.isdir(location.text):
        raise DataError(f"{os.fspath(data_dir)}: no such folder: expected a folder of images, or one that holds train/")
    data_dir = Path(data_dir)
    if (data_dir / "train").is_dir():
        return data_dir / "train"
    found = _in_files(location, NAMES["train"])
    return data_dir / found if found else data_dir


def find_parts(data_dir: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """The splits that a folder or URL holds, as (name, what `ImageIndex.load` takes); none where it has no splits."""
    location = Location.parse(data_dir)
    if location.pattern is not None:
        return []
    parts = []
    for split in NAMES:
        try:
            parts.append((split, find_split(data_dir, split)))
        except DataError:  # a folder without this split
            continue
    return parts


def load_indexes(
    data_dir: str | os.PathLike[str],
    world: World,
    *,
    class_map: Path | None = None,
    val_labels: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageIndex, ImageIndex]:
    """Indexes of the training and the validation images, labels by the training set's class names.

    Args:
        data_dir: folder or URL that holds both, see `find_split`.
        world: the processes that call this together; rank 0 looks first whether the data is as in the cache.
        class_map: file of class names in label order, instead of the training set's own order.
        val_labels: label file of a flat validation folder.
        progress: called with (done, in all) while images are looked at.

    Raises:
        DataError: a split is missing or cannot be used.
    """
    # both must be there before one is scanned
    on_all_ranks(lambda: [find_split(data_dir, name) for name in ("train", "val")], world)
    train_index = rank_zero_first(
        lambda first: open_split(data_dir, "train", class_map=class_map, check=first, progress=progress), world
    )
    options = {"classes": train_index.classes, "labels": val_labels, "progress": progress}
    return train_index, rank_zero_first(lambda first: open_split(data_dir, "val", check=first, **options), world)


def _train_or_all(location: Location) -> Path:
    try:
        return find_split(location.text, "train")
    except DataError:  # no train folder: the prefix itself holds the images
        return Path(location.text)


def _in_files(location: Location, names: Sequence[str]) -> str | None:
    """The first of `FORMS` that some file fits, relative to DIR."""
    if not location.is_url and not os.path.isdir(location.text):
        return None
    files, folders = storage_of(location).files()
    there = [file.name for file in files]
    if "data" in folders:
        inner, _ = storage_of(Location.parse(location.join("data"))).files()
        there += [f"data/{file.name}" for file in inner]
    for name in names:
        for form in FORMS:
            pattern = form.format(name)
            if any(fnmatch.fnmatch(each, pattern) and each.count("/") == pattern.count("/") for each in there):
                return pattern
    return None


def _load(location: str | os.PathLike[str], world: World, classes: tuple[str, ...] | None = None) -> ImageIndex:
    return rank_zero_first(lambda first: ImageIndex.load(location, classes=classes, check=first), world)


def _of_location(location: str, is_training: bool, world: World) -> ImageIndex:
    parts = dict(find_parts(location))
    if not parts:
        return _load(location, world)
    if is_training or "val" not in parts:
        return _load(find_split(location, "train" if is_training else "val"), world)
    # validation labels count in the order of the training classes, where those are there
    classes = _load(parts["train"], world).classes if "train" in parts else None
    return _load(parts["val"], world, classes)
