"""Training batches: plan → executor → mixed and normalized tensors.

    Planner ──BatchPlan──> Prefetcher ──> executor (graph or host) ──uint8 NHWC──> mix_normalize ──> TrainBatch

A `TrainLoader` yields mix groups: rank r of W owns groups r, r + W, … of every global batch, so one optimizer step
takes `groups_per_step` batches. Prefetching runs across the ends of epochs: nothing stalls there.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import default_threads, find_device, to_device
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.loader.bad_images import BadImages, BadRows
from rsbdali.loader.batch import TrainBatch
from rsbdali.loader.door import Door, NotPicklable
from rsbdali.loader.prefetcher import Prefetcher
from rsbdali.ops.backend import missing_compiler
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.augmented import Augmented
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.pipelines.executor import Executor
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.pipelines.train import GraphExecutor
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.recipe import Recipe

EXECUTORS = ("auto", "graph", "host", "dali-exact")
log = logging.getLogger(__name__)


def create_executor(
    name: str,
    index: ImageIndex,
    recipe: Recipe,
    *,
    rows: int,
    device: torch.device,
    num_threads: int,
    chunk: int | None = None,
) -> Executor:
    """The executor by name.

    `host`: threads decode and resize; on a CPU they flip and augment too, on a GPU kernels do. `graph`: DALI decodes
    and resizes, kernels (on a CPU Pillow) flip and augment. `dali-exact`: all in DALI's graph, to compare with.
    `auto`: graph on a GPU, host on a CPU.

    Where Triton cannot compile kernels for a GPU, `host` makes all of a batch on the CPU, and `auto` is `host`.

    Raises:
        RecipeError: no such executor.
        DeviceError: `graph` was asked for on a GPU without kernels.
    """
    if name not in EXECUTORS:
        raise RecipeError(f"executor={name!r}: use one of {', '.join(EXECUTORS)}")
    on_gpu = device.type == "cuda"
    lacking = missing_compiler() if on_gpu else None
    if lacking and name == "graph":
        raise DeviceError(f"executor=graph needs kernels on a GPU, and {lacking}: use executor=host")
    if lacking and name == "auto":
        log.warning("%s, so batches are made on the CPU (executor=host)", lacking)
    if name == "auto":
        name = "graph" if on_gpu and not lacking else "host"
    options: dict[str, Any] = {"rows": rows, "device": device, "num_threads": num_threads}
    if name == "host":
        by_kernels = on_gpu and not lacking
        host = HostExecutor(index, recipe, **options, augment=not by_kernels, chunk=chunk)
        return Augmented(host, device) if by_kernels else host
    graph = GraphExecutor(index, recipe, **options, roi=not on_gpu, augment=name == "dali-exact")
    return graph if name == "dali-exact" else Augmented(graph, device)


class TrainLoader(NotPicklable):
    """Training batches of one rank, the same for any thread count, and for any world size with the same mix groups.

    Each `iter()` runs one epoch: the one set by `set_epoch` or `seek`, else the one after the last. `len()` counts mix
    groups and is constant and equal on all ranks.

    Args:
        index: the training images.
        recipe: sizes, augmentation, mixing, global batch.
        rank: this process.
        world_size: number of processes.
        device: where batches are made and delivered; auto: this rank's GPU where there is one, else the CPU.
        executor: auto, graph or host (`create_executor`).
        num_threads: CPU threads; default `default_threads`, a share of the cores.
        dtype: of the images; uint8 leaves them neither mixed nor normalized.
        prefetch: batches in flight.
        chunk: most images that the host executor gives DALI at a time, at most 31; None: 31. Changes no pixel.
        on_bad: called once for each image that does not decode, with path and reason.
        max_bad_images: more than this is a `DataError`.

    Attributes:
        door: threads that share the loader take turns there.
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
        executor: str = "auto",
        num_threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        chunk: int | None = None,
        on_bad: Callable[[str, str], None] | None = None,
        max_bad_images: int | None = None,
    ) -> None:
        self.index, self.recipe, self.dtype = index, recipe, dtype
        world = World.of(rank, world_size)
        self.device = find_device(device, world)
        self.planner = Planner(index.width_N, index.height_N, recipe, world_size)
        self.bad = BadImages(on_bad, limit=max_bad_images)
        self._groups = range(rank, self.planner.groups, world_size)
        self.door = Door()
        self.mixup_enabled = dtype != torch.uint8
        self._next_epoch, self._next_batch = 0, 0
        self.num_threads = num_threads or default_threads(world)
        self._pool = BufferPool((self.planner.group_rows, *recipe.train_size, 3), dtype)
        open_executor = partial(
            create_executor,
            executor,
            index,
            recipe,
            rows=self.planner.group_rows,
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
        if self.dtype == torch.uint8:
            return images_NHWC.permute(0, 3, 1, 2)
        mix = plan.partner_N, plan.lam_N, plan.box_N4
        return mix_normalize(images_NHWC, *mix, self.recipe.mean, self.recipe.std, self.dtype, self._memory())

    def _memory(self) -> torch.Tensor | None:
        """Memory for a batch's images: on the CPU that of a batch which nobody holds any more, on a GPU torch's own."""
        return None if self.device.type == "cuda" else self._pool.take().permute(0, 3, 1, 2)


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
