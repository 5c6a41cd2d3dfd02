"""Optimizer and schedule come from timm's factories, called as its train.py calls them; LAMB is ours."""

import pytest
import timm
import torch
from timm.optim import Lamb as TimmLamb
from timm.scheduler import create_scheduler_v2

from rsbdali.errors import RecipeError
from rsbdali.ops.lamb import Lamb
from rsbdali.recipe import Recipe
from rsbdali.training.optim import Schedule, create_optimizer


def test_lamb_with_no_decay_for_vectors() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    optimizer = create_optimizer(model, Recipe.load("a3"))
    assert isinstance(optimizer, Lamb)
    assert not isinstance(create_optimizer(model, Recipe(opt="lambc")), Lamb)
    assert isinstance(create_optimizer(model, Recipe(opt="lambc")), TimmLamb)
    assert optimizer.defaults["max_grad_norm"] == 1.0
    assert optimizer.defaults["eps"] == 1e-6
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.02 for p in g["params"]}
    free = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    assert free == {id(p) for p in model.parameters() if p.ndim <= 1}


@pytest.mark.parametrize("name", ["a1", "a2", "a3"])
def test_schedule_equals_timms(name: str) -> None:
    recipe = Recipe.load(name)
    ours, timms = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr) for _ in range(2))
    schedule = Schedule(ours, recipe)
    oracle, epochs = create_scheduler_v2(
        timms,
        sched="cosine",
        num_epochs=recipe.epochs,
        min_lr=recipe.min_lr,
        warmup_lr=recipe.warmup_lr,
        warmup_epochs=recipe.warmup_epochs,
    )
    assert epochs == recipe.epochs
    for epoch in range(recipe.epochs):
        oracle.step(epoch)
        assert schedule.set_epoch(epoch) == ours.param_groups[0]["lr"] == timms.param_groups[0]["lr"]


def test_warmup_then_cosine_over_all_epochs() -> None:
    recipe = Recipe.load("a3")
    schedule = Schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr), recipe)
    rates = [schedule.set_epoch(epoch) for epoch in range(100)]
    assert rates[0] == recipe.warmup_lr
    assert rates[50] == pytest.approx((recipe.lr + recipe.min_lr) / 2)  # not shifted by the warmup
    assert max(rates) == rates[5] < recipe.lr


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(RecipeError, match="opt='lam': timm has no such optimizer, did you mean 'lamb'"):
        create_optimizer(torch.nn.Linear(2, 2), Recipe(opt="lam"))
