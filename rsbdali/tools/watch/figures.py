"""The figures of a pass, and how differences between them are separated from noise."""

from dataclasses import dataclass

import numpy as np

from rsbdali.tools.watch.machine import Usage
from rsbdali.tools.watch.traits import Traits

BLOCKS = 6  # consecutive parts of a pass whose ranges are compared


@dataclass(frozen=True, kw_only=True)
class PassFigures:
    """What was seen in one pass, its first batch left out: that one waits for workers that start.

    Attributes:
        number: of the pass, from 1.
        given: batches, the first among them.
        start_s: seconds from `iter()` to the first batch.
        wait_N: float64, seconds that each batch was waited for, on the GPU where there is one.
        step_N: float64, seconds of the step on each, likewise.
        ready_N: int, batches that had come before their turn when each was given; -1 where that is not known.
        wait_cores: cores that this process kept busy while it waited.
        replay_R: float64, seconds of the step on a batch that was there already, alone; empty where not asked for.
        rows: mean rows of a batch; None where batches have none.
        on_gpu: the times are the GPU's.
        pageable: batches come in host memory that is not pinned, and a GPU is in use.
        traits: of the loader.
        usage: of the machine in the pass; None if it was too short.
    """

    number: int
    given: int
    start_s: float
    wait_N: np.ndarray
    step_N: np.ndarray
    ready_N: np.ndarray
    wait_cores: float
    replay_R: np.ndarray
    rows: float | None
    on_gpu: bool
    pageable: bool
    traits: Traits
    usage: Usage | None

    @property
    def seconds(self) -> float:
        """Of all batches but the first."""
        return float(self.wait_N.sum() + self.step_N.sum())

    @property
    def waiting(self) -> float:
        """Share of the time in which training waited for data."""
        return float(self.wait_N.sum()) / self.seconds

    @property
    def period_s(self) -> float:
        """Mean seconds of a batch and its step."""
        return self.seconds / len(self.wait_N)

    def shares(self) -> np.ndarray:
        """`waiting` of each of some consecutive parts of the pass."""
        parts = zip(np.array_split(self.wait_N, BLOCKS), np.array_split(self.step_N, BLOCKS), strict=True)
        return np.array([wait.sum() / (wait.sum() + step.sum()) for wait, step in parts])


def blocks(seconds_N: np.ndarray) -> np.ndarray:
    """Means of some consecutive parts."""
    return np.array([part.mean() for part in np.array_split(seconds_N, min(BLOCKS, len(seconds_N)))])


def differ(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether a difference is shown: the ranges of the two have no value in common."""
    return bool(some.min() > others.max() or others.min() > some.max())


def slow_worker(figures: PassFigures) -> int | None:
    """The one worker process that training waits for while the others' batches are ready; None if there is none.

    Its batches are most of the waiting, and when they come, the others have made nearly all that they may make ahead.
    Workers in lockstep, all equally slow, show the first and not the second.
    """
    traits = figures.traits
    count = traits.workers or 0
    rounds = len(figures.wait_N) // max(1, count)
    if not traits.takes_turns or count < 2 or rounds < BLOCKS:
        return None
    wait_RW, ready_RW = (all_N[: rounds * count].reshape(rounds, count) for all_N in (figures.wait_N, figures.ready_N))
    worst = int(wait_RW.sum(axis=0).argmax())
    share = wait_RW[:, worst].sum() / max(wait_RW.sum(), 1e-12)
    ready = ready_RW[:, worst].mean() / (traits.prefetch * (count - 1))
    return (worst + 1) % count if share >= 0.8 and ready >= 0.75 else None  # + 1: the first batch is left out
