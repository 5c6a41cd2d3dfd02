"""Evaluation batches: every image exactly once, over all ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import default_threads, find_device, to_device
from rsbdali.distributed.world import World
from rsbdali.errors import counted
from rsbdali.loader.bad_images import BadImages
from rsbdali.loader.batch import EvalBatch
from rsbdali.loader.decode_mode import create_eval_executor
from rsbdali.loader.door import Door, NotPicklable
from rsbdali.loader.prefetcher import Prefetcher
from rsbdali.ops.mix import mix_normalize
from rsbdali.recipe import Recipe


class EvalLoader(NotPicklable):
    """Every image exactly once over all ranks; rank r takes images r, r + W and so on.

    `len()` is equal on all ranks; a rank whose images run out yields an empty batch, unless `pad` gives it images of
    the beginning a second time. An image that does not decode is named and left out.

    Args:
        index: the evaluation images.
        recipe: test size, crop, interpolation, mean and std.
        rank: this process.
        world_size: number of processes.
        device: where batches are made and delivered; auto: this rank's GPU where there is one, else the CPU.
        decode: where images are decoded (`decode_mode`); auto: on a GPU where there is one.
        hw_decoder_load: as of `TrainLoader`.
        batch_size: rows a batch.
        num_threads: CPU threads; default `default_threads`, a share of the cores.
        dtype: of the images; uint8 leaves them as they are.
        prefetch: batches in flight.
        on_bad: called once for each image that does not decode, with path and reason.
        pad: give each rank the same number of images, as timm's `OrderedDistributedSampler` does: a few come twice.

    Attributes:
        door: threads that share the loader take turns there.
        pixels: what makes them (`pipelines.executor.Executor`).
    """

    def __init__(
        self,
        index: ImageIndex,
        recipe: Recipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "auto",
        decode: str = "auto",
        hw_decoder_load: float | None = None,
        batch_size: int = 256,
        num_threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        on_bad: Callable[[str, str], None] | None = None,
        pad: bool = False,
    ) -> None:
        self.index, self.recipe, self.dtype = index, recipe, dtype
        world = World.of(rank, world_size)
        self.device = find_device(device, world)
        self.bad = BadImages(on_bad, fate="skipped")
        count = -(-len(index) // world_size) * world_size if pad else len(index)
        self._rows = _Rows(np.arange(rank, count, world_size) % len(index), batch_size)
        self._start = 0
        self.door = Door()
        self._length = -(-len(index) // (world_size * batch_size))
        self.batch_size = batch_size
        self.num_threads = num_threads or default_threads(world)
        open_executor = partial(
            create_eval_executor,
            _eval_mode(decode, self.device),
            index,
            recipe,
            rows=batch_size,
            device=self.device,
            num_threads=self.num_threads,
            hw_decoder_load=hw_decoder_load,
        )
        self._prefetcher: Prefetcher[np.ndarray] = Prefetcher(
            open_executor, make=self._rows.plan, prefetch_depth=prefetch
        )
        self.pixels = self._prefetcher.pixels

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"EvalLoader(on {self.device}: {self.index!r}, {counted(len(self), 'batch', 'batches')})"

    def seek_batch(self, epoch: int, batch: int) -> None:
        """Let the next `iter()` start at a batch; all epochs are the same here."""
        self._start = batch

    def __iter__(self) -> Iterator[EvalBatch]:
        start, self._start = self._start, 0
        return map(self._batch, range(start, len(self)))

    def close(self) -> None:
        """Stop the executor's threads."""
        if not self.door.is_forked:
            with self.door.entered():
                self._prefetcher.close()

    def _batch(self, batch_index: int) -> EvalBatch:
        with self.door.entered():
            return self._make(batch_index)

    def _make(self, batch_index: int) -> EvalBatch:
        if self._rows.plan(batch_index) is None:
            return self._empty()
        sample_N, (images_NHWC, bad) = self._prefetcher.get(batch_index)
        if bad:
            sample_N, images_NHWC = self._without(bad, sample_N, images_NHWC)
        if not len(sample_N):
            return self._empty()
        label_N = self.index.label_N[sample_N].astype(np.int64)
        return EvalBatch(self._finish(images_NHWC), to_device(label_N, self.device), sample_N)

    def _finish(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.uint8:
            return images_NHWC.permute(0, 3, 1, 2)
        rows = len(images_NHWC)
        nothing = np.arange(rows), np.ones(rows, np.float32), np.zeros((rows, 4), np.int32)
        return mix_normalize(images_NHWC, *nothing, self.recipe.mean, self.recipe.std, self.dtype)

    def _empty(self) -> EvalBatch:
        empty_NHWC = torch.empty((0, *self.recipe.test_size, 3), dtype=self.dtype, device=self.device)
        images = empty_NHWC.permute(0, 3, 1, 2)
        label_N = torch.empty(0, dtype=torch.int64, device=self.device)
        return EvalBatch(images, label_N, np.empty(0, np.int64))

    def _without(
        self, bad: dict[int, str], sample_N: np.ndarray, images_NHWC: torch.Tensor
    ) -> tuple[np.ndarray, torch.Tensor]:
        for row, reason in bad.items():
            self.bad.add(self.index.path(int(sample_N[row])), reason)
        kept_N = np.delete(np.arange(len(sample_N)), list(bad))
        return sample_N[kept_N], images_NHWC[kept_N]


@dataclass(frozen=True)
class _Rows:
    """Which images come when; by itself, since a prefetcher that knew its loader would close a circle of references."""

    sample_N: np.ndarray
    batch_size: int

    def plan(self, batch_index: int) -> np.ndarray | None:
        """None past the end, where nothing is prefetched."""
        rows = self.sample_N[batch_index * self.batch_size : (batch_index + 1) * self.batch_size]
        return rows if len(rows) else None


def eval_batch_size(device: torch.device) -> int:
    """Default rows of an evaluation batch."""
    return 256 if device.type == "cuda" else 64


def _eval_mode(decode: str, device: torch.device) -> str:
    if decode != "auto":
        return decode
    return "gpu" if device.type == "cuda" else "cpu"
