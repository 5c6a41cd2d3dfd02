"""A model's training step alone, on synthetic data at the recipe's size: what a loader has to feed.

Forward, loss, backward, optimiser, with the number formats and kernels that training uses; the batch stays on the
device, so that no data path is in it.
"""

import time
from dataclasses import dataclass

import torch

from rsbdali.loader import resolve_device
from rsbdali.model import create_model
from rsbdali.ops.bce import bce_loss, soft_cross_entropy
from rsbdali.optim import create_optimizer
from rsbdali.precision import amp_dtype, autocast, kernel_policy, name_of
from rsbdali.recipe import Recipe

NUM_CLASSES = 1000
WARM_UP = 10  # cudnn.benchmark and the allocator settle
CPU_BATCH = 16  # a step of 128 takes half a minute on two cores, and gives the same images/s


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """A model's step: median, least and most images a second over steps, and the setting they were taken in."""

    name: str
    median: float
    min: float
    max: float
    batch_size: int
    dtype: str
    memory_bytes: int | None


def measure_model(recipe: Recipe, *, batch_size: int, device: str, seconds: float) -> ModelFigures:
    """Time training steps of `recipe.model` for about `seconds` (at least three steps).

    Args:
        recipe: model, train size, optimiser, loss, amp_dtype.
        batch_size: images a step; at most 16 on a CPU.
        device: `cpu` or `cuda`.
        seconds: how long to measure.
    """
    place = resolve_device(device)
    rows = batch_size if place.type == "cuda" else min(batch_size, CPU_BATCH)
    with kernel_policy(place, deterministic=False):
        step = _Step(recipe, rows, place)
        for _ in range(WARM_UP if place.type == "cuda" else 1):
            step()
        rates = sorted(rows / t for t in _times(step, place, seconds))
    return ModelFigures(
        name=recipe.model, median=rates[len(rates) // 2], min=rates[0], max=rates[-1], batch_size=rows,
        dtype=name_of(step.dtype),
        memory_bytes=torch.cuda.max_memory_allocated(place) if place.type == "cuda" else None,
    )  # fmt: skip


def _times(step: "_Step", device: torch.device, seconds: float) -> list[float]:
    """Seconds of each step."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        times.append(_time_on_gpu(step) if device.type == "cuda" else _time_on_cpu(step))
    return times


def _time_on_cpu(step: "_Step") -> float:
    before = time.perf_counter()
    step()
    return time.perf_counter() - before


def _time_on_gpu(step: "_Step", steps: int = 5) -> float:
    """Mean of a few steps between two events, so that the host runs ahead as it does in training."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / steps


class _Step:
    """One training step on a batch of noise."""

    def __init__(self, recipe: Recipe, rows: int, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.dtype = amp_dtype(recipe.amp_dtype, device)
        self.model = create_model(recipe, NUM_CLASSES).to(device).train()
        self.optimizer = create_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        rng = torch.Generator().manual_seed(0)
        images = torch.randn((rows, 3, *recipe.train_size), generator=rng)
        self.images = images.to(device, memory_format=torch.channels_last)
        label_N, partner_N = (torch.randint(NUM_CLASSES, (rows,), generator=rng).to(device) for _ in range(2))
        self.targets = label_N, partner_N, torch.rand(rows, generator=rng).to(device)

    def __call__(self) -> None:
        with autocast(self.device, self.dtype):
            logits = self.model(self.images)
        recipe = self.recipe
        if recipe.bce_loss:
            threshold = recipe.bce_target_thresh
            loss = bce_loss(logits, *self.targets, smoothing=recipe.smoothing, threshold=threshold)
        else:
            loss = soft_cross_entropy(logits, *self.targets, smoothing=recipe.smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
