"""`(images, targets)` pairs of a loader, with what timm's, Lightning's and Accelerate's loops expect of one.

The loader's position is three numbers: epoch, optimizer step, batch within the step. All random numbers follow from
them (`plan.py`), so a state of a few bytes takes up a pass in the middle, exactly.
"""

import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from rsbdali.distributed.devices import to_device
from rsbdali.errors import CheckpointError, RsbdaliError, counted
from rsbdali.loader.batch import EvalBatch, TrainBatch
from rsbdali.loader.door import Door, NotPicklable
from rsbdali.loader.eval import EvalLoader
from rsbdali.loader.train import TrainLoader
from rsbdali.ops.bce import soft_targets

STATE = {"epoch": int, "step": int, "part": int, "parts": int, "mixup_enabled": bool, "identity": dict}
Pair = tuple[torch.Tensor, ...]  # images and targets; with `return_index` the indices too
IMAGES = ("images", "digest")  # of a loader's identity
LATER = ("digest", "sampling")  # which earlier states lack

log = logging.getLogger(__name__)


class EpochSampler:
    """What `loader.sampler.set_epoch(epoch)` calls, as with torch's `DistributedSampler`."""

    def __init__(self, loader: "TupleLoader") -> None:
        self._loader = loader

    def __len__(self) -> int:
        below = self._loader.loader
        if isinstance(below, TrainLoader):  # the last batch of an epoch may be smaller
            return below.planner.rows_per_epoch // below.planner.groups * below.groups_per_step
        return len(self._loader) * self._loader.batch_size

    def set_epoch(self, epoch: int) -> None:
        """As `TupleLoader.set_epoch`."""
        self._loader.set_epoch(epoch)


class _Pass(Iterator[Pair]):
    """The pairs of one pass; threads that share it take turns, and each pair is given once."""

    def __init__(self, pairs: Iterator[Pair], door: Door) -> None:
        self._pairs, self._door = pairs, door

    def __next__(self) -> Pair:
        with self._door.entered():
            return next(self._pairs)


class TupleLoader(NotPicklable):
    """Pairs of a loader (see `rsbdali.create_loader`); one `iter()` is one epoch, also after an early `break`.

    Args:
        loader: whose batches to give.
        num_classes: None for targets int64 (N,); else C of soft targets float32 (N, C), for mixed images.
        smoothing: label smoothing of the soft targets.
        channels_last: memory format of the images; False costs a copy.
        dataset: what `dataset` gives; None for the loader's index.
        return_index: give triples: also int64 (N,), which images the rows are, on the loader's device.
        item_N: int64, what an image's index is for each row of the `ImageIndex`; None: the row.

    Attributes:
        loader: the `TrainLoader` or `EvalLoader` below.
        dataset: what the loader was made of.
        batch_sampler: None; Lightning looks for it where there is a `sampler`.
    """

    batch_sampler = None

    def __init__(
        self,
        loader: TrainLoader | EvalLoader,
        *,
        num_classes: int | None = None,
        smoothing: float = 0.0,
        channels_last: bool = True,
        dataset: Any = None,
        return_index: bool = False,
        item_N: np.ndarray | None = None,
    ) -> None:
        self.loader, self.num_classes, self.smoothing = loader, num_classes, smoothing
        self.channels_last, self.return_index, self._item_N = channels_last, return_index, item_N
        self.dataset = loader.index if dataset is None else dataset
        self._at = self._next = 0, 0  # (epoch, batch) that comes next in the running pass; that the next pass begins at
        self._loaded, self._closed = False, False

    def __len__(self) -> int:
        return len(self.loader)

    def __repr__(self) -> str:
        kind = "training" if isinstance(self.loader, TrainLoader) else "evaluation"
        epoch, batch = self._at
        return (
            f"TupleLoader({kind} on {self.loader.device}: {self.loader.index!r}, "
            f"{counted(len(self), 'batch', 'batches')} of {self.batch_size}, at epoch {epoch}, batch {batch})"
        )

    @property
    def batch_size(self) -> int:
        """Rows of a whole batch."""
        return self.loader.planner.group_rows if isinstance(self.loader, TrainLoader) else self.loader.batch_size

    @property
    def sampler(self) -> EpochSampler:
        """Something with `set_epoch`."""
        return EpochSampler(self)  # not kept: a circle of references would put the end of dropped threads off

    @property
    def batches_per_step(self) -> int:
        """Batches for each optimizer step: 1, unless a recipe without `batch_size` has more mix groups than ranks."""
        return self.loader.groups_per_step if isinstance(self.loader, TrainLoader) else 1

    @property
    def mixup_enabled(self) -> bool:
        """Whether images are mixed; can be set for a loader that mixes, and counts from the next batch on."""
        return self._mixes and isinstance(self.loader, TrainLoader) and self.loader.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if self._mixes and isinstance(self.loader, TrainLoader):
            self.loader.mixup_enabled = enabled

    @property
    def _mixes(self) -> bool:
        return self.num_classes is not None and (self.loader.recipe.mixup > 0 or self.loader.recipe.cutmix > 0)

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` run this epoch: from its start, or from where `load_state_dict` has put it."""
        if not (self._loaded and self._next[0] == epoch):
            self._at = self._next = epoch, 0
            self._loaded = False

    def __iter__(self) -> Iterator[Pair]:
        self._check_open()
        with self.loader.door.entered():
            epoch, batch = self._at = self._next
            self._next, self._loaded = (epoch + 1, 0), False
            self.loader.seek_batch(epoch, batch)
            batches: Iterator[TrainBatch | EvalBatch] = iter(self.loader)
        return _Pass(self._pairs(batches, epoch, batch), self.loader.door)

    def _pairs(self, batches: Iterator[TrainBatch | EvalBatch], epoch: int, batch: int) -> Iterator[Pair]:
        for given in range(batch + 1, len(self) + 1):
            self._check_open()
            made = next(batches)
            self._at = epoch, given
            yield (*self._pair(made), self._index_of(made)) if self.return_index else self._pair(made)
        self._at = epoch + 1, 0

    def _pair(self, batch: TrainBatch | EvalBatch) -> Pair:
        images = batch.images if self.channels_last else batch.images.contiguous()
        if isinstance(batch, EvalBatch) or self.num_classes is None:
            return images, batch.label_N
        labels = batch.label_N, batch.partner_label_N, batch.lam_N
        return images, soft_targets(*labels, num_classes=self.num_classes, smoothing=self.smoothing)

    def _index_of(self, batch: TrainBatch | EvalBatch) -> torch.Tensor:
        sample_N = batch.sample_N if isinstance(batch, EvalBatch) else batch.plan.sample_N
        return to_device(sample_N if self._item_N is None else self._item_N[sample_N], self.loader.device)

    def state_dict(self) -> dict[str, Any]:
        """The position of the pass, in plain values: the same on all ranks, for an equal loader's `load_state_dict`."""
        (epoch, batch), parts = self._at, self.batches_per_step
        position = {"epoch": epoch, "step": batch // parts, "part": batch % parts, "parts": parts}
        facts = {"length": len(self), "pixels": self.loader.pixels, **self._own_order(epoch)}
        return {**position, **facts, "mixup_enabled": self.mixup_enabled, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iter()` go on behind the last batch that was given before `state_dict`.

        A `set_epoch` of the same epoch in between changes nothing, another one starts that epoch from its beginning.
        Between epochs other images are logged, within one refused. Earlier states know only their number.

        Raises:
            CheckpointError: the state is of a loader with other batches, seed or repeats, or within an epoch of other
                images; or it is no such state.
        """
        for name, kind in STATE.items():
            if not isinstance(state.get(name), kind):
                raise CheckpointError(f"the loader's state has no {name}: expected what `state_dict` gave")
        given = state["step"] * state["parts"] + state["part"]
        is_end = given >= state.get("length", len(self))
        is_within = given > 0 and not is_end
        self._compare(state, is_within=is_within)
        order = self._own_order(state["epoch"]).get("order")
        if is_within and order != state.get("order", order):
            raise CheckpointError(
                f"the loader's state is within epoch {state['epoch']}, for which sampler= now gives another order: "
                "its order must follow from the epoch alone"
            )
        parts = self.batches_per_step
        if state["part"] and state["parts"] != parts:
            raise CheckpointError("the loader's state is within an optimizer step of another number of processes")
        self._at = self._next = state["epoch"], len(self) if is_end else state["step"] * parts + state["part"]
        self._loaded, self.mixup_enabled = True, state["mixup_enabled"]

    def _compare(self, state: dict[str, Any], *, is_within: bool) -> None:
        """Refuse a state of a loader that gives images in another order, and log what else is other."""
        mine, theirs = self._identity(), state["identity"]
        if missing := [name for name in mine if name not in theirs and name not in LATER]:
            raise CheckpointError(f"the loader's state has no {missing[0]}: expected what `state_dict` gave")
        changed = [name for name, value in mine.items() if theirs.get(name, value) != value]
        for name in changed:
            if name not in IMAGES:
                raise CheckpointError(f"the loader's state is for {name} {theirs[name]}, this loader has {mine[name]}")
        if changed:
            other = f"other images: {theirs['images']:,} then, {mine['images']:,} now, by path, label and size"
            if is_within:
                raise CheckpointError(
                    f"the loader's state is within an epoch of {other}: give the same, or set_epoch anew"
                )
            log.warning("the loader goes on behind an epoch of %s", other)
        if state.get("pixels", self.loader.pixels) != self.loader.pixels:
            log.warning(
                "batches are not the same to the bit as before: their pixels come from %s, and came from %s",
                self.loader.pixels,
                state["pixels"],
            )

    def _identity(self) -> dict[str, Any]:
        """What decides which image comes when."""
        recipe, images = self.loader.recipe, {"images": len(self.loader.index), "digest": self.loader.index.digest}
        if isinstance(self.loader, EvalLoader):
            return {**images, "batch_size": self.batch_size}
        return {
            **images,
            "global_batch_size": recipe.global_batch_size,
            "mix_groups": self.loader.planner.groups,
            "seed": recipe.seed,
            "aug_repeats": recipe.aug_repeats,
            "aug_repeats_mode": recipe.aug_repeats_mode,
            "sampling": self.loader.planner.sampling.describe(),
        }

    def _own_order(self, epoch: int) -> dict[str, str]:
        """Fingerprint of a user's own order of an epoch, which only the user's function knows."""
        if isinstance(self.loader, EvalLoader) or self.loader.planner.sampling.own_order is None:
            return {}
        return {"order": self.loader.planner.order_digest(epoch)}

    def close(self) -> None:
        """Stop the threads; a second time does nothing. Batches already given stay valid."""
        if not self._closed:
            self._closed = True
            self.loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RsbdaliError("the loader is closed: make a new one")
