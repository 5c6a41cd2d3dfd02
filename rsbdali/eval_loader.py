"""Evaluation batches: every image exactly once, over all ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rsbdali.bad_images import BadImages
from rsbdali.devices import default_threads, resolve_device, to_device
from rsbdali.feed import Feed
from rsbdali.index import ImageIndex
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.eval import EvalExecutor
from rsbdali.pipelines.probe import decodes
from rsbdali.recipe import Recipe


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation images.

    Attributes:
        images: (N, 3, H, W), channels_last, float, normalised. N varies in the last batch and may be 0.
        label_N: int64.
    """

    images: torch.Tensor
    label_N: torch.Tensor


class EvalLoader:
    """Every image exactly once over all ranks; rank r takes images r, r + W and so on.

    `len()` is equal on all ranks; a rank whose images run out yields an empty batch. An image that does not decode is
    named and left out.

    Args:
        index: the evaluation images.
        recipe: test size, crop, interpolation, mean and std.
        rank: this process.
        world_size: number of processes.
        device: where batches are made and delivered.
        batch_size: rows a batch.
        num_threads: CPU threads; default `default_threads()`.
        dtype: of the images.
        prefetch: batches in flight.
        on_bad: called once for each image that does not decode, with path and reason.
    """

    def __init__(
        self,
        index: ImageIndex,
        recipe: Recipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "auto",
        batch_size: int = 256,
        num_threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        on_bad: Callable[[str, str], None] | None = None,
    ) -> None:
        self.index, self.recipe, self.dtype = index, recipe, dtype
        self.device = resolve_device(device)
        self.bad = BadImages(on_bad)
        self._sample_N = np.arange(rank, len(index), world_size)
        self._length = -(-len(index) // (world_size * batch_size))
        self._batch_size = batch_size
        self.num_threads = num_threads or default_threads()
        self._executor = EvalExecutor(
            index, recipe, rows=batch_size, device=self.device, num_threads=self.num_threads, prefetch=prefetch
        )
        self._feed = Feed(self._executor, make=self._plan, rows=np.ndarray.__getitem__, mend=self._mend, depth=prefetch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[EvalBatch]:
        for tick in range(len(self)):
            if len(self._rows(tick)):
                yield self._batch(tick)
            else:
                yield self._empty()

    def close(self) -> None:
        """Stop the executor's threads."""
        self._executor.close()

    def _rows(self, tick: int) -> np.ndarray:
        return self._sample_N[tick * self._batch_size : (tick + 1) * self._batch_size]

    def _plan(self, tick: int) -> np.ndarray | None:
        rows = self._rows(tick)
        return rows if len(rows) else None  # nothing is prefetched past the end

    def _batch(self, tick: int) -> EvalBatch:
        sample_N, images_NHWC = self._feed.get(tick, len)
        if not len(sample_N):
            return self._empty()
        rows = len(sample_N)
        nothing = np.arange(rows), np.ones(rows, np.float32), np.zeros((rows, 4), np.int32)
        images = mix_normalize(images_NHWC, *nothing, self.recipe.mean, self.recipe.std, self.dtype)
        return EvalBatch(images, to_device(self.index.label_N[sample_N].astype(np.int64), self.device))

    def _empty(self) -> EvalBatch:
        images = torch.empty((0, 3, *self.recipe.test_size), dtype=self.dtype, device=self.device)
        return EvalBatch(images, torch.empty(0, dtype=torch.int64, device=self.device))

    def _mend(self, sample_N: np.ndarray, bad_rows: list[int]) -> np.ndarray:
        for row in bad_rows:
            path = self.index.path(int(sample_N[row]))
            reason = decodes(self.index.source_path(int(sample_N[row])))
            self.bad.add(path, reason or "does not decode")
        return np.delete(sample_N, bad_rows)
