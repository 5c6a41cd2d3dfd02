"""Plan → executor → mixed, normalised torch batches: `TrainLoader`, `EvalLoader`, `create_loader`.

    Planner ──BatchPlan──> Feed ──> executor (graph or host) ──uint8 NHWC──> mix_normalize ──> TrainBatch

A `TrainLoader` yields mix groups: rank r of W owns groups r, r + W, … of every global batch, so one optimiser step
takes `groups_per_step` batches. Prefetching runs across the ends of epochs: nothing stalls there.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsbdali.bad_images import BadImages
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.feed import Feed
from rsbdali.index import ImageIndex, find_split
from rsbdali.ops.bce import soft_targets
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.eval import EvalExecutor
from rsbdali.pipelines.executor import Executor
from rsbdali.pipelines.probe import decodes
from rsbdali.plan import BatchPlan, Planner
from rsbdali.recipe import Recipe

EXECUTORS = ("auto", "graph", "host")
MAX_SPARES = 100  # tries to replace one bad image before giving up


@dataclass(frozen=True)
class TrainBatch:
    """One mix group, ready for the model.

    Attributes:
        images: (N, 3, H, W), channels_last, float: mixed and normalised.
        label_N: int64, the row's own class.
        partner_label_N: int64, the class of the row mixed in.
        lam_N: float32, weight of `label_N`; 1 − λ is the partner's.
        epoch: epoch, counted from 0.
        step: optimiser step in the epoch.
        group: mix group within the global batch.
        plan: the plan that made it, images that were replaced included.
    """

    images: torch.Tensor
    label_N: torch.Tensor
    partner_label_N: torch.Tensor
    lam_N: torch.Tensor
    epoch: int
    step: int
    group: int
    plan: BatchPlan


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation images.

    Attributes:
        images: (N, 3, H, W), channels_last, float, normalised. N varies in the last batch and may be 0.
        label_N: int64.
    """

    images: torch.Tensor
    label_N: torch.Tensor


def resolve_device(device: str | torch.device) -> torch.device:
    """`device` as torch has it; 'auto' means the GPU of this process where there is one.

    Raises:
        DeviceError: a GPU was asked for and there is none.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"--device {device}: use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"--device {device}: torch sees no GPU here (rsbdali doctor tells more); try --device cpu")
        return torch.device("cuda", resolved.index if resolved.index is not None else torch.cuda.current_device())
    if resolved.type != "cpu":
        raise DeviceError(f"--device {device}: only cpu and cuda are known here")
    return resolved


def default_threads() -> int:
    """CPU threads this process may use: the cores of its affinity mask, shared among the ranks of the node."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def create_executor(
    name: str, index: ImageIndex, recipe: Recipe, *, rows: int, device: torch.device, num_threads: int, prefetch: int
) -> Executor:
    """The executor by name: `graph` (all in DALI), `host` (CPU only), or `auto` (graph on a GPU, host on a CPU)."""
    if name not in EXECUTORS:
        raise RecipeError(f"executor={name!r}: use one of {', '.join(EXECUTORS)}")
    if name == "auto":
        name = "graph" if device.type == "cuda" else "host"
    if name == "host" and device.type == "cuda":
        raise RecipeError("executor=host makes its batches on the CPU: use --device cpu, or executor graph")
    # imported here: each brings DALI's operators along, and only one is needed
    if name == "host":
        from rsbdali.pipelines.host import HostExecutor as Chosen
    else:
        from rsbdali.pipelines.train import GraphExecutor as Chosen  # type: ignore[assignment]
    return Chosen(index, recipe, rows=rows, device=device, num_threads=num_threads, prefetch=prefetch)


class TrainLoader:
    """Training batches of one rank, the same for any thread count, and for any world size with the same mix groups.

    Each `iter()` runs one epoch: the one set by `set_epoch` or `seek`, else the one after the last. `len()` counts mix
    groups and is constant and equal on all ranks.

    Args:
        index: the training images.
        recipe: sizes, augmentation, mixing, global batch.
        rank: this process.
        world_size: number of processes.
        device: where batches are made and delivered.
        executor: auto, graph or host (`create_executor`).
        num_threads: CPU threads; default `default_threads()`.
        dtype: of the images.
        prefetch: batches in flight.
        on_bad: called once for each image that does not decode, with path and reason.
        max_bad_images: more than this is a `DataError`.
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
        on_bad: Callable[[str, str], None] | None = None,
        max_bad_images: int | None = None,
    ) -> None:
        self.index, self.recipe, self.dtype = index, recipe, dtype
        self.device = resolve_device(device)
        self.planner = Planner(index.width_N, index.height_N, recipe, world_size)
        self.bad = BadImages(on_bad, max_bad_images)
        self._groups = range(rank, self.planner.groups, world_size)
        self._next_epoch, self._next_step = 0, 0
        self.num_threads = num_threads or default_threads()
        self._executor = create_executor(
            executor, index, recipe, rows=self.planner.group_rows, device=self.device,
            num_threads=self.num_threads, prefetch=prefetch,
        )  # fmt: skip
        self._feed = Feed(
            self._executor, make=self._plan, rows=BatchPlan.rows, mend=self._mend, depth=prefetch
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return self.planner.steps_per_epoch

    @property
    def groups_per_step(self) -> int:
        """Batches (mix groups) that this rank yields for each optimiser step."""
        return len(self._groups)

    @property
    def wait_s(self) -> float:
        """Seconds spent so far waiting for the executor."""
        return self._feed.wait_s

    def __len__(self) -> int:
        return self.steps_per_epoch * self.groups_per_step

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` run this epoch from its start."""
        self.seek(epoch, 0)

    def seek(self, epoch: int, step: int) -> None:
        """Let the next `iter()` start at an optimiser step within an epoch (exact resume)."""
        self._next_epoch, self._next_step = epoch, step

    def __iter__(self) -> Iterator[TrainBatch]:
        epoch, step = self._next_epoch, self._next_step
        self._next_epoch, self._next_step = epoch + 1, 0
        first = epoch * len(self)
        return map(self._batch, range(first + step * self.groups_per_step, first + len(self)))

    def close(self) -> None:
        """Stop the executor's threads."""
        self._executor.close()

    def _plan(self, tick: int) -> BatchPlan:
        batch, k = divmod(tick, self.groups_per_step)
        return self.planner.group(*divmod(batch, self.steps_per_epoch), self._groups[k])

    def _batch(self, tick: int) -> TrainBatch:
        plan, images_NHWC = self._feed.get(tick, len)
        images = mix_normalize(
            images_NHWC, plan.partner_N, plan.lam_N, plan.box_N4, self.recipe.mean, self.recipe.std, self.dtype
        )
        label_N = self.index.label_N[plan.sample_N].astype(np.int64)
        return TrainBatch(
            images=images,
            label_N=_to_device(label_N, self.device),
            partner_label_N=_to_device(label_N[plan.partner_N], self.device),
            lam_N=_to_device(plan.lam_N, self.device),
            epoch=plan.epoch,
            step=plan.step,
            group=plan.group,
            plan=plan,
        )

    def _mend(self, plan: BatchPlan, bad_rows: list[int]) -> BatchPlan:
        """Replace bad rows by the seed's spare draws. What is bad depends on the plan alone, so a resume replays it."""
        for row in bad_rows:
            self._note(plan, row)
            plan = self._spare(plan, row)
        return plan

    def _note(self, plan: BatchPlan, row: int) -> None:
        path = self.index.path(int(plan.sample_N[row]))
        reason = decodes(self.index.source_path(int(plan.sample_N[row])))
        self.bad.add(path, reason or "does not decode within its crop")

    def _spare(self, plan: BatchPlan, row: int) -> BatchPlan:
        for attempt in range(MAX_SPARES):
            candidate = self.planner.spare(plan, row, attempt)
            if decodes(self.index.source_path(int(candidate.sample_N[row]))) is None:
                return candidate
            self._note(candidate, row)
        raise RecipeError(f"{MAX_SPARES} images in a row do not decode: is {self.index.root} damaged?")


class EvalLoader:
    """Every image exactly once over all ranks: rank r takes images r, r + W, …

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
        return EvalBatch(images, _to_device(self.index.label_N[sample_N].astype(np.int64), self.device))

    def _empty(self) -> EvalBatch:
        images = torch.empty((0, 3, *self.recipe.test_size), dtype=self.dtype, device=self.device)
        return EvalBatch(images, torch.empty(0, dtype=torch.int64, device=self.device))

    def _mend(self, sample_N: np.ndarray, bad_rows: list[int]) -> np.ndarray:
        for row in bad_rows:
            path = self.index.path(int(sample_N[row]))
            reason = decodes(self.index.source_path(int(sample_N[row])))
            self.bad.add(path, reason or "does not decode")
        return np.delete(sample_N, bad_rows)


def create_loader(
    data: str | Path,
    recipe: str | Recipe = "a3",
    *,
    is_training: bool = True,
    **options: Any,  # noqa: ANN401 - passed on to TrainLoader or EvalLoader, which name and type them
) -> "TupleLoader":
    """A loader for a trainer that already exists: yields `(images, targets)` as timm's `create_loader` with mixup does.

    Args:
        data: folder with `train/<class>/…` and `val/<class>/…`.
        recipe: name, path or `Recipe`.
        is_training: training batches with soft targets (N, C) float32, else evaluation batches with labels (N,) int64.
        **options: of `TrainLoader` or `EvalLoader`.
    """
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    index = ImageIndex.load(find_split(Path(data), "train" if is_training else "val"))
    loader = TrainLoader(index, recipe, **options) if is_training else EvalLoader(index, recipe, **options)
    return TupleLoader(loader, index.num_classes, recipe.smoothing)


class TupleLoader:
    """`(images, targets)` pairs of a loader; see `create_loader`."""

    def __init__(self, loader: TrainLoader | EvalLoader, num_classes: int, smoothing: float) -> None:
        self.loader, self.num_classes, self.smoothing = loader, num_classes, smoothing

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """As `TrainLoader.set_epoch`; evaluation is the same every time."""
        if isinstance(self.loader, TrainLoader):
            self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.loader:
            if isinstance(batch, TrainBatch):
                labels = batch.label_N, batch.partner_label_N, batch.lam_N
                yield batch.images, soft_targets(*labels, num_classes=self.num_classes, smoothing=self.smoothing)
            else:
                yield batch.images, batch.label_N

    def close(self) -> None:
        """Stop the executor's threads."""
        self.loader.close()


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # pinned, so that the copy does not hold the host up
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
