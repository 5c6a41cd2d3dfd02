"""How many images a second a model's training step takes, on synthetic data: what a loader has to feed."""

import torch

from rsbdali.bench.measure import meter
from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.bench.report.figures import ModelFigures
from rsbdali.bench.report.presence import Presence
from rsbdali.distributed.devices import resolve_device
from rsbdali.recipe import Recipe
from rsbdali.training.precision import amp_dtype, kernel_policy, name_of

WARM_UP = 10  # steps on a GPU: cudnn.benchmark and the allocator settle
CPU_BATCH = 16  # a step of 128 takes half a minute on two cores, and gives the same images/s
WINDOWS = 3


def measure_model(recipe: Recipe, *, batch_size: int, device: str, seconds: float) -> ModelFigures:
    """Time training steps of `recipe.model` on a batch that is mixed already, in three windows of `seconds` together.

    Args:
        recipe: model, train size, optimizer, loss, amp_dtype.
        batch_size: images a step; at most 16 on a CPU.
        device: `cpu` or `cuda`.
        seconds: how long to measure (a window holds two steps at least).
    """
    target = resolve_device(device)
    rows = batch_size if target.type == "cuda" else min(batch_size, CPU_BATCH)
    with kernel_policy(target, deterministic=False):
        step = OurStep(step_recipe(recipe, rows), target, mixed=False)
        for _ in range(warm_up_steps(target)):
            step()
        window = seconds / WINDOWS
        rounds = [meter.measure(step, seconds=window, warm_up=1, finish=finisher(target)) for _ in range(WINDOWS)]
    rates = sorted(measured.images_per_s for measured in rounds)
    return ModelFigures(
        name=recipe.model,
        median=rates[len(rates) // 2],
        min=rates[0],
        max=rates[-1],
        batch_size=rows,
        dtype=name_of(amp_dtype(recipe.amp_dtype, target)),
        presence=Presence.of(rounds),
        memory_bytes=torch.cuda.max_memory_allocated(target) if target.type == "cuda" else None,
    )


def warm_up_steps(device: torch.device) -> int:
    """Steps before anything is measured."""
    return WARM_UP if device.type == "cuda" else 1
