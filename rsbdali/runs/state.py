"""Everything that a run carries from step to step, and its way into a checkpoint and back.

Random numbers are no part of it: they follow from (seed, epoch, step). So a run goes on exactly where it was saved,
also in the middle of an epoch.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from timm.utils import ModelEmaV3
from torch import nn

from rsbdali.bounded import is_number, shown
from rsbdali.environment import versions
from rsbdali.errors import CheckpointError, counted
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint, resume_rules
from rsbdali.runs.checkpoint import UNREADABLE, load_weights
from rsbdali.runs.checkpoint_record import OURS, Record, read_record

log = logging.getLogger(__name__)

TIMM_VERSION = 2  # of the layout: `epoch` is the last one completed


@dataclass(frozen=True)
class Identity:
    """What a checkpoint has to agree with for a run to go on from it.

    Attributes:
        recipe: the run's settings.
        class_names: in the order of the model's outputs.
        mix_groups: effective number of mix groups G.
        steps_per_epoch: optimizer steps.
        images: number of training images.
        digest: a fingerprint of them (`ImageIndex.digest`); empty to ask nothing of them.
        pixels: what makes their pixels; empty likewise.
        decode: where they are decoded (`loader.decode_mode`).
        hw_decoder_load: see `Record`.
        tuned: the loader's settings as plain values, where they are tuned; only recorded.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    mix_groups: int
    steps_per_epoch: int
    images: int = 0
    digest: str = ""
    pixels: str = ""
    decode: str = ""
    hw_decoder_load: float | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RunState:
    """The moving parts of a run.

    Attributes:
        model: not wrapped.
        optimizer: over its parameters.
        scaler: enabled for float16 alone.
        ema: averaged weights, if the recipe wants them.
        epoch: the epoch that is running, from 0.
        step: steps of it that are done.
        updates: optimizer steps since the run began.
        loss_sum: sum of the finite losses of this epoch's steps so far.
        loss_steps: how many they are.
        seconds: time the run took so far, over all its sessions.
        best_top1: best evaluation so far, per cent.
        best_epoch: its epoch.
        history: file name → top-1 of the best checkpoints.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    best_top1: float | None = None
    best_epoch: int | None = None
    history: dict[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return self.loss_sum / max(1, self.loss_steps)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose figures count: the averaged one where there is one, as in timm."""
        return self.model if self.ema is None else self.ema.module

    def to_checkpoint(self, identity: Identity, metric: float | None) -> dict[str, Any]:
        """Plain containers and tensors under timm's keys, and ours under `rsbdali`."""
        recipe = identity.recipe.to_dict()
        content = {
            "epoch": self.epoch - 1,
            "arch": identity.recipe.model,
            "state_dict": checkpoint.clean(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "version": TIMM_VERSION,
            "args": {**recipe, "num_classes": len(identity.class_names)},
            OURS: self._record(identity).to_dict(),
        }
        if self.scaler.is_enabled():
            content["amp_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            content["state_dict_ema"] = checkpoint.clean(self.ema.module.state_dict())
        if metric is not None:
            content["metric"] = metric
        return content

    def _record(self, identity: Identity) -> Record:
        return Record(
            recipe=identity.recipe.to_dict(),
            versions=versions(),
            class_names=identity.class_names,
            mix_groups=identity.mix_groups,
            steps_per_epoch=identity.steps_per_epoch,
            images=identity.images,
            digest=identity.digest,
            pixels=identity.pixels,
            decode=identity.decode,
            hw_decoder_load=identity.hw_decoder_load,
            tuned=identity.tuned,
            **{name: getattr(self, name) for name in RECORDED},
        )

    def restore(self, content: Mapping[str, Any], identity: Identity, path: Path) -> None:
        """Take a run up where a checkpoint left it.

        Raises:
            CheckpointError: it is of another model, data set or arrangement, damaged, or not written by rsbdali.
        """
        record = _agreed(content, identity, path)
        load_weights(self.model, checkpoint.weights(content, use_ema=False), path)
        _load_optimizer(self.optimizer, content, path)
        scaler = content.get("amp_scaler")
        if self.scaler.is_enabled() and scaler is not None and not (isinstance(scaler, Mapping) and not scaler):
            try:
                self.scaler.load_state_dict(scaler)
            except UNREADABLE as error:
                raise CheckpointError(f"{path}: its amp_scaler is damaged ({shown(error)})") from error
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.weights(content), path)
        for name in RECORDED:
            setattr(self, name, getattr(record, name))
        self.history = dict(record.history)


# what of a run's state is in its record under the same name
RECORDED = tuple(f.name for f in fields(RunState) if f.name in {g.name for g in fields(Record)})


def _agreed(content: Mapping[str, Any], identity: Identity, path: Path) -> Record:
    """The record of a checkpoint once it agrees with this run."""
    record = read_record(content, path)
    if record is None or "optimizer" not in content:
        raise CheckpointError(f"{path} is not of rsbdali train: use --initial-checkpoint to start from its weights")
    if record.class_names != identity.class_names:
        counts = f"{len(record.class_names)} there, {len(identity.class_names)} here"
        raise CheckpointError(f"{path} is of other classes ({counts}): --initial-checkpoint starts from its weights")
    changed = _changes(record, _groups(content["optimizer"], path), identity)
    resume_rules.refuse(changed, record.epoch, record.step, path)
    _compare_images(record, identity, path)
    if record.step and record.steps_per_epoch != identity.steps_per_epoch:
        raise CheckpointError(
            f"{path} is in the middle of an epoch of {counted(record.steps_per_epoch, 'step')}, here an epoch has "
            f"{identity.steps_per_epoch}: the images or the global batch changed"
        )
    if changed:
        log.warning("The run goes on with other settings: %s", resume_rules.describe(changed, record.epoch))
    return record


def _compare_images(record: Record, identity: Identity, path: Path) -> None:
    """Refuse other training images in the middle of an epoch, which would repeat some and skip others; else say it.

    Earlier checkpoints say nothing of them.
    """
    if _differ(record.digest, identity.digest):
        other = f"other images than before: {record.images:,} then, {identity.images:,} now, by path, label and size"
        if 0 < record.step < record.steps_per_epoch:
            raise CheckpointError(
                f"{path} is in the middle of epoch {record.epoch + 1}, and the training set has {other}: give the same "
                "images, or resume from a checkpoint-*.pth.tar, which is the end of an epoch"
            )
        log.warning("The run goes on with a training set of %s", other)
    if _differ(record.pixels, identity.pixels):
        log.warning(
            "Batches are not the same to the bit as before: their pixels come from %s, and came from %s",
            identity.pixels,
            record.pixels,
        )


def _differ(before: str, now: str) -> bool:
    """Whether both are known and differ."""
    return bool(before and now) and before != now


def _groups(optimizer: Any, path: Path) -> list[Mapping[str, Any]]:
    """The optimizer's groups, once they hold the numbers that are read here."""
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    if isinstance(groups, list) and groups and all(map(_is_group, groups)):
        return groups
    raise CheckpointError(f"{path} is damaged: its optimizer has no groups with lr and weight_decay")


def _is_group(group: Any) -> bool:
    if not isinstance(group, Mapping):
        return False
    return all(
        is_number(group.get(key, default)) for key, default in (("lr", None), ("weight_decay", None), ("initial_lr", 0))
    )


def _changes(record: Record, groups: list[Mapping[str, Any]], identity: Identity) -> list[resume_rules.Change]:
    before = {
        **record.recipe,
        "mix_groups": record.mix_groups,  # the effective number: what counts for a run
        # what the optimizer ran with: a run that 0.1.0 resumed with another value recorded that one and kept the old
        "lr": groups[0].get("initial_lr", groups[0]["lr"]),
        "weight_decay": max(group["weight_decay"] for group in groups),
    }
    return resume_rules.changes(before, identity.recipe, mix_groups=identity.mix_groups)


def _load_optimizer(optimizer: torch.optim.Optimizer, content: Mapping[str, Any], path: Path) -> None:
    """Load moments and step counts. Hyperparameters stay as they were built from the recipe.

    What a group has gained since it was built is state: LAMB's step count. The schedule's `initial_lr` is not, it is
    the rate of the earlier recipe.
    """
    built = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(content["optimizer"])
        misfit = _misfit(optimizer)
    except UNREADABLE as error:
        misfit = shown(error)
    if misfit:
        raise CheckpointError(f"{path}: its optimizer state does not fit this run's ({misfit})")
    for group, own in zip(optimizer.param_groups, built, strict=True):
        group.update(own)
        group.pop("initial_lr", None)


def _misfit(optimizer: torch.optim.Optimizer) -> str:
    """What of a loaded state would break a step, or nothing: torch compares neither shapes nor types."""
    for group in optimizer.param_groups:
        if not _is_scalar(group.get("step", 0)):
            return f"a step count is {shown(group['step'])}"
    if len({frozenset(state) for state in optimizer.state.values() if isinstance(state, dict)}) > 1:
        return "some weights have other entries than others"
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(state, dict):
            return "an entry belongs to no weight"
        for name, value in state.items():
            if not (_is_scalar(value) or (_is_dense(value) and name != "step")):
                return f"{shown(name)} is {shown(value)}"
            if name in MOMENTS and (not _is_dense(value) or value.shape != parameter.shape):
                return f"{name} {shown(getattr(value, 'shape', value))} for a weight {shown(parameter.shape)}"
    return ""


MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def _is_dense(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _is_scalar(value: Any) -> bool:
    return value is None or is_number(value) or (_is_dense(value) and value.numel() == 1)
