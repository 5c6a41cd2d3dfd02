"""`rsbdali.train(…)`: a run from a program or a notebook, as `rsbdali train` makes it from a shell."""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack, get_type_hints

from rsbdali.bounded import shown
from rsbdali.errors import RecipeError, RsbdaliError, nearest
from rsbdali.recipe import Recipe
from rsbdali.runs.resume_command import read_options
from rsbdali.runs.resumed_run import recipe_of, run_of, same_recipe
from rsbdali.training.arguments import TrainArguments
from rsbdali.training.options import TrainOptions
from rsbdali.training.summary import TrainSummary
from rsbdali.training.train import train as run

OPTIONS = {f.name: f for f in dataclasses.fields(TrainOptions) if f.name != "recipe"}
PATHS = [name for name, hint in get_type_hints(TrainOptions).items() if hint in (Path, Path | None)]


def train(
    recipe: str | Recipe | None = None,
    data: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    **more: Unpack[TrainArguments],
) -> TrainSummary:
    """Train, and give back how it went; figures and checkpoints are in the summary's folder.

    One process: more of them are torchrun's to start (docs/CLUSTERS.md). In a notebook, interrupting the kernel ends
    the step, saves and returns.

    Args:
        recipe: name, path, or `Recipe`; None: the resumed run's, else a3.
        data: folder with train/<class>/… and val/<class>/…, or another source; None: the resumed run's.
        resume: a run's folder, a checkpoint, or 'auto'; what is not given besides is the run's own.
        **more: options by the names of `TrainOptions` (output, device, workers, …), and recipe keys (epochs, lr, …).

    Raises:
        RsbdaliError: something given cannot work, or there is no such argument; one line says why.
    """
    keys = {name: value for name, value in more.items() if name not in OPTIONS}
    _check_names(keys)
    given: dict[str, Any] = {name: value for name, value in more.items() if name in OPTIONS}
    load = partial(_recipe, "a3" if recipe is None else recipe, keys)
    resume = None if resume is None else str(resume)
    before = run_of(resume, Path(given.get("output", OPTIONS["output"].default)), given.get("experiment"), load)
    if before is None:
        chosen = load()
    elif recipe is None:
        chosen = recipe_of(before, keys)
    else:
        chosen = same_recipe(before, load())
    options = {**_of_run(before), **given, **({} if data is None else {"data": data})}
    if "data" not in options:
        raise RsbdaliError("data is missing: the folder with train/<class>/… and val/<class>/…")
    options |= {name: Path(options[name]).expanduser() for name in PATHS if options.get(name) is not None}
    with _shown():
        return run(TrainOptions(recipe=chosen, resume=resume, **options))


def _recipe(recipe: str | Recipe, keys: dict[str, Any]) -> Recipe:
    if not isinstance(recipe, str | Recipe):
        raise RecipeError(f"recipe={shown(recipe)}: expected a name, a path or a Recipe")
    return Recipe.load(recipe, keys) if isinstance(recipe, str) else recipe.with_overrides(keys)


def _check_names(keys: dict[str, Any]) -> None:
    known = [*OPTIONS, *(f.name for f in dataclasses.fields(Recipe))]
    for name in keys:
        if name not in known:
            raise RecipeError(f"train has no argument {name!r}{nearest(name, known)}")


def _of_run(folder: Path | None) -> dict[str, Any]:
    """The options of the run that is taken up."""
    if folder is None:
        return {}
    options = {name: value for name, value in read_options(folder).items() if name in OPTIONS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


@contextmanager
def _shown() -> Iterator[None]:
    """The run's lines on standard output, where the program has not said where its log goes."""
    log = logging.getLogger("rsbdali")
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
