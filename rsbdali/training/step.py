"""One optimizer step: forward and backward over this rank's share of a global batch, then the update.

    global batch = G mix groups; a rank owns G/W of them, or one more or less where that is no whole number
    mix group    = one micro-batch, or slices of `micro_batch_size` rows

Gradients add up over micro-batches, each weighted by W times its share of the global batch, and DDP averages them over
the W ranks on a rank's last one: together the gradient of the mean over the global batch, however the groups are shared
out. A rank that is done early waits in DDP's reduction. The host never waits for the GPU here, but for float16's
GradScaler, which has to know whether gradients overflowed; LAMB's kernels see to that on the GPU.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rsbdali.distributed.deferred_all_reduce import DeferredAllReduce
from rsbdali.distributed.shares import most_groups, own_groups
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError, counted
from rsbdali.loader.batch import TrainBatch
from rsbdali.ops.bce import bce_loss, soft_cross_entropy
from rsbdali.recipe import Recipe
from rsbdali.training.model import reseed
from rsbdali.training.nonfinite import UpdateGuard
from rsbdali.training.precision import autocast


class StepResult(NamedTuple):
    """What one step gave, the same on every rank.

    Attributes:
        loss: mean over the global batch.
        scale: GradScaler's scale after the step; 1 without a scaler.
        flags: the ranks' flags, summed.
    """

    loss: float
    scale: float
    flags: tuple[float, ...]


def make_loss(recipe: Recipe) -> Callable[[torch.Tensor, TrainBatch, slice], torch.Tensor]:
    """The recipe's loss as `loss(logits_NC, batch, rows)`: mean over the rows of a slice of a batch, float32."""

    def loss(logits_NC: torch.Tensor, batch: TrainBatch, rows: slice) -> torch.Tensor:
        labels = batch.label_N[rows], batch.partner_label_N[rows], batch.lam_N[rows]
        if recipe.bce_loss:
            return bce_loss(logits_NC, *labels, smoothing=recipe.smoothing, threshold=recipe.bce_target_thresh)
        return soft_cross_entropy(logits_NC, *labels, smoothing=recipe.smoothing)

    return loss


def slices(rows: int, cap: int | None) -> list[slice]:
    """Cut a group into the fewest slices of at most `cap` rows, as even as can be: BatchNorm sees each by itself."""
    parts = -(-rows // min(cap or rows, rows))
    edges = [rows * part // parts for part in range(parts + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


def pass_sizes(recipe: Recipe, world: World) -> list[int]:
    """Rows of each forward pass of a step, cut by `micro_batch_size`, on a rank that owns most mix groups."""
    groups = max(recipe.mix_groups, world.size)
    cut = slices(max(1, recipe.global_batch_size // groups), recipe.micro_batch_size)
    return [part.stop - part.start for part in cut] * most_groups(groups, world.size)


def parallel(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model for this rank: wrapped by DistributedDataParallel where there are several.

    Buffers are not broadcast in each forward pass: every rank keeps its own running statistics of BatchNorm, which
    `dist_bn` brings together at the end of the epoch.
    """
    if world.size == 1:
        return model
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # until torch 2.14
    buffers: dict[str, Any] = {name: False}
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **buffers)


ONE_VALUE = "Expected more than 1 value per channel when training"  # torch's batch norm


class TrainStep:
    """Callable that makes one optimizer step.

    Args:
        model: from `parallel`, on the device; compiled or not.
        optimizer: over its parameters.
        scaler: GradScaler, enabled for float16 alone.
        recipe: loss, `micro_batch_size`, `clip_grad`, seed.
        device: of the model and the batches.
        amp_dtype: of autocast; float32 means none.
        world: the processes.
        ema: averaged weights to update, if any.
        guard: looks at each update before it is made (`--on-nan skip`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        recipe: Recipe,
        *,
        device: torch.device,
        amp_dtype: torch.dtype,
        world: World,
        ema: ModelEmaV3 | None = None,
        guard: UpdateGuard | None = None,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.recipe, self.ema = model, optimizer, scaler, recipe, ema
        self.device, self.amp_dtype, self.world, self.guard = device, amp_dtype, world, guard
        uncompiled = getattr(model, "_orig_mod", model)
        self._ddp = uncompiled if isinstance(uncompiled, DistributedDataParallel) else None
        self._bare: nn.Module = uncompiled if self._ddp is None else self._ddp.module
        self._loss = make_loss(recipe)
        groups = max(recipe.mix_groups, world.size)
        self._rank_rows = len(own_groups(groups, world)) * (recipe.global_batch_size // groups)
        self._reduced = DeferredAllReduce(device, world)

    def __call__(
        self, groups: Iterable[TrainBatch], *, update: int, flags: Callable[[], Iterable[float]] = tuple
    ) -> StepResult | None:
        """One step over the rank's mix groups.

        Args:
            groups: this rank's batches of one global batch, taken one after the other.
            update: number of the optimizer step in the whole run, from 1 (for the averaged weights).
            flags: gives numbers of this rank, at the end of the step, to sum over the ranks along with the loss.

        Returns:
            What the step *before* gave; None at the first.

        Raises:
            DeviceError: out of GPU memory.
            RecipeError: a pass has too few values for batch norm.
        """
        self._clear_gradients()
        if self.guard is not None:
            self.guard.remember()
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        for batch, rows, is_last in self._micro_batches(groups):
            loss += self._micro_step(batch, rows, is_last=is_last)
        if self.guard is None or self.guard.allows(loss):
            self._update(update)
        elif self.scaler.is_enabled():  # its scale goes down
            self.scaler.unscale_(self.optimizer)
            self.scaler.update()
        numbers = torch.stack([loss / self.world.size, self._scale(), *self._on_device(flags())])
        return _step_result(self._reduced.submit(numbers))

    def last_result(self) -> StepResult | None:
        """What the last step gave, waiting for it; None where it was returned already."""
        return _step_result(self._reduced.result())

    def _scale(self) -> torch.Tensor:
        """Rank 0's scale, which is everyone's, and 0 on the others: they are summed. Not read by the host here."""
        share = torch.full((), float(self.world.is_rank_zero), device=self.device)
        # as torch's own optimizers ask: get_scale() would wait
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None
        return share if scale is None else share * scale

    def _on_device(self, flags: Iterable[float]) -> list[torch.Tensor]:
        # filled there by a kernel: a copy from the host would wait for all that is queued
        return [torch.full((), float(flag), dtype=torch.float32, device=self.device) for flag in flags]

    def _micro_batches(self, groups: Iterable[TrainBatch]) -> Iterator[tuple[TrainBatch, slice, bool]]:
        done = 0
        for batch in groups:
            for rows in slices(len(batch.label_N), self.recipe.micro_batch_size):
                done += rows.stop - rows.start
                yield batch, rows, done == self._rank_rows

    def _micro_step(self, batch: TrainBatch, rows: slice, *, is_last: bool) -> torch.Tensor:
        """Add one micro-batch's gradient, and return its part of the loss, weighted as the gradient."""
        reseed(self.recipe.seed, batch.epoch, batch.step, batch.group, rows.start)
        try:
            with self._sync(is_last):
                return self._pass(batch, rows)
        except torch.OutOfMemoryError as error:
            raise DeviceError(_out_of_memory(batch.images[rows])) from error
        except ValueError as error:
            if not str(error).startswith(ONE_VALUE):
                raise
            raise RecipeError(_one_value(batch.images[rows], self.recipe.model)) from error

    def _pass(self, batch: TrainBatch, rows: slice) -> torch.Tensor:
        """Forward and backward over rows of a batch. Returns the loss, weighted by W times their share of all rows."""
        images = batch.images[rows]
        with autocast(self.device, self.amp_dtype):
            logits_NC = self.model(images)
        weight = len(images) * self.world.size / self.recipe.global_batch_size
        loss = self._loss(logits_NC, batch, rows) * weight
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _sync(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if self._ddp is None or is_last else self._ddp.no_sync()

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self, update: int) -> None:
        self._apply()
        if self.ema is not None:
            self.ema.update(self._bare, step=update)

    def _apply(self) -> None:
        """Clip and step."""
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self._bare.parameters(), self.recipe.clip_grad, mode="norm")
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _step_result(numbers: list[float] | None) -> StepResult | None:
    return None if numbers is None else StepResult(numbers[0], numbers[1], tuple(numbers[2:]))


def _one_value(images: torch.Tensor, model: str) -> str:
    rows, _, height, width = images.shape
    return (
        f"batch norm of {model} has one value a channel in a pass of {rows} image of {height} × {width} pixels: raise "
        "global_batch_size, lower mix_groups, or set a micro_batch_size that leaves no single row over"
    )


def _out_of_memory(images: torch.Tensor) -> str:
    rows, _, height, width = images.shape
    return (
        f"out of GPU memory in a pass of {counted(rows, 'image')} of {height} × {width} pixels: "
        f"micro_batch_size={max(1, rows // 2)} halves it (gradients add up, the global batch stays as it is)"
    )
