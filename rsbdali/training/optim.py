"""Optimizer and schedule, by timm's factories: LAMB and cosine with warmup for the paper's recipes.

`opt: lamb` is `rsbdali.ops.lamb.Lamb`, timm's with the same result in less time; every other name is timm's own. LAMB
clips the global gradient norm at 1.0 by itself; parameters with at most one dimension (biases, norms) get no weight
decay and with it no trust ratio.
"""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

from rsbdali.errors import RecipeError, nearest
from rsbdali.ops.lamb import Lamb
from rsbdali.recipe import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer (`opt`, `lr`, `weight_decay`) over a model's parameters.

    Raises:
        RecipeError: timm knows no such optimizer.
    """
    check_optimizer(recipe.opt)
    groups = _parameter_groups(model, recipe.weight_decay)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=recipe.opt, lr=recipe.lr)
    return Lamb.of(optimizer) if recipe.opt.lower() == "lamb" else optimizer


def check_optimizer(name: str) -> None:
    """Refuse a name that is no optimizer's.

    Raises:
        RecipeError: timm knows no such optimizer.
    """
    known = list_optimizers()
    if name.lower() not in known:
        raise RecipeError(f"opt={name!r}: timm has no such optimizer{nearest(name.lower(), known, most=3)}")


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups as timm makes them, without and with weight decay, for any value of it.

    timm makes one group where the value is 0. Two in that case as well, so that a run can be resumed with or without.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, weight_decay=1.0, no_weight_decay_list=exempt)
    return [{**group, "weight_decay": group["weight_decay"] * weight_decay} for group in groups]


class Schedule:
    """Learning rate by epoch: linear warmup from `warmup_lr`, then cosine over all epochs, not shifted by the warmup.

    timm's train.py holds the rate constant within an epoch; so does this. The rate is a function of the epoch alone:
    a resumed run needs no state of it.

    Args:
        optimizer: whose rate is set; epoch 0's right away.
        recipe: `epochs`, `lr`, `min_lr`, `warmup_epochs`, `warmup_lr`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
        self._optimizer = optimizer
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            min_lr=recipe.min_lr,
            warmup_lr=recipe.warmup_lr,
            warmup_epochs=recipe.warmup_epochs,
        )

    def set_epoch(self, epoch: int) -> float:
        """Set the rate of an epoch (counted from 0) and return it."""
        self._scheduler.step(epoch)
        return float(self._optimizer.param_groups[0]["lr"])
