"""The settings of a run before it was resumed with others: which ones a step had.

    args-until-3-120.yaml     the `args.yaml` of all steps before step 120 of epoch 3, both counted from 0
    args.yaml                 of all steps behind the last of them

A step's settings are in the file with the smallest position behind the step, else in `args.yaml`. A resume from an
earlier checkpoint does steps again, by its own settings: files of later positions are dropped, as lines of metrics are.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsbdali.atomic import write_text
from rsbdali.bounded import NotPlain, read_text
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import ARGS, one_line, parse_args, read_args_file

Position = tuple[int, int]  # epoch and step, from 0
# facts that decide what is in a batch; where the data is does not, and classes stay
FACTS = ("decode", "hw_decoder_load", "train_images", "train_digest", "steps_per_epoch")
MOST_DIGITS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What some consecutive steps of a run were made by.

    Attributes:
        path: its file.
        until: first position behind them; None: to the run's end.
        facts: comments at the file's head, by key.
        recipe: plain values, not checked.
    """

    path: Path
    until: Position | None
    facts: Mapping[str, str]
    recipe: Mapping[str, Any]


def read_history(folder: Path) -> list[Settings]:
    """All settings of a run in the order of its steps, the current ones last; none without an `args.yaml`.

    Raises:
        RsbdaliError: a file is damaged.
    """
    if not (folder / ARGS).exists():
        return []
    files = [*sorted(_earlier(folder).items()), (None, folder / ARGS)]
    return [Settings(path, until, *read_args_file(path)) for until, path in files]


def settings_at(history: Sequence[Settings], position: Position) -> Settings:
    """The settings of the step at a position."""
    return next(each for each in history if each.until is None or position < each.until)


def position_of(history: Sequence[Settings], step: int) -> Position:
    """Epoch and step of a step that is counted over the whole run, from 0.

    Raises:
        RsbdaliError: a file does not say how many steps its epochs have.
    """
    begin = 0
    for each in history:
        steps = _steps_per_epoch(each)
        # an epoch is as long as at its first step: the batch can change only between epochs
        end = None if each.until is None else each.until[0] + (each.until[1] > 0)
        if end is None or step < (end - begin) * steps:
            return begin + step // steps, step % steps
        step -= max(0, end - begin) * steps
        begin = max(begin, end)
    raise AssertionError("the last settings have no end")


def _steps_per_epoch(settings: Settings) -> int:
    text = settings.facts.get("steps_per_epoch", "")
    if not re.fullmatch(f"[1-9][0-9]{{0,{MOST_DIGITS - 1}}}", text):
        raise RsbdaliError(f"{settings.path} does not say how many steps an epoch has: say the epoch (--epoch)")
    return int(text)


def keep_earlier(
    folder: Path, position: Position, recipe: Recipe, facts: Mapping[str, Any], *, source: Path | None = None
) -> None:
    """Keep the settings of the steps before `position`, where they differ from those that it goes on with.

    To be called before `args.yaml` is written anew.

    Args:
        folder: of the run.
        position: that the run begins at or goes on at.
        recipe: from there on.
        facts: from there on, as for `RunFolder.write_args`.
        source: folder of the run that it goes on from; None: this one.

    Raises:
        OSError: a file cannot be written.
    """
    kept = _texts_before(source or folder, position)
    if position in kept and _is_same(kept[position], recipe, facts):
        del kept[position]
    for until, text in kept.items():
        write_text(folder / _name(until), text)
    for until, path in _earlier(folder).items():
        if until not in kept:
            path.unlink()


def _texts_before(folder: Path, position: Position) -> dict[Position, str]:
    """Files of a run by position, cut off at one: what was in force there ends there."""
    earlier = _earlier(folder)
    files = {until: path for until, path in earlier.items() if until < position}
    if position > (0, 0):
        behind = min((until for until in earlier if until >= position), default=None)
        files[position] = folder / ARGS if behind is None else earlier[behind]
    texts = {}
    for until, path in files.items():
        try:
            if path.exists():
                texts[until] = read_text(path)
        except NotPlain as error:  # training goes on: only a replay would read it
            log.warning("%s %s: settings of earlier steps are lost", path, error)
    return texts


def _is_same(text: str, recipe: Recipe, facts: Mapping[str, Any]) -> bool:
    try:
        old_facts, old = parse_args(text)
    except NotPlain:
        return False
    same_facts = all(old_facts.get(key) == (one_line(facts[key]) if key in facts else None) for key in FACTS)
    # a key that an earlier version did not know had its default
    return same_facts and {**Recipe().to_dict(), **old} == recipe.to_dict()


def _earlier(folder: Path) -> dict[Position, Path]:
    found = {}
    for path in folder.glob("args-until-*.yaml"):
        if name := re.fullmatch(rf"args-until-([0-9]{{1,{MOST_DIGITS}}})-([0-9]{{1,{MOST_DIGITS}}})\.yaml", path.name):
            found[int(name[1]), int(name[2])] = path
    return found


def _name(until: Position) -> str:
    return f"args-until-{until[0]}-{until[1]}.yaml"
