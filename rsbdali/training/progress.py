"""What a run shows while it goes: a live display on a terminal, plain lines elsewhere.

Plain lines go through `logging`, one for each epoch and one every `log_interval` steps.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rsbdali.recipe import Recipe
from rsbdali.training.evaluate import EvalResult
from rsbdali.training.throughput import Speed, duration, projection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """A moment in an epoch. `step` steps of it are done; `loss` is its mean so far; `top1` the best yet, per cent."""

    epoch: int
    step: int
    loss: float
    lr: float
    speed: Speed
    top1: float | None


@dataclass(frozen=True)
class EpochReport:
    """The end of an epoch; `result` is None where it was not evaluated."""

    epoch: int
    loss: float
    lr: float
    speed: Speed
    result: EvalResult | None
    best_top1: float | None


class Reporter(Protocol):
    """Shows how a run goes."""

    def step(self, report: StepReport) -> None:
        """After each step."""

    def evaluating(self) -> None:
        """An evaluation begins."""

    def epoch(self, report: EpochReport) -> None:
        """After each epoch."""

    def close(self) -> None:
        """The run is over."""


class Silent:
    """Shows nothing: all ranks but the first."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def evaluating(self) -> None:
        """Nothing."""

    def epoch(self, report: EpochReport) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """Lines in the log."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe, self._steps_per_epoch = recipe, steps_per_epoch

    def step(self, report: StepReport) -> None:
        """A line every `log_interval` steps, but for the epoch's last, which has a line of its own."""
        if report.step % self._recipe.log_interval == 0 and report.step < self._steps_per_epoch:
            place = f"epoch {report.epoch + 1}/{self._recipe.epochs} step {report.step}/{self._steps_per_epoch}"
            log.info("%s  %s  lr %.3g", place, step_facts(report), report.lr)

    def evaluating(self) -> None:
        """Nothing: the epoch's line follows."""

    def epoch(self, report: EpochReport) -> None:
        """One line."""
        log.info("%s", epoch_line(self._recipe, report))

    def close(self) -> None:
        """Nothing is held."""


class Live:
    """Two bars on a terminal, the run's and the epoch's, with their figures; epochs leave a line behind.

    Args:
        recipe: of the run.
        steps_per_epoch: optimizer steps.
        epoch: first epoch that is run.
        console: where to draw.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, epoch: int, console: Console) -> None:
        self._recipe, self._console = recipe, console
        facts = TextColumn("{task.fields[facts]}", markup=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            facts,
            console=console,
            transient=True,
        )
        self._run: TaskID = self._progress.add_task("epochs", total=recipe.epochs, completed=epoch, facts="")
        self._epoch: TaskID = self._progress.add_task("steps", total=steps_per_epoch, facts="")
        self._progress.start()

    def step(self, report: StepReport) -> None:
        """Move the bars."""
        self._progress.update(self._epoch, description="steps", completed=report.step, facts=step_facts(report))
        facts = [] if report.top1 is None else [f"best top-1 {report.top1:.2f} %"]
        if report.speed.total_s is not None:
            facts.append(projection(self._recipe, report.speed.total_s))
        self._progress.update(self._run, facts="  ".join(facts))

    def evaluating(self) -> None:
        """Say so in the place of the steps."""
        self._progress.update(self._epoch, description="evaluate")

    def epoch(self, report: EpochReport) -> None:
        """Leave the epoch's line above the bars."""
        self._console.print(epoch_line(self._recipe, report), markup=False, highlight=False, soft_wrap=True)
        self._progress.update(self._run, completed=report.epoch + 1)
        self._progress.update(self._epoch, completed=0)

    def close(self) -> None:
        """Take the bars down."""
        self._progress.stop()


def make_reporter(recipe: Recipe, steps_per_epoch: int, *, epoch: int, console: Console | None = None) -> Reporter:
    """The live display where standard error is a terminal, else plain lines.

    Args:
        recipe: of the run.
        steps_per_epoch: optimizer steps.
        epoch: first epoch that is run.
        console: default: the one that rsbdali's log is written to, so that its lines come out above the bars.
    """
    console = console or _log_console() or Console(stderr=True)
    if console.is_terminal:
        return Live(recipe, steps_per_epoch, epoch, console)
    return Plain(recipe, steps_per_epoch)


def _log_console() -> Console | None:
    handlers = logging.getLogger("rsbdali").handlers
    return next((handler.console for handler in handlers if isinstance(handler, RichHandler)), None)


def step_facts(report: StepReport) -> str:
    """Loss, images/s, share of waiting, time left."""
    speed = report.speed
    left = "" if speed.left_s is None else f"  left {duration(speed.left_s)}"
    return f"loss {report.loss:.5f}  {speed.images_per_s:.0f} images/s  wait {speed.wait_share:.0%}{left}"


def epoch_line(recipe: Recipe, report: EpochReport) -> str:
    """Everything about one epoch in one line."""
    speed, result = report.speed, report.result
    parts = [f"epoch {report.epoch + 1}/{recipe.epochs}", f"train loss {report.loss:.5f}"]
    if result is not None and report.best_top1 is not None:
        parts += [f"eval loss {result.loss:.7f}", f"top-1 {result.top1:.3f} %", f"top-5 {result.top5:.3f} %"]
        parts.append(f"best {report.best_top1:.3f} %")
    parts += [f"{speed.images_per_s:.0f} images/s", f"wait {speed.wait_share:.0%}"]
    if speed.total_s is not None:
        parts.append(projection(recipe, speed.total_s))
    return "  ".join(parts)
