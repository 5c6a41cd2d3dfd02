"""The files of a run beside its checkpoints, in `<output>/<experiment>/`.

    args.yaml        the recipe as it ran, in a form that --recipe takes; how it was started is in its header
    args-until-*     the same of earlier steps, where the run was resumed with other settings (`args_history`)
    summary.csv      one line an epoch, in the columns that timm writes
    metrics.jsonl    one JSON object a line: an epoch ("kind": "epoch") or a moment in it ("kind": "step")
    bad_images.csv   images that did not decode, with the reason

Rank 0 writes them, but for the bad images, which each rank adds for itself.
"""

import csv
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from rsbdali import bounded
from rsbdali.atomic import write_text
from rsbdali.bounded import NotPlain, is_count
from rsbdali.errors import RsbdaliError, counted
from rsbdali.recipe import Recipe, check_name

log = logging.getLogger(__name__)

LAST, BEST = "last.pth.tar", "model_best.pth.tar"  # of `checkpoint_manager`, which brings torch along
ARGS = "args.yaml"
SUMMARY_COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")


def choose_folder(output: Path, experiment: str | None, recipe: Recipe, *, resume: str | None) -> Path:
    """The run's folder; nothing is made yet (see `claim`).

    A named experiment is one folder. Without a name it is `<recipe>-<model>`, with a number behind it where that is
    taken; a resume stays in the folder that it names or whose checkpoint it names, and `auto` means the newest of the
    numbered ones.

    Raises:
        RsbdaliError: the experiment's name leads out of the output folder.
    """
    if experiment is not None:
        check_name("experiment", experiment, parts=True)
        return output / experiment
    source = resumed_folder(resume)
    if source and (source / ARGS).exists():
        return source
    model = re.sub(r"[^\w.-]+", "-", recipe.model)  # of hf-hub:timm/resnet50.a1_in1k, for example
    base = f"{recipe.name}-{model}"
    taken = sorted(_numbers(output, base))
    if resume == "auto" and taken:
        return output / _numbered(base, taken[-1])
    return output / _numbered(base, taken[-1] + 1 if taken else 1)


def is_epoch_file(name: str) -> bool:
    """Whether a file's name is that of an epoch's checkpoint, without a folder."""
    return re.fullmatch(r"checkpoint-[0-9]{1,10}\.pth\.tar", name) is not None


def check_free(folder: Path, experiment: str | None, resume: str | None) -> None:
    """Refuse to begin a run where there is one.

    Raises:
        RsbdaliError: another run is in the folder already.
    """
    if experiment is None or resume == "auto" or not (folder / LAST).exists():
        return
    source = resumed_folder(resume)
    if source is None or source.resolve() != folder.resolve():
        raise RsbdaliError(
            f"{folder} holds a run already: go on with --resume {shlex.quote(str(folder))}, or name another experiment"
        )


def resumed_folder(resume: str | None) -> Path | None:
    """The folder that a resume names itself, or in which its checkpoint is; None for `auto` and without a resume."""
    if resume is None or resume == "auto":
        return None
    return Path(resume) if Path(resume).is_dir() else Path(resume).parent


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"


def _numbers(output: Path, base: str) -> Iterable[int]:
    for name in os.listdir(output) if output.is_dir() else []:
        if name == base:
            yield 1
        elif name.startswith(f"{base}-") and (suffix := name[len(base) + 1 :]).isdecimal():
            yield int(suffix)


class RunFolder:
    """Writes the files. On a resume the lines of what will be done again are dropped first; damaged ones too, and said.

    Args:
        path: made if it is not there.
        epoch: first epoch that will be written.
        step: steps of it that are done already.
    """

    def __init__(self, path: Path, *, epoch: int = 0, step: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._summary, self._metrics = path / "summary.csv", path / "metrics.jsonl"
        _keep_lines(self._summary, lambda line: _epoch_of_row(line) < epoch, head=_csv_line(SUMMARY_COLUMNS).encode())
        _keep_lines(self._metrics, lambda line: _is_before(parse_record(line), epoch, step))

    def write_args(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Write `args.yaml`; `facts` (data, versions, device, …) become comments."""
        header = "".join(f"# {key}: {one_line(value)}\n" for key, value in facts.items())
        body = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(self.path / ARGS, header + body)

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint must not be ahead of them should the machine fail."""
        for path in (self._summary, self._metrics):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def add_epoch(self, row: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Add an epoch to `summary.csv` (SUMMARY_COLUMNS, blank where missing) and, with `more`, to `metrics.jsonl`."""
        fresh = not self._summary.exists() or not self._summary.stat().st_size
        _append(self._summary, (_csv_line(SUMMARY_COLUMNS) if fresh else "") + _csv_line(map(row.get, SUMMARY_COLUMNS)))
        self.add_metrics({"kind": "epoch", **row, **more})

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        _append(self._metrics, json.dumps(record) + "\n")


def add_bad_image(folder: Path, path: str, reason: str) -> None:
    """Add one line to `bad_images.csv`, unless it is there. Several ranks may: a short append is one write."""
    file, text = folder / "bad_images.csv", ""
    if file.exists():
        with file.open(encoding="utf-8", errors="replace", newline="") as written:
            text = written.read()
    line = _csv_line((path, reason))
    if f"\n{line}" not in text:
        _append(file, line if text else _csv_line(("path", "reason")) + line)


def one_line(value: object) -> str:
    """A value as text for one line: line ends and whatever else is not to be seen in it are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _is_before(record: Mapping[str, Any], epoch: int, step: int) -> bool:
    if record["epoch"] != epoch or record["kind"] == "epoch":
        return bool(record["epoch"] < epoch)
    return bool(record["step"] <= step)  # a line's step counts those done, that line's own included


def parse_record(line: bytes) -> dict[str, Any]:
    """A line of `metrics.jsonl`: its kind and epoch are there, and but for an epoch's own line its step.

    Raises:
        NotPlain: it is damaged.
    """
    record = bounded.parse_json(line)
    if not isinstance(record, dict) or not is_count(record.get("epoch")) or not isinstance(record.get("kind"), str):
        raise NotPlain("is no record of a run")
    if record["kind"] != "epoch" and not is_count(record.get("step")):
        raise NotPlain("is no record of a step")
    return record


def _epoch_of_row(line: bytes) -> int:
    epoch, *cells = line.decode("utf-8", "replace").rstrip("\r\n").split(",")
    if not re.fullmatch("[0-9]{1,10}", epoch) or len(cells) != len(SUMMARY_COLUMNS) - 1:
        raise NotPlain("is no row")
    for cell in filter(None, cells):
        try:
            float(cell)
        except ValueError as error:
            raise NotPlain("is no row of numbers") from error
    return int(epoch)


def _keep_lines(path: Path, keep: Callable[[bytes], bool], head: bytes = b"") -> None:
    """Drop the lines that `keep` is false for, and those that it cannot read; `head` comes before the others."""
    if not path.exists():
        return
    lines, damaged = list(bounded.read_lines(path)), 0
    kept = [head] if head else []
    for line in lines:
        try:
            if len(line) > bounded.MOST_BYTES:
                raise NotPlain("is too long")
            # a line without its end was cut off when the run was
            if line != head and line.endswith(b"\n") and keep(line):
                kept.append(line)
        except NotPlain:
            damaged += 1
    if damaged:
        log.warning(
            "%s: %s dropped", path, counted(damaged, "line that does not parse is", "lines that do not parse are")
        )
    if kept != lines:
        write_text(path, b"".join(kept).decode())


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise RsbdaliError(f"cannot write {path} ({error.strerror}): the last checkpoint is whole") from error


def _csv_line(values: Iterable[Any]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode("utf-8", "backslashreplace").decode()  # as it will be in the file


def read_args(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Facts and recipe keys of a run; both are empty where it has no `args.yaml`.

    Args:
        folder: the run's.

    Returns:
        The comments at the file's head by key, and the recipe as plain values (not checked: another version of rsbdali
        may have written it).

    Raises:
        RsbdaliError: the file is damaged.
    """
    path = folder / ARGS
    return read_args_file(path) if path.exists() else ({}, {})


def read_args_file(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Facts and recipe keys of a file that is like `args.yaml`, see `read_args`.

    Raises:
        RsbdaliError: the file is damaged.
    """
    try:
        return parse_args(bounded.read_text(path))
    except NotPlain as error:
        raise RsbdaliError(f"{path} {error}") from error


def parse_args(text: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Facts and recipe keys of the text of an `args.yaml`, see `read_args`.

    Raises:
        NotPlain: it is damaged.
    """
    recipe = bounded.parse_yaml(text)
    if not isinstance(recipe, dict):
        raise NotPlain("holds no settings")
    return _header(text), {str(key): value for key, value in recipe.items()}


def fact_count(facts: Mapping[str, str], key: str) -> int | None:
    """A whole number among the facts of a run; None where there is none."""
    return int(facts[key]) if re.fullmatch("[0-9]{1,10}", facts.get(key, "")) else None


def _header(text: str) -> dict[str, str]:
    facts = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        key, colon, value = line[2:].partition(": ")
        if colon:
            facts[key] = value
    return facts
