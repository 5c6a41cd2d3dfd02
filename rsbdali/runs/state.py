"""Everything that a run carries from step to step, and its way into a checkpoint and back.

Random numbers are no part of it: they follow from (seed, epoch, step). So a run goes on exactly where it was saved,
also in the middle of an epoch.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from rsbdali.environment import versions
from rsbdali.errors import CheckpointError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint, resume_rules
from rsbdali.runs.checkpoint import load_weights

log = logging.getLogger(__name__)

TIMM_VERSION = 2  # of the layout: `epoch` is the last one completed
OURS = "rsbdali"


@dataclass(frozen=True)
class Identity:
    """What a checkpoint has to agree with for a run to go on from it.

    Attributes:
        recipe: the run's settings.
        class_names: in the order of the model's outputs.
        mix_groups: effective number of mix groups G.
        steps_per_epoch: optimiser steps.
        images: number of training images.
        digest: a fingerprint of them (`ImageIndex.digest`); empty to ask nothing of them.
        pixels: what makes their pixels; empty likewise.
    """

    recipe: Recipe
    class_names: tuple[str, ...]
    mix_groups: int
    steps_per_epoch: int
    images: int = 0
    digest: str = ""
    pixels: str = ""


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
        updates: optimiser steps since the run began.
        loss_sum: sum of the finite losses of this epoch's steps so far.
        loss_steps: how many they are.
        seconds: time the run took so far, over all its sittings.
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
            OURS: {
                "recipe": recipe,
                "versions": versions(),
                "position": {"epoch": self.epoch, "step": self.step},
                "class_names": list(identity.class_names),
                "mix_groups": identity.mix_groups,
                "steps_per_epoch": identity.steps_per_epoch,
                "data": {"images": identity.images, "digest": identity.digest},
                "pixels": identity.pixels,
                "updates": self.updates,
                "loss_sum": self.loss_sum,
                "loss_steps": self.loss_steps,
                "seconds": self.seconds,
                "best": {"top1": self.best_top1, "epoch": self.best_epoch},
                "history": dict(self.history),
            },
        }
        if self.scaler.is_enabled():
            content["amp_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            content["state_dict_ema"] = checkpoint.clean(self.ema.module.state_dict())
        if metric is not None:
            content["metric"] = metric
        return content

    def restore(self, content: Mapping[str, Any], identity: Identity, path: Path) -> None:
        """Take a run up where a checkpoint left it.

        Raises:
            CheckpointError: it is of another model, data set or arrangement, or was not written by rsbdali.
        """
        ours = _agreed(content, identity, path)
        load_weights(self.model, checkpoint.weights(content, use_ema=False), path)
        _load_optimizer(self.optimizer, content, path)
        if self.scaler.is_enabled() and content.get("amp_scaler"):
            self.scaler.load_state_dict(content["amp_scaler"])
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.weights(content), path)
        self.epoch, self.step = ours["position"]["epoch"], ours["position"]["step"]
        self.updates, self.seconds = ours["updates"], ours["seconds"]
        self.loss_sum, self.loss_steps = ours["loss_sum"], ours["loss_steps"]
        self.best_top1, self.best_epoch = ours["best"]["top1"], ours["best"]["epoch"]
        self.history = dict(ours["history"])


def ours_in(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What rsbdali recorded in a checkpoint, None in one of another program."""
    found = content.get(OURS)
    return found if isinstance(found, Mapping) else None


def _agreed(content: Mapping[str, Any], identity: Identity, path: Path) -> Mapping[str, Any]:
    """Our part of a checkpoint once it agrees with this run."""
    ours = ours_in(content)
    if ours is None or "optimizer" not in content:
        raise CheckpointError(f"{path} is not of rsbdali train: use --initial-checkpoint to start from its weights")
    if tuple(ours["class_names"]) != identity.class_names:
        counts = f"{len(ours['class_names'])} there, {len(identity.class_names)} here"
        raise CheckpointError(f"{path} is of other classes ({counts}): --initial-checkpoint starts from its weights")
    changed = _changes(content, ours, identity)
    resume_rules.refuse(changed, **ours["position"], path=path)
    _compare_images(ours, identity, path)
    if ours["position"]["step"] and ours["steps_per_epoch"] != identity.steps_per_epoch:
        raise CheckpointError(
            f"{path} stands in the middle of an epoch of {ours['steps_per_epoch']} steps, here an epoch has "
            f"{identity.steps_per_epoch}: the images or the global batch changed"
        )
    if changed:
        said = resume_rules.describe(changed, ours["position"]["epoch"])
        log.warning("The run goes on with other settings: %s", said)
    return ours


def _compare_images(ours: Mapping[str, Any], identity: Identity, path: Path) -> None:
    """Refuse other training images in the middle of an epoch, which would repeat some and skip others; else say it.

    Earlier checkpoints say nothing of them.
    """
    before, epoch, step = ours.get("data", {}), ours["position"]["epoch"], ours["position"]["step"]
    if _differ(before.get("digest"), identity.digest):
        other = f"other images than before: {before['images']:,} then, {identity.images:,} now, by path, label and size"
        if 0 < step < ours["steps_per_epoch"]:
            raise CheckpointError(
                f"{path} is in the middle of epoch {epoch + 1}, and the training set has {other}: give the same "
                "images, or resume from a checkpoint-*.pth.tar, which is the end of an epoch"
            )
        log.warning("The run goes on with a training set of %s", other)
    if _differ(ours.get("pixels"), identity.pixels):
        log.warning(
            "Batches are not the same to the bit as before: their pixels come from %s, and came from %s",
            identity.pixels,
            ours["pixels"],
        )


def _differ(before: str | None, now: str) -> bool:
    """Whether both are known and differ."""
    return bool(before and now) and before != now


def _changes(content: Mapping[str, Any], ours: Mapping[str, Any], identity: Identity) -> list[resume_rules.Change]:
    groups = content["optimizer"]["param_groups"]
    before = {
        **ours["recipe"],
        "mix_groups": ours["mix_groups"],  # the effective number: what counts for a run
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
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its optimizer state does not fit this run's ({error})") from error
    for group, own in zip(optimizer.param_groups, built, strict=True):
        group.update(own)
        group.pop("initial_lr", None)
