"""What each part of a step takes: marks between the parts, by CUDA events on a GPU and by the clock on a CPU.

On a GPU the times are those of the device's own queue, gaps in it included: where the host cannot keep it filled, the
part that waits for the host shows it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import nn

PARTS = ("mix", "forward", "loss", "backward", "optimizer")
Mark = Callable[[str], None]


def unmarked(_: str) -> None:
    """The mark of a step that is not taken apart."""


class Markable(Protocol):
    """A step that marks where its parts end."""

    def __call__(self) -> int:
        """Make one step; the rows of it."""

    def marked(self, mark: Mark) -> AbstractContextManager[None]:
        """While this lasts, each step calls `mark(name)` where that part of it ends."""


def measure_parts(step: Markable, device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step, median over `steps` of them, in the order they come."""
    found: dict[str, list[float]] = {}
    for _ in range(steps):
        stamps = [("", _stamp(device))]

        def mark(name: str, stamps: list[tuple[str, Any]] = stamps) -> None:
            stamps.append((name, _stamp(device)))

        with step.marked(mark):
            step()
        for name, milliseconds in _spans(stamps, device):
            found.setdefault(name, []).append(milliseconds)
    return {name: statistics.median(values) for name, values in found.items()}


def _stamp(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _spans(stamps: list[tuple[str, Any]], device: torch.device) -> Iterator[tuple[str, float]]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    for (_, begin), (name, end) in pairwise(stamps):
        yield name, (begin.elapsed_time(end) if device.type == "cuda" else 1e3 * (end - begin))


class MarkedScaler(torch.amp.GradScaler):
    """A GradScaler that marks the end of the loss and of the backward pass: the two places where a step calls it."""

    mark: Mark = staticmethod(unmarked)

    def scale(self, outputs: Any) -> Any:
        """As GradScaler's; the loss is done."""
        self.mark("loss")
        return super().scale(outputs)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """As GradScaler's; the backward pass is done, and unscaling counts as the optimizer's."""
        self.mark("backward")
        return super().step(optimizer, *args, **kwargs)


@contextmanager
def marked_forward(model: nn.Module, scaler: MarkedScaler, mark: Mark) -> Iterator[None]:
    """Mark the ends of forward, loss and backward of a step over `model` that uses `scaler`."""
    handle = model.register_forward_hook(lambda *_: mark("forward"))
    scaler.mark = mark
    try:
        yield
    finally:
        handle.remove()
        scaler.mark = unmarked
