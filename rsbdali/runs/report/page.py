"""`rsbdali report`: runs side by side on one HTML page that needs nothing else: no script, no network.

    folders ─> run_reading.Run ─> curves (run_curves) + tables (run_tables) ─> page (html_page)

A figure that was not recorded is said to be missing.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from rsbdali.atomic import write_text
from rsbdali.runs.report import tables
from rsbdali.runs.report.charts import STYLE, Line, chart, legend
from rsbdali.runs.report.html import page, section
from rsbdali.runs.report.reading import Run, number, read_runs
from rsbdali.runs.report.tables import UNKNOWN, planned


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Write the page of these runs.

    Args:
        paths: folders of runs, or folders that hold some.
        output: the file.

    Raises:
        RsbdaliError: a folder is missing or holds no run.
    """
    write_text(output, report(read_runs(paths)))


def report(runs: Sequence[Run]) -> str:
    """The page as text."""
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    recipes = ", ".join(dict.fromkeys(str(run.recipe.get("name", UNKNOWN)) for run in runs))
    made = (tables.settings, tables.environment, tables.checkpoints, tables.epochs)
    parts = [_verdict(runs), tables.summary(runs), _curves(runs), *(table(runs) for table in made)]
    return page("Training runs", f"{count}, recipe {recipes}", "\n".join(parts), STYLE + tables.STYLE)


def _verdict(runs: Sequence[Run]) -> str:
    ranked = [(run.best["eval_top1"], run) for run in runs if run.best is not None]
    if not ranked:
        return "<p class=verdict>No run has been evaluated yet.</p>"
    top1, winner = max(ranked, key=lambda pair: pair[0])
    assert winner.best is not None
    text = f"Best top-1: {top1:.2f} %, {winner.name}, after epoch {winner.best['epoch'] + 1}{planned(winner)}"
    return f"<p class=verdict>{escape(text)}</p>"


def _curves(runs: Sequence[Run]) -> str:
    def lines(points: Callable[[Run], list[tuple[float, float]]]) -> list[Line]:
        return [Line(name=run.name, style=k, points=points(run)) for k, run in enumerate(runs)]

    charts = [
        chart("Top-1", "%", lines(lambda run: _by_epoch(run, "eval_top1"))),
        chart("Evaluation loss", "", lines(lambda run: _by_epoch(run, "eval_loss")), note="cross-entropy"),
        chart("Training loss", "", lines(lambda run: _by_epoch(run, "train_loss")), note="mean of the epoch"),
        chart("Learning rate", "", lines(_rates), from_zero=True, marked=False),
        chart("Speed", "images/s", lines(lambda run: _by_step(run, "images_per_s")), from_zero=True, marked=False),
        chart("Waiting for data", "% of the time", lines(_waits), from_zero=True, marked=False),
    ]
    return section("Curves", "", legend([run.name for run in runs]) + f"<div class=charts>{''.join(charts)}</div>")


def _by_epoch(run: Run, name: str) -> list[tuple[float, float]]:
    return [(row["epoch"] + 1, value) for row in run.epochs if (value := number(row.get(name))) is not None]


def _by_step(run: Run, name: str) -> list[tuple[float, float]]:
    """Within epochs where the run says how long they are, else by epoch."""
    per_epoch = run.steps_per_epoch
    if per_epoch is None or not run.steps:
        return _by_epoch(run, name)
    return [
        (row["epoch"] + row["step"] / per_epoch, value)
        for row in run.steps
        if (value := number(row.get(name))) is not None
    ]


def _waits(run: Run) -> list[tuple[float, float]]:
    return [(x, 100 * value) for x, value in _by_step(run, "wait_share")]


def _rates(run: Run) -> list[tuple[float, float]]:
    """Each epoch has one rate, from its start to its end."""
    rates = [(row["epoch"], value) for row in run.epochs if (value := number(row.get("lr"))) is not None]
    return [point for epoch, rate in rates for point in ((epoch, rate), (epoch + 1, rate))]
