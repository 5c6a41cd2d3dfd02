"""Training batches: plan → executor → mixed and normalized tensors.

    Planner ──BatchPlan──> Prefetcher ──> executor (graph or host) ──uint8 NHWC──> mix_normalize ──> TrainBatch

A `TrainLoader` yields mix groups: rank r of W owns groups r, r + W, … of every global batch, so one optimizer step
takes `groups_per_step` batches. Prefetching runs across the ends of epochs: nothing stalls there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import default_threads, find_device, to_device
from rsbdali.distributed.shares import own_groups
from rsbdali.distributed.world import World
from rsbdali.errors import counted
from rsbdali.loader.bad_images import BadImages, BadRows
from rsbdali.loader.batch import TrainBatch
from rsbdali.loader.decode_mode import choose_decode, create_executor
from rsbdali.loader.door import Door, NotPicklable
from rsbdali.loader.prefetcher import Prefetcher
from rsbdali.loader.transform import Transform, apply_transform
from rsbdali.ops.erasing import erase
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.sampling import Sampling
from rsbdali.recipe import Recipe


class TrainLoader(NotPicklable):
    """Training batches of one rank, the same for any thread count, and for any world size with the same mix groups.

    Each `iter()` runs one epoch: the one set by `set_epoch` or `seek`, else the one after the last. `len()` counts this
    rank's mix groups, and is equal on all ranks where their number divides the groups; else the first ranks own one
    more of each step's (`groups_per_step`), and a mean over ranks has to be weighted by rows (`training/step.py`).

    Args:
        index: the training images.
        recipe: sizes, augmentation, mixing, global batch.
        rank: this process.
        world_size: number of processes.
        device: where batches are made and delivered; auto: this rank's GPU where there is one, else the CPU.
        decode: where images are decoded (`decode_mode`).
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine, 0 to 1; None: DALI's own, 0.65.
        num_threads: CPU threads; default `default_threads`, a share of the cores.
        dtype: of the images; uint8 leaves them neither mixed nor normalized.
        prefetch: batches in flight.
        chunk: most images that decode=cpu gives DALI at a time, at most 31; None: 31. Changes no pixel.
        on_bad: called once for each image that does not decode, with path and reason.
        max_bad_images: more than this is a `DataError`.
        sampling: how an epoch's images are chosen; its canonical order is the index's. None: shuffled, each once.
        transform: of a batch's pixels, see `loader.transform`.

    Attributes:
        door: threads that share the loader take turns there.
        decode: the mode; where `auto` was asked for, the one chosen.
        pixels: what makes them (`pipelines.executor.Executor`).
        mixup_enabled: False gives the same rows unmixed (λ = 1) from the next batch on.
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
        num_threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        chunk: int | None = None,
        on_bad: Callable[[str, str], None] | None = None,
        max_bad_images: int | None = None,
        sampling: Sampling | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.index, self.recipe, self.dtype, self.transform = index, recipe, dtype, transform
        world = World.of(rank, world_size)
        self.device = find_device(device, world)
        sampling = replace(sampling or Sampling(), canonical_N=index.canonical_N)
        self.planner = Planner(index.width_N, index.height_N, recipe, world_size, sampling)
        self.bad = BadImages(on_bad, limit=max_bad_images)
        self._groups = own_groups(self.planner.groups, world)
        self.door = Door()
        self.mixup_enabled = dtype != torch.uint8
        self._next_epoch, self._next_batch = 0, 0
        self.num_threads = num_threads or default_threads(world)
        self._pool = BufferPool((self.planner.group_rows, *recipe.train_size, 3), dtype)
        self.decode = choose_decode(
            decode, index, recipe, device=self.device, num_threads=self.num_threads, world=world
        )
        open_executor = partial(
            create_executor,
            self.decode,
            index,
            recipe,
            rows=self.planner.group_rows,
            hw_decoder_load=hw_decoder_load,
            device=self.device,
            num_threads=self.num_threads,
            chunk=chunk,
        )
        self._prefetcher: Prefetcher[BatchPlan] = Prefetcher(
            open_executor, make=_BatchPlans(self.planner, self._groups).plan, prefetch_depth=prefetch
        )
        self.pixels = self._prefetcher.pixels
        self._bad_rows = BadRows(index, self.planner, self.bad)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.planner.steps_per_epoch

    @property
    def groups_per_step(self) -> int:
        """Batches (mix groups) that this rank yields for each optimizer step."""
        return len(self._groups)

    @property
    def wait_s(self) -> float:
        """Seconds spent so far waiting for the executor."""
        return self._prefetcher.wait_s

    def __len__(self) -> int:
        return self.steps_per_epoch * self.groups_per_step

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` run this epoch from its start."""
        self.seek(epoch, 0)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next `iter()` start at an optimizer step within an epoch (exact resume)."""
        self.seek_batch(epoch, step * self.groups_per_step)

    def seek_batch(self, epoch: int, batch: int) -> None:
        """As `seek`, by batches (mix groups) of this rank; `batch` = `len(self)` leaves nothing of the epoch."""
        self._next_epoch, self._next_batch = epoch, batch

    def __repr__(self) -> str:
        steps = counted(self.steps_per_epoch, "step")
        start = f"at epoch {self._next_epoch}, batch {self._next_batch}"
        return (
            f"TrainLoader({self.recipe.name} on {self.device}, decode={self.decode}: {self.index!r}, {steps}, {start})"
        )

    def __iter__(self) -> Iterator[TrainBatch]:
        with self.door.entered():
            epoch, batch = self._next_epoch, self._next_batch
            self._next_epoch, self._next_batch = epoch + 1, 0
        first = epoch * len(self)
        return map(self._batch, range(first + batch, first + len(self)))

    def close(self) -> None:
        """Stop the executor's threads."""
        if not self.door.is_forked:
            with self.door.entered():
                self._prefetcher.close()

    def _batch(self, batch_index: int) -> TrainBatch:
        with self.door.entered():
            return self._make(batch_index)

    def _make(self, batch_index: int) -> TrainBatch:
        plan, (images_NHWC, _) = self._bad_rows.replace(*self._prefetcher.get(batch_index), self._prefetcher)
        if not self.mixup_enabled:
            plan = _unmixed(plan)
        label_N = self.index.label_N[plan.sample_N].astype(np.int64)
        return TrainBatch(
            images=self._finish(images_NHWC, plan),
            label_N=to_device(label_N, self.device),
            partner_label_N=to_device(label_N[plan.partner_N], self.device),
            lam_N=to_device(plan.lam_N, self.device),
            epoch=plan.epoch,
            step=plan.step,
            group=plan.group,
            plan=plan,
        )

    def _finish(self, images_NHWC: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        if self.transform is not None:
            images_NHWC = apply_transform(self.transform, images_NHWC, self.planner.transform_seed(plan))
        if self.dtype == torch.uint8:
            return images_NHWC.permute(0, 3, 1, 2)
        mix = plan.partner_N, plan.lam_N, plan.box_N4
        memory = self._memory(len(plan))
        images = mix_normalize(images_NHWC, *mix, self.recipe.mean, self.recipe.std, self.dtype, memory)
        if self.recipe.reprob:
            erase(images, plan.erase_NK4, plan.noise_N, self.recipe.remode)
        return images

    def _memory(self, rows: int) -> torch.Tensor | None:
        """Memory for a batch's images: on the CPU that of a batch which is not held any more, on a GPU torch's own."""
        return None if self.device.type == "cuda" else self._pool.take()[:rows].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _BatchPlans:
    """Which plan comes when; by itself, since a prefetcher that knew its loader would close a circle of references."""

    planner: Planner
    groups: range

    def plan(self, batch_index: int) -> BatchPlan:
        batch, k = divmod(batch_index, len(self.groups))
        return self.planner.group(*divmod(batch, self.planner.steps_per_epoch), self.groups[k])


def _unmixed(plan: BatchPlan) -> BatchPlan:
    rows = len(plan)
    return replace(plan, lam_N=np.ones(rows, np.float32), box_N4=np.zeros((rows, 4), np.int32))
