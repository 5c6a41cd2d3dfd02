"""The tables of `rsbdali report`, each a card of the page."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from rsbdali.recipe import Recipe, recipe_names
from rsbdali.runs.report.charts import key
from rsbdali.runs.report.html import section, table
from rsbdali.runs.report.reading import Run, number

UNKNOWN = "–"
NOT_SETTINGS = {"reported"}
SHOWN_CHECKPOINTS = 5  # of a run: best, last, and the three best that were kept

STYLE = """
.wide td, .wide th { white-space: nowrap } .wide td:first-child { white-space: normal; min-width: 150px;
overflow-wrap: anywhere } .named th:nth-child(2), .named td:nth-child(2) { text-align: left }
.settings td, .settings th { text-align: left; overflow-wrap: anywhere; min-width: 90px }
.settings td:first-child { color: var(--faint); white-space: nowrap; overflow-wrap: normal; width: 190px }
.scroll + .scroll { margin-top: 14px } details { margin: 6px 0 0 }
summary { cursor: pointer; overflow-wrap: anywhere } details[open] summary { margin-bottom: 6px }
"""


def planned(run: Run) -> str:
    """` of 100`, where the number of epochs is known."""
    return f" of {run.recipe['epochs']}" if "epochs" in run.recipe else ""


def summary(runs: Sequence[Run]) -> str:
    """One line a run: how far, how good, how fast; what is missing, and what does not compare."""
    head = ("run", "model", "epochs", "best top-1, %", "last top-1, %", "train loss", "images/s", "wait", "bad images")
    rows = [
        (
            run.name,
            str(run.recipe.get("model", UNKNOWN)),
            f"{len(run.epochs)}{planned(run)}",
            _best(run),
            _last(run, "eval_top1", ".2f"),
            _last(run, "train_loss", ".4g"),
            _middle(run, "images_per_s", ",.0f"),
            _middle(run, "wait_share", ".1%"),
            str(run.bad_images),
        )
        for run in runs
    ]
    marks = {run.name: key(k) for k, run in enumerate(runs)}
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes] + _not_comparable(runs)
    subtitle = "images/s and wait are medians over epochs; wait: share of time in which training waited for data"
    return section("Runs", subtitle, table(head, rows, kind="wide named", labels=marks) + _notes(notes))


def _best(run: Run) -> str:
    return UNKNOWN if run.best is None else f"{run.best['eval_top1']:.2f} (epoch {run.best['epoch'] + 1})"


def _values(run: Run, name: str) -> list[float]:
    return [value for row in run.epochs if (value := number(row.get(name))) is not None]


def _last(run: Run, name: str, form: str) -> str:
    values = _values(run, name)
    return format(values[-1], form) if values else UNKNOWN


def _middle(run: Run, name: str, form: str) -> str:
    values = _values(run, name)
    return format(median(values), form) if values else UNKNOWN


def _not_comparable(runs: Sequence[Run]) -> list[str]:
    """What makes figures of these runs mean different things."""
    notes = []
    for what, name in (("data folders", "data"), ("numbers of classes", "classes"), ("devices", "device")):
        if len({run.facts[name] for run in runs if name in run.facts}) > 1:
            compared = "speeds" if name == "device" else "accuracies"
            notes.append(f"the runs are of different {what}: compare their {compared} with care")
    if len({_loss(run) for run in runs if run.recipe}) > 1:
        notes.append("the runs minimize different losses: their training losses do not compare")
    return notes


def _loss(run: Run) -> tuple[str, ...]:
    return tuple(_value(run.recipe, name) for name in ("bce_loss", "bce_target_thresh", "smoothing"))


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def settings(runs: Sequence[Run]) -> str:
    """Keys in which runs differ; of a single run: those in which it differs from its recipe."""
    if len(runs) == 1:
        return _settings_of_one(runs[0])
    known = [run for run in runs if run.recipe]
    keys = [name for name in dict.fromkeys(k for run in known for k in run.recipe) if name not in NOT_SETTINGS]
    rows = [(name, *(_value(run.recipe, name) for run in runs)) for name in keys]
    differing = [row for row in rows if len({v for v, run in zip(row[1:], runs, strict=True) if run.recipe}) > 1]
    if not differing:
        return section("Settings that differ", "", "<p class=note>none: all runs have the same settings</p>")
    same = len(rows) - len(differing)
    head = ("key", *(run.name for run in runs))
    return section("Settings that differ", f"the other {same} are the same", table(head, differing, kind="settings"))


def _settings_of_one(run: Run) -> str:
    name = str(run.recipe.get("name"))
    if name not in recipe_names():
        rows = [(key, _value(run.recipe, key)) for key in run.recipe if key not in NOT_SETTINGS]
        return section("Settings", "", table(("key", "value"), rows, kind="settings") if rows else _notes(["unknown"]))
    shipped = Recipe.load(name).to_dict()
    rows_of_three = [
        (key, _value(run.recipe, key), _value(shipped, key))
        for key in dict.fromkeys([*shipped, *run.recipe])
        if key not in NOT_SETTINGS and _value(run.recipe, key) != _value(shipped, key)
    ]
    heading = f"Settings that differ from recipe {name}"
    if not rows_of_three:
        return section(heading, "", _notes(["none: it is the recipe unchanged"]))
    return section(heading, "", table(("key", "this run", "recipe"), rows_of_three, kind="settings"))


def _value(recipe: Mapping[str, Any], name: str) -> str:
    if name not in recipe:
        return UNKNOWN
    value = recipe[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def environment(runs: Sequence[Run]) -> str:
    """Versions, device, data: what the runs wrote at their start."""
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    if not names:
        return section("Environment", "", _notes(["not recorded"]))
    rows = [(name, *(run.facts.get(name, UNKNOWN) for run in runs)) for name in names]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    body = table(("", *(run.name for run in runs)), differing, kind="settings") if differing else ""
    if same:
        body += table(("", "all runs" if len(runs) > 1 else "this run"), same, kind="settings")
    return section("Environment", "", body)


def checkpoints(runs: Sequence[Run]) -> str:
    """Checkpoint files of each run."""
    head = ("run", "file", "top-1, %", "epoch", "MB")
    rows = [
        (
            run.name,
            found.name,
            UNKNOWN if found.top1 is None else f"{found.top1:.2f}",
            UNKNOWN if found.epoch is None else str(found.epoch + 1),
            f"{found.size / 1e6:,.1f}",
        )
        for run in runs
        for found in run.checkpoints[:SHOWN_CHECKPOINTS]
    ]
    notes = [f"{run.name}: no checkpoint is there" for run in runs if not run.checkpoints]
    more = {run.name: len(run.checkpoints) - SHOWN_CHECKPOINTS for run in runs}
    notes += [f"{name}: {count} more" for name, count in more.items() if count > 0]
    marks = {run.name: key(k) for k, run in enumerate(runs)}
    subtitle = "best first; names of one epoch share one file by hard links where the file system can"
    body = table(head, rows, kind="wide named", labels=marks) if rows else ""
    return section("Best checkpoints", subtitle, body + _notes(notes))


def epochs(runs: Sequence[Run]) -> str:
    """All figures of the curves as tables, closed at first."""
    columns = {
        "train_loss": ".5g",
        "eval_loss": ".5g",
        "eval_top1": ".3f",
        "eval_top5": ".3f",
        "lr": ".4g",
        "images_per_s": ",.0f",
        "wait_share": ".1%",
    }
    head = ("epoch", "train loss", "eval loss", "top-1, %", "top-5, %", "learning rate", "images/s", "wait")
    parts = []
    for run in runs:
        rows = [
            (str(row["epoch"] + 1), *(_cell(row.get(name), form) for name, form in columns.items()))
            for row in run.epochs
        ]
        parts.append(f"<details><summary>{escape(run.name)}</summary>{table(head, rows, kind='wide')}</details>")
    return section("Every epoch", "", "".join(parts))


def _cell(value: Any, form: str) -> str:
    finite = number(value)
    return UNKNOWN if finite is None else format(finite, form)
