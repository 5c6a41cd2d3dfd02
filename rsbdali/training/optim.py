"""Optimiser and schedule, by timm's factories: LAMB and cosine with warmup for the paper's recipes.

`opt: lamb` is `rsbdali.ops.lamb.Lamb`, timm's with the same result in less time; every other name is timm's own. LAMB
clips the global gradient norm at 1.0 by itself; parameters with at most one dimension (biases, norms) get no weight
decay and with it no trust ratio.
"""

import difflib

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from rsbdali.errors import RecipeError
from rsbdali.ops.lamb import Lamb
from rsbdali.recipe import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser (`opt`, `lr`, `weight_decay`) over a model's parameters.

    Raises:
        RecipeError: timm knows no such optimiser.
    """
    known = list_optimizers()
    if recipe.opt.lower() not in known:
        close = difflib.get_close_matches(recipe.opt.lower(), known, n=3)
        near = f"; near: {', '.join(close)}" if close else ""
        raise RecipeError(f"opt={recipe.opt!r}: timm has no such optimizer{near}")
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    return Lamb.of(optimizer) if recipe.opt.lower() == "lamb" else optimizer


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
