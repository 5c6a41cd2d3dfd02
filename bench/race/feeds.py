"""Feeds: what a candidate of the bench is asked for, and how each one is built.

A feed hands out training batches for ever. Every one is built from the same `FeedSpec`: the same files, recipe, batch
and number of CPU threads; how it goes about them is its own affair (`peers/`, `stages.py`).
"""

import dataclasses
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import resolve_device
from rsbdali.loader import TrainLoader
from rsbdali.recipe import Recipe

PREFETCH = 2
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class FeedSpec:
    """One candidate, in plain values that travel to its process as JSON.

    Attributes:
        kind: `rsbdali`, one of `peers.PEERS`, or `stage:<name>` (`stages.STAGES`).
        root: folder of class folders.
        cache_dir: where the index of `root` is cached.
        recipe: `Recipe.to_dict()`; its global batch is one mix group of the bench's batch size.
        batch_size: images a batch.
        workers: CPU threads, or worker processes, that make batches.
        device: `cpu` or `cuda`.
        decode: of our loader (`loader.decode_mode`).
        hw_decoder_load: likewise.
        prefetch: of our loader: batches in flight.
        chunk: of our loader: most images that its host executor gives DALI at a time; None: as it is.
    """

    kind: str
    root: str
    cache_dir: str
    recipe: dict[str, Any]
    batch_size: int
    workers: int
    device: str
    decode: str = "auto"
    hw_decoder_load: float | None = None
    prefetch: int = PREFETCH
    chunk: int | None = None

    def load_recipe(self) -> Recipe:
        """The recipe as an object."""
        return Recipe.from_dict(self.recipe)

    def load_index(self) -> ImageIndex:
        """The index of `root`, from its cache."""
        return ImageIndex.load(Path(self.root), cache_dir=Path(self.cache_dir))

    def as_kind(self, kind: str, **recipe_values: Any) -> "FeedSpec":
        """The same task for another candidate, with some recipe values changed."""
        return dataclasses.replace(self, kind=kind, recipe=self.recipe | recipe_values)


class Feed(Protocol):
    """An endless supply of batches.

    Attributes:
        ready: most batches that it keeps prepared while none is asked for.
        note: what a reader of its figures should know; may be empty.
    """

    ready: int
    note: str

    def deliver(self) -> Sized:
        """The next batch, by its images: a tensor (N, 3, H, W) on the device, but for the first stages."""

    def close(self) -> None:
        """Stop threads and processes."""


class RsbdaliFeed:
    """Our `TrainLoader`, with everything it does in training."""

    def __init__(self, spec: FeedSpec) -> None:
        self.ready, self.note = 2 * spec.prefetch + 1, ""
        self._loader = TrainLoader(
            spec.load_index(),
            spec.load_recipe(),
            device=spec.device,
            decode=spec.decode,
            hw_decoder_load=spec.hw_decoder_load,
            num_threads=spec.workers,
            prefetch=spec.prefetch,
            chunk=spec.chunk,
        )
        self._batches = forever(self._loader)

    def deliver(self) -> torch.Tensor:
        """The next mix group: (N, 3, H, W) float32, mixed and normalized."""
        return next(self._batches).images

    def close(self) -> None:
        """Stop the executor."""
        self._loader.close()


def forever(loader: "Loops[T_co]") -> Iterator[T_co]:
    """Epoch after epoch of a loader."""
    while True:
        yield from loader


class Loops(Protocol[T_co]):
    """Anything that can be iterated again and again."""

    def __iter__(self) -> Iterator[T_co]:
        """One epoch."""


def check_batch(images: Sized, spec: FeedSpec) -> None:
    """Refuse to time a feed whose output is no normalized training batch.

    Raises:
        RuntimeError: shape, device, range or spread are not those of a normalized batch.
    """
    assert isinstance(images, torch.Tensor)
    recipe, wanted = spec.load_recipe(), resolve_device(spec.device)
    shape = (spec.batch_size, 3, *recipe.train_size)
    if tuple(images.shape) != shape or images.device.type != wanted.type:
        raise RuntimeError(f"a batch of {tuple(images.shape)} on {images.device}, expected {shape} on {wanted}")
    values = images.float()
    low = min(-m / s for m, s in zip(recipe.mean, recipe.std, strict=True))
    high = max((1 - m) / s for m, s in zip(recipe.mean, recipe.std, strict=True))
    figures = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
    found = {name: float(value) for name, value in figures.items()}
    slack = 0.05  # float16 and rounding
    inside = low - slack <= found["min"] and found["max"] <= high + slack
    if not (bool(values.isfinite().all()) and inside and abs(found["mean"]) < 1.5 and found["std"] > 0.1):
        raise RuntimeError(f"its batches are not normalized images: {found}")
