"""What a run shows while it goes: a live display on a terminal, plain lines elsewhere.

Plain lines go through `logging`, one for each epoch and one every `log_interval` steps.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rsbdali.progress_bar import log_console
from rsbdali.recipe import Recipe
from rsbdali.training.evaluate import EvalResult
from rsbdali.training.throughput import Speed, duration, projection

LINE = 100  # columns of an epoch's line
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """A moment in an epoch. `step` steps of it are done; `top1` is the best evaluation yet, per cent.

    `loss` is the epoch's mean so far; None before the first is known, which is a step later.
    """

    epoch: int
    step: int
    loss: float | None
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
        self._is_projected = False

    def step(self, report: StepReport) -> None:
        """A line every `log_interval` steps, but for the epoch's last, which has a line of its own."""
        if report.step % self._recipe.log_interval == 0 and report.step < self._steps_per_epoch:
            position = f"epoch {report.epoch + 1}/{self._recipe.epochs} step {report.step}/{self._steps_per_epoch}"
            log.info("%s  %s  lr %.3g", position, step_facts(self._recipe, report), report.lr)

    def evaluating(self) -> None:
        """Nothing: the epoch's line follows."""

    def epoch(self, report: EpochReport) -> None:
        """One line; behind the first one of a session, what the whole run will take."""
        log.info("%s", epoch_line(self._recipe, report))
        if not self._is_projected and report.speed.total_s is not None:
            log.info("at this pace %s", projection(self._recipe, report.speed.total_s))
            self._is_projected = True

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
        self._recipe, self._console, self._steps = recipe, console, steps_per_epoch
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
        # nothing is counted until a batch was made and kernels were compiled, which may take a minute
        self._epoch: TaskID = self._progress.add_task("first step", total=None, facts="")
        self._progress.start()

    def step(self, report: StepReport) -> None:
        """Move the bars."""
        facts = step_facts(self._recipe, report)
        self._progress.update(self._epoch, description="steps", total=self._steps, completed=report.step, facts=facts)
        of_run = [] if report.top1 is None else [f"best top-1 {report.top1:.2f} %"]
        if report.speed.total_s is not None:
            of_run.append(projection(self._recipe, report.speed.total_s))
        self._progress.update(self._run, facts="  ".join(of_run))

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
    console = console or log_console()
    if console.is_terminal:
        return Live(recipe, steps_per_epoch, epoch, console)
    return Plain(recipe, steps_per_epoch)


def step_facts(recipe: Recipe, report: StepReport) -> str:
    """Training loss by its name, images/s, share of waiting, time left."""
    speed = report.speed
    parts = [] if report.loss is None else [f"{loss_name(recipe)} {digits(report.loss)}"]
    parts += [f"{speed.images_per_s:.0f} img/s", f"wait {speed.wait_share:.0%}"]
    if speed.left_s is not None:
        parts.append(f"left {duration(speed.left_s)}")
    return "  ".join(parts)


def epoch_line(recipe: Recipe, report: EpochReport) -> str:
    """One epoch in at most LINE columns: training loss by its name, cross entropy and top-1 of the evaluation, speed.

    What else there is of it, top-5 for example, is in `summary.csv`.
    """
    speed, result = report.speed, report.result
    parts = [f"epoch {report.epoch + 1}/{recipe.epochs}", f"{loss_name(recipe)} {digits(report.loss)}"]
    if result is not None and report.best_top1 is not None:
        parts += [f"CE {digits(result.loss)}", f"top-1 {result.top1:.2f} %", f"best {report.best_top1:.2f} %"]
    more = [f"{speed.images_per_s:.0f} img/s", f"wait {speed.wait_share:.0%}"]
    if speed.left_s is not None:
        more.append(f"left {duration(speed.left_s)}")
    line = "  ".join(parts)
    for part in more:
        line = f"{line}  {part}" if len(line) + len(part) + 2 <= LINE else line
    return line


def loss_name(recipe: Recipe) -> str:
    """What the training loss is: `BCE`, or `train CE` where the evaluation's `CE` is shown beside it."""
    return "BCE" if recipe.bce_loss else "train CE"


def digits(value: float) -> str:
    """A number with four digits that count."""
    return f"{value:#.4g}".rstrip(".")
