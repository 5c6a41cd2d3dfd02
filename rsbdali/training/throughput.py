"""How fast a run goes: images/s, share of time waiting for data, time left, hours of the whole run."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rsbdali.errors import counted
from rsbdali.recipe import Recipe


@dataclass(frozen=True)
class Speed:
    """A moment's figures.

    Attributes:
        images_per_s: over all ranks.
        wait_share: 0 … 1, part of this rank's time spent waiting for data.
        left_s: seconds to the end of the run, evaluations included; None before the second step.
        total_s: seconds that the whole run takes at this pace; None before the second step.
    """

    images_per_s: float
    wait_share: float
    left_s: float | None
    total_s: float | None


class ThroughputMeter:
    """Clock of a run. Rates cover the last `window` steps; the time left is estimated from all steps of this session.

    Args:
        recipe: epochs, batch, eval_every.
        steps_per_epoch: optimizer steps.
        clock: seconds that only grow.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._recipe, self._steps_per_epoch, self._clock = recipe, steps_per_epoch, clock
        self._marks: deque[tuple[float, float]] = deque(maxlen=recipe.log_interval + 1)
        self._steps, self._step_s = 0, 0.0
        self._eval_s = 0.0
        self._epoch_start = 0.0, 0, 0.0

    def start_epoch(self, wait_s: float) -> None:
        """Begin a stretch of steps: the time since the last one (evaluation, saving) counts for neither."""
        self._marks.clear()
        self._marks.append((self._clock(), wait_s))
        self._epoch_start = self._clock(), self._steps, wait_s

    def step(self, wait_s: float) -> None:
        """A step is done; `wait_s` is the seconds that the loader waited since the run began."""
        now = self._clock()
        if self._steps:  # the first step pays for the start: kernels are chosen, memory is taken
            self._step_s += now - self._marks[-1][0]
        self._steps += 1
        self._marks.append((now, wait_s))

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long."""
        self._eval_s = seconds

    def speed(self, epoch: int, step: int) -> Speed:
        """Figures of the last steps, `step` steps into an epoch."""
        (first, first_wait), (last, last_wait) = self._marks[0], self._marks[-1]
        return self._figures(last - first, last_wait - first_wait, len(self._marks) - 1, epoch, step)

    def epoch_speed(self, epoch: int) -> Speed:
        """Figures of this epoch's steps in this session."""
        start, steps, wait = self._epoch_start
        last, last_wait = self._marks[-1]
        return self._figures(last - start, last_wait - wait, self._steps - steps, epoch + 1, 0)  # it is evaluated

    def _figures(self, seconds: float, wait_s: float, steps: int, epoch: int, step: int) -> Speed:
        # a session that only evaluates, resumed behind an epoch's last step, has no steps to time
        rate = steps * self._recipe.global_batch_size / seconds if steps > 0 and seconds > 0 else 0.0
        total_s = self._duration(0, 0)
        return Speed(rate, wait_s / seconds if rate else 0.0, self._duration(epoch, step), total_s)

    def _duration(self, epoch: int, step: int) -> float | None:
        """Seconds from a position in the run to its end."""
        if self._steps < 2:
            return None
        per_step = self._step_s / (self._steps - 1)
        epochs = self._recipe.epochs
        evaluations = evaluations_left(epoch, self._recipe.eval_every, epochs)
        return ((epochs - epoch) * self._steps_per_epoch - step) * per_step + evaluations * self._eval_s


def is_evaluated(epoch: int, every: int, epochs: int) -> bool:
    """Whether an epoch (from 0) ends with an evaluation: each `every`-th, and the last."""
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


def evaluations_left(epoch: int, every: int, epochs: int) -> int:
    """How many of the epochs from `epoch` on are evaluated."""
    extra = bool(epochs % every) and epoch < epochs  # the last one, off the beat
    return epochs // every - epoch // every + extra


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `6.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def projection(recipe: Recipe, total_s: float) -> str:
    """`A3: 100 epochs in 6.2 h of 15 h`: the run at its pace, and the hours that its recipe is reported to take.

    The budget is left out where the run is of another model or length than the report is about.
    """
    said = f"{recipe.name.upper()}: {counted(recipe.epochs, 'epoch')} in {duration(total_s)}"
    hours = recipe.reported.hours
    return f"{said} of {hours:g} h" if hours is not None and recipe.is_reported else said
