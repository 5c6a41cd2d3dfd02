"""`shuffle`, `drop_last`, `weights` and `sampler` of `create_loader`, as a `Sampling` of the plan.

What a user gives counts the items of the dataset; the plan counts rows of the index, which lacks items that were left
out (files that are no image).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rsbdali.errors import DataError, RecipeError, counted
from rsbdali.integrations.datasets import OpenedData
from rsbdali.plan.sampling import Sampling, class_balanced_weights


class SamplerByEpoch(Protocol):
    """A sampler of torch's kind whose order is a function of the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of this epoch."""

    def __iter__(self) -> Any: ...


Sampler = SamplerByEpoch | Callable[[int], Iterable[int]] | Sequence[int] | np.ndarray
Weights = Sequence[float] | np.ndarray | Literal["balanced"]
TRAINING_ONLY = ("shuffle", "drop_last", "weights", "sampler", "transform", "smoothing")

NO_EPOCH = (
    "has no set_epoch, so its order is no function of the epoch and a resume could not repeat it: give a function "
    "epoch -> indices, weights= for a WeightedRandomSampler, shuffle=False for a SequentialSampler"
)


def refuse_in_evaluation(is_training: bool, **arguments: Any) -> None:
    """Refuse in evaluation what only training has; None, and what evaluation does anyway, pass.

    Raises:
        RecipeError: an argument by its name.
    """
    for name, value in arguments.items():
        if not is_training and value is not None and value is not False and not (name == "smoothing" and value == 0):
            way = (
                "leave it out"
                if name in ("transform", "smoothing")
                else (
                    "each image comes once and in order there: leave it out, or give the images meant as an index "
                    "(ImageIndex.subset)"
                )
            )
            raise RecipeError(f"{name}= cannot be honored in evaluation: {way}")


def sampling_of(
    data: OpenedData,
    *,
    shuffle: bool | None,
    drop_last: bool | None,
    weights: Weights | None,
    sampler: Sampler | None,
    repeats: int,
) -> Sampling:
    """How training chooses an epoch's images.

    Args:
        data: the images, and which items they are.
        shuffle: None: True.
        drop_last: None: True.
        weights: of each item, or "balanced".
        sampler: items of each epoch.
        repeats: augmentations of an image.

    Raises:
        RecipeError: arguments that exclude each other, by name.
        DataError: weights or indices that do not fit the data.
    """
    if sampler is not None and (weights is not None or shuffle is not None):
        raise RecipeError("sampler= says the whole order: leave out weights= and shuffle=")
    if weights is not None and shuffle is False:
        raise RecipeError("weights= draws in random order: leave out shuffle=False")
    if drop_last is False and repeats > 1:
        raise RecipeError("drop_last=False cannot be honored with num_aug_repeats: its epochs are cut to whole batches")
    own = None if sampler is None else OwnOrder(sampler, data)
    return Sampling(
        shuffle=shuffle is not False,
        drop_last=drop_last is not False,
        weight_N=None if weights is None else _weights(weights, data),
        own_order=own,
        own_length=0 if own is None else len(own(0)),
    )


def _weights(weights: Weights, data: OpenedData) -> np.ndarray:
    if isinstance(weights, str):
        if weights != "balanced":
            raise RecipeError(f"weights={weights!r}: expected numbers, or 'balanced'")
        return class_balanced_weights(data.index.label_N)
    weight_I = np.asarray(weights, np.float64)
    if weight_I.shape != (data.items,):
        raise DataError(f"weights= of shape {weight_I.shape}: expected one for each of {counted(data.items, 'image')}")
    weight_N = weight_I if data.item_N is None else weight_I[data.item_N]
    if not np.isfinite(weight_N).all() or (weight_N < 0).any() or not weight_N.any():
        raise DataError("weights=: expected finite numbers from 0, of which one is above 0")
    return weight_N


class OwnOrder:
    """A user's order of the items as rows of the index, epoch by epoch.

    Args:
        sampler: see `Sampler`.
        data: the images, and which items they are.
    """

    def __init__(self, sampler: Sampler, data: OpenedData) -> None:
        if getattr(sampler, "num_replicas", 1) > 1:
            raise RecipeError(
                "sampler= shares the images out over ranks by itself: give the order of all ranks together"
            )
        self._indices = _indices_of(sampler)
        self._items = data.items
        self._row_I = None if data.item_N is None else np.full(data.items, -1)
        if self._row_I is not None:
            self._row_I[data.item_N] = np.arange(len(data.index))

    def __call__(self, epoch: int) -> np.ndarray:
        """Rows of an epoch, int64; items that were left out of the index are passed over."""
        indices = self._indices(epoch)
        item_K = np.asarray(indices if isinstance(indices, np.ndarray | list) else list(indices))
        if item_K.ndim != 1 or not len(item_K) or not np.issubdtype(item_K.dtype, np.integer):
            raise DataError(f"sampler= gives an array of shape {item_K.shape}, {item_K.dtype}: expected whole numbers")
        if item_K.min() < 0 or item_K.max() >= self._items:
            raise DataError(f"sampler= gives image {item_K.max()} of {self._items}: expected numbers from 0")
        if self._row_I is None:
            return item_K.astype(np.int64)
        row_K = self._row_I[item_K]
        return row_K[row_K >= 0]


def _indices_of(sampler: Any) -> Callable[[int], Any]:
    """The sampler as a function of the epoch."""
    if hasattr(sampler, "set_epoch"):

        def iterated(epoch: int) -> list[int]:
            sampler.set_epoch(epoch)
            return list(sampler)

        return iterated
    if callable(sampler):
        return lambda epoch: sampler(epoch)
    if isinstance(sampler, np.ndarray | list | tuple | range):
        fixed = np.asarray(sampler)
        return lambda epoch: fixed
    raise RecipeError(f"sampler= of type {type(sampler).__name__} {NO_EPOCH}")
