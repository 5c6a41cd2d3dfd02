"""A run's folder read for a report: no checkpoint is opened, no torch is needed.

What a folder lacks stays empty, and `Run.notes` says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsbdali.bounded import NotPlain, is_number, read_lines
from rsbdali.errors import RsbdaliError, counted
from rsbdali.runs.folder import BEST, LAST, fact_count, is_epoch_file, parse_record, read_args

MARKS = ("metrics.jsonl", "summary.csv")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file: its name, size in bytes, and epoch (from 0) and top-1 (per cent) where they are known."""

    name: str
    size: int
    epoch: int | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's files say.

    Attributes:
        name: of the folder, with its parent's where two runs share it.
        folder: the run's.
        facts: header of `args.yaml`: versions, device, data, …
        recipe: keys of `args.yaml`.
        epochs: one record an epoch, in order: epoch, train_loss, lr, eval_top1, images_per_s, …
        steps: records within epochs: epoch, step, loss, lr, images_per_s, wait_share.
        checkpoints: best, last, then the kept ones, best first.
        bad_images: images that did not decode.
        notes: what is missing or damaged, in words.
    """

    name: str
    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    bad_images: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps an epoch, where the run recorded them."""
        return fact_count(self.facts, "steps_per_epoch") or None

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch of the best top-1, the first on a tie; None where nothing was evaluated."""
        evaluated = [row for row in self.epochs if number(row.get("eval_top1")) is not None]
        return max(evaluated, key=lambda row: row["eval_top1"], default=None)


def number(value: Any) -> float | None:
    """A finite number, else None."""
    return float(value) if is_number(value) and abs(value) < float("inf") else None  # false for NaN too


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of these folders; a folder that holds runs means all of them.

    Raises:
        RsbdaliError: a folder is missing or holds no run, or an `args.yaml` is damaged.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _folders(path)))
    names = [folder.resolve().name for folder in folders]
    named = [
        f"{folder.resolve().parent.name}/{name}" if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]
    return [_read(folder, name) for folder, name in zip(folders, named, strict=True)]


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise RsbdaliError(f"{path}: no such folder")
    if _is_run(path):
        return [path]
    below = sorted(folder for folder in path.iterdir() if folder.is_dir() and _is_run(folder))
    if not below:
        raise RsbdaliError(f"{path} is no run of rsbdali train: it has neither {' nor '.join(MARKS)}")
    return below


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


def _read(folder: Path, name: str) -> Run:
    facts, recipe = read_args(folder)
    records, notes = _records(folder / "metrics.jsonl")
    steps = [r for r in records if r["kind"] == "step"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    if not epochs:
        epochs, damaged = _summary(folder / "summary.csv")
        notes += [f"summary.csv: {counted(damaged, 'damaged line')} left out"] if damaged else []
    if not recipe:
        notes.append("args.yaml is missing: settings and environment are unknown")
    if not epochs:
        notes.append("no epoch is complete yet")
    elif not any(number(row.get("eval_top1")) is not None for row in epochs):
        notes.append("no epoch was evaluated")
    return Run(
        name=name,
        folder=folder,
        facts=facts,
        recipe=recipe,
        epochs=epochs,
        steps=steps,
        notes=notes,
        checkpoints=_checkpoints(folder, epochs),
        bad_images=_bad_images(folder / "bad_images.csv"),
    )


def _records(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of `metrics.jsonl`; the last one may be cut off in a run that goes on or was killed."""
    if not path.is_file():
        return [], ["metrics.jsonl is missing: the epochs are from summary.csv, without speeds"]
    records, damaged = [], 0
    for line in read_lines(path):
        try:
            records.append(parse_record(line))
        except NotPlain:
            damaged += 1
    return records, [f"metrics.jsonl: {counted(damaged, 'damaged line')} left out"] if damaged else []


def _summary(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of `summary.csv`, a cell that is no number being None, and how many lines are none."""
    if not path.is_file():
        return [], 0
    lines = [line.decode("utf-8", "replace").rstrip("\r\n") for line in read_lines(path)]
    columns, rows, damaged = lines[0].split(",") if lines else [], [], 0
    for line in lines[1:]:
        row = dict(zip(columns, line.split(","), strict=False))
        epoch = fact_count(row, "epoch")
        if epoch is None:
            damaged += 1
        else:
            rows.append({**{key: _float(value) for key, value in row.items()}, "epoch": epoch})
    return rows, damaged


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _checkpoints(folder: Path, epochs: Iterable[dict[str, Any]]) -> list[Checkpoint]:
    top1 = {row["epoch"]: row["eval_top1"] for row in epochs if number(row.get("eval_top1")) is not None}
    best = max(top1, key=lambda epoch: top1[epoch], default=None)
    kept = []
    for path in folder.glob("checkpoint-*.pth.tar"):
        if is_epoch_file(path.name):
            epoch = int(path.name.removeprefix("checkpoint-").removesuffix(".pth.tar"))
            kept.append(Checkpoint(name=path.name, size=path.stat().st_size, epoch=epoch, top1=top1.get(epoch)))
    kept.sort(key=lambda c: (-1.0 if c.top1 is None else c.top1, -(c.epoch or 0)), reverse=True)
    first = []
    if (folder / BEST).is_file():
        value = None if best is None else top1[best]
        first.append(Checkpoint(name=BEST, size=(folder / BEST).stat().st_size, epoch=best, top1=value))
    if (folder / LAST).is_file():
        first.append(Checkpoint(name=LAST, size=(folder / LAST).stat().st_size))
    return [*first, *kept]


def _bad_images(path: Path) -> int:
    if not path.is_file():
        return 0
    return max(0, sum(1 for _ in read_lines(path)) - 1)  # the first is the head
