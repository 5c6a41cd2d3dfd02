"""Datasets of other libraries and plain Python as a `Listing`: which images, which labels, how to read their bytes.

Nothing here decodes or calls a dataset's transforms: our pipeline reads the encoded images itself.

    list of (path, label) · (paths, labels) · torchvision ImageFolder · timm ImageDataset · Hugging Face Dataset
    · an object with len(), read(i) and targets · torch's Subset of any of these
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rsbdali.data.names import CLASS_NAMES, LABEL_NAMES
from rsbdali.data.sources.listed import Items, Label, Listing
from rsbdali.data.text import MOST_LABEL
from rsbdali.errors import DataError, counted

EXPECTED = (
    "expected a location, an ImageIndex, a list of (path, label), a tuple (paths, labels), torchvision's ImageFolder, "
    "timm's ImageDataset over a folder, a Hugging Face Dataset, a Subset of one of them, or an object with len(), "
    "read(i) -> bytes and targets"
)
WAYS_OUT = {
    "IterableDataset": "it has no order to draw from: load it without streaming=True, or give its Parquet files",
    "IterableDatasetDict": "it has no order to draw from: load it without streaming=True, or give its Parquet files",
    "DatasetDict": "give one of its splits, as dataset['train']",
    "ConcatDataset": "join the lists of its parts: ImageIndex.from_lists(paths, labels)",
    "ChainDataset": "join the lists of its parts: ImageIndex.from_lists(paths, labels)",
}


class Listed(NamedTuple):
    """A listing, and which of its items are meant (a Subset's); None for all."""

    listing: Listing
    item_M: np.ndarray | None = None


def listing_of(data: Any) -> Listed:
    """What a dataset object lists.

    Raises:
        DataError: nothing that can be translated; the message says what to give instead.
    """
    from torch.utils.data import Subset

    if isinstance(data, Subset):
        return _of_subset(data.dataset, np.asarray(data.indices))
    return Listed(_listing(data))


def _of_subset(dataset: Any, item_M: np.ndarray) -> Listed:
    listing, below = listing_of(dataset)
    count = len(listing.labels if below is None else below)
    if not len(item_M):
        raise DataError("a Subset without images: its list of indices is empty")
    if not np.issubdtype(item_M.dtype, np.integer):
        raise DataError(f"a Subset of {counted(count, 'image')}: its indices are no whole numbers")
    if len(wrong_M := item_M[(item_M < -count) | (item_M >= count)]):
        raise DataError(f"a Subset of {counted(count, 'image')} has the index {wrong_M[0]}, which is none of them")
    item_M = item_M % count
    return Listed(listing, item_M if below is None else below[item_M])


def _listing(data: Any) -> Listing:
    kind = type(data).__name__
    hub = sys.modules.get("datasets")  # whoever has one of its objects has imported it
    if isinstance(data, tuple) and len(data) == 2:
        return files_listing(*data)
    if isinstance(data, list):
        return files_listing(*_columns(data))
    if hub is not None and isinstance(data, hub.Dataset):
        return _of_hub(data)
    if kind in WAYS_OUT:
        raise DataError(f"dataset of type {kind}: {WAYS_OUT[kind]}")
    if callable(getattr(data, "read", None)):
        return _of_object(data)
    return _of_folder_dataset(data)


def files_listing(
    paths: Sequence[str | os.PathLike[str]],
    labels: Sequence[Label] | np.ndarray | None,
    *,
    classes: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Listing:
    """Files by path.

    Args:
        paths: of N files, absolute or relative to `root`.
        labels: N numbers from 0 (-1 or None: unknown) or N class names, a NumPy array or tensor too; None: no labels.
        classes: class names in label order.
        root: folder; None: the current one, and what all paths have in common is taken off.

    Raises:
        DataError: other lengths or types than these.
    """
    names = [_path(path) for path in _sequence("paths", paths)]
    known = [None] * len(names) if labels is None else plain_labels(labels)
    if len(known) != len(names) or not names:
        raise DataError(
            f"{counted(len(names), 'path')} and {counted(len(known), 'label')}: expected one label for each of one or "
            "more paths"
        )
    folder, names = _common_folder(names) if root is None else _below(os.path.abspath(root), names)
    what = f"list of {counted(len(names), 'image')}"
    return Listing(what=what, labels=known, classes=_names(classes), root=folder, images=names)


def plain_labels(labels: Any) -> list[Label]:
    """Labels as plain numbers and names, those that say "unknown" (below 0) as None.

    Raises:
        DataError: one that is neither a whole number nor text.
    """
    values = _sequence("labels", labels.tolist() if hasattr(labels, "tolist") else labels)
    return [_label(value, i) for i, value in enumerate(values)]


def _label(value: Any, i: int) -> Label:
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DataError(f"label {value!r} of image {i}: expected a number from 0, or a class name")
    if value > MOST_LABEL:
        raise DataError(f"label {value} of image {i} is too large: expected at most {MOST_LABEL}")
    return int(value) if value >= 0 else None


def _sequence(what: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise DataError(f"{what} of type {type(values).__name__}: expected a list or an array")
    return values if isinstance(values, list | tuple) else list(values)


def _path(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"path {path!r}: expected text; a list holds (path, label) pairs, a tuple (paths, labels)")
    return os.fspath(path)


def _columns(pairs: list[Any]) -> tuple[list[Any], list[Any]]:
    wrong = next((pair for pair in pairs if not isinstance(pair, tuple | list) or len(pair) != 2), None)
    if wrong is not None:
        raise DataError(f"a list that holds {wrong!r}: expected (path, label) pairs")
    return [path for path, _ in pairs], [label for _, label in pairs]


def _common_folder(names: list[str]) -> tuple[str, list[str]]:
    """The folder that holds all files, and their paths below it."""
    here = os.getcwd()
    paths = [os.path.join(here, name) for name in names]
    # in the order of text all others are between these two, and begin as both do
    folder = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])
    return _below(folder, paths)


def _below(folder: str, names: list[str]) -> tuple[str, list[str]]:
    prefix = folder.rstrip("/") + "/"
    return folder, [name.removeprefix(prefix) for name in names]


def _names(classes: Any) -> tuple[str, ...] | None:
    if classes is None:
        return None
    names = tuple(classes)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DataError("classes: expected names as text, each once, in the order of the labels")
    return names


def _of_object(dataset: Any) -> Listing:
    """An object with len(), read(i) and `targets` or `labels`; `classes`, `path(i)` and `fingerprint` where it has."""
    kind = type(dataset).__name__
    labels = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    if labels is None or not hasattr(dataset, "__len__"):
        raise DataError(f"dataset of type {kind} has read(i), and not len() and targets (a label for each image) too")
    known, count = plain_labels(labels), len(dataset)
    if len(known) != count or not count:
        raise DataError(
            f"dataset of type {kind}: {counted(count, 'image')} and {counted(len(known), 'target')}: "
            "expected one for each"
        )
    fingerprint = getattr(dataset, "fingerprint", None)
    if not isinstance(fingerprint, str | None):
        raise DataError(f"dataset of type {kind}: fingerprint is {type(fingerprint).__name__}: expected text or None")
    items = Items(read=dataset.read, path=getattr(dataset, "path", "{:09d}".format), identity=fingerprint)
    return Listing(what=kind, labels=known, classes=_names(getattr(dataset, "classes", None)), root=kind, images=items)


class _HubImages:
    """The undecoded images of a Hugging Face `Dataset`: columns of {"bytes": …, "path": …}."""

    def __init__(self, dataset: Any, column: str) -> None:
        image = type(dataset.features[column])
        bare = dataset.with_format(None).select_columns([column])
        self._dataset, self._column = bare.cast_column(column, image(decode=False)), column

    def read(self, i: int) -> bytes:
        """Encoded bytes, from the file that the row names where the row holds none."""
        record = self._record(i)
        if record.get("bytes") is not None:
            return bytes(record["bytes"])
        with open(record.get("path") or "", "rb") as file:
            return file.read()

    def path(self, i: int) -> str:
        """The path that came with the image; else its number."""
        return str(self._record(i).get("path") or f"{i:09d}")

    def _record(self, i: int) -> dict[str, Any]:
        return self._dataset[i][self._column] or {}


def _of_hub(dataset: Any) -> Listing:
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if len(images) != 1:
        raise DataError(
            f"a Dataset with columns {', '.join(kinds)}: {len(images)} of them are images: expected one, so use "
            + ("remove_columns" if images else "cast_column('…', datasets.Image())")
        )
    column = _label_column(dataset, kinds)
    items = _HubImages(dataset, images[0])
    return Listing(
        what="Dataset",
        labels=plain_labels(list(dataset.with_format(None)[column])),
        classes=_names(getattr(dataset.features[column], "names", None)),
        root="Dataset",
        images=Items(read=items.read, path=items.path, identity=str(dataset._fingerprint)),
    )


def _label_column(dataset: Any, kinds: Mapping[str, str]) -> str:
    of_classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    found = of_classes or [name for name in (*LABEL_NAMES, *CLASS_NAMES) if kinds.get(name) == "Value"][:1]
    if len(found) != 1:
        raise DataError(
            f"a Dataset with columns {', '.join(kinds)}: {len(found) or 'none'} of them are labels: expected one, a "
            f"ClassLabel or a column named {LABEL_NAMES[0]}: use " + ("remove_columns" if found else "rename_column")
        )
    return found[0]


def _of_folder_dataset(dataset: Any) -> Listing:
    """Files and class numbers of torchvision's `ImageFolder`, and of timm's `ImageDataset` over a folder."""
    samples, class_to_idx, root = _folder_samples(dataset)
    if getattr(dataset, "target_transform", None) is not None:
        raise DataError("dataset.target_transform cannot be honored: labels are class numbers here")
    names = sorted(class_to_idx, key=class_to_idx.__getitem__)
    if [class_to_idx[name] for name in names] != list(range(len(names))):
        raise DataError(f"{root}: the dataset's class map has gaps or names a class twice: one name a number is needed")
    if any(not 0 <= label < len(names) for _, label in samples):
        raise DataError(f"{root}: the dataset has labels that its class map does not name")
    # by name, so that the order is that of the folder whatever the numbers are
    labels = [names[label] for _, label in samples]
    # these datasets count from the current folder, not from theirs
    paths = [path if os.path.isabs(path) else os.path.abspath(path) for path, _ in samples]
    listing = files_listing(paths, labels, classes=names, root=root)
    return Listing(what=root, labels=listing.labels, classes=listing.classes, root=listing.root, images=listing.images)


def _folder_samples(dataset: Any) -> tuple[Sequence[tuple[str, int]], Mapping[str, int], str]:
    """(path, label) of each image, class numbers, and the folder of a dataset object that we know."""
    from timm.data import ImageDataset
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from torchvision.datasets import ImageFolder

    if isinstance(dataset, ImageFolder):
        wnids = getattr(dataset, "wnids", None)  # torchvision's ImageNet, which names a class by several words
        numbers = dataset.class_to_idx if wnids is None else {name: i for i, name in enumerate(wnids)}
        return dataset.samples, numbers, os.path.abspath(dataset.root)
    if not isinstance(dataset, ImageDataset):
        raise DataError(f"dataset of type {type(dataset).__name__}: {EXPECTED}")
    if not isinstance(dataset.reader, ReaderImageFolder):
        raise DataError(f"timm's {type(dataset.reader).__name__} is not read here, only folders: give the location")
    for name, plain in (("load_bytes", False), ("input_img_mode", "RGB"), ("additional_features", None)):
        if getattr(dataset, name) != plain:
            raise DataError(f"dataset.{name}={getattr(dataset, name)!r} cannot be honored: only {plain!r} is")
    return dataset.reader.samples, dataset.reader.class_to_idx, os.path.abspath(str(dataset.reader.root))
