"""`train --resume RUN`: recipe, data and options from the run's own `args.yaml`; what is given besides overrides it."""

import logging
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rsbdali.distributed.world import World
from rsbdali.errors import RecipeError, RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import ARGS, choose_folder, read_args, resumed_folder
from rsbdali.runs.resume_command import read_options

log = logging.getLogger(__name__)


def run_of(resume: str | None, output: Path, experiment: str | None, recipe: Recipe) -> Path | None:
    """The folder of the run that `--resume` means, where it has an `args.yaml`.

    Raises:
        RsbdaliError: a folder was named that is not there, or no run's.
    """
    if resume is None:
        return None
    if resume != "auto" and not Path(resume).suffix and not Path(resume).exists():
        raise RsbdaliError(f"{resume}: there is no such run")
    folder = resumed_folder(resume) or choose_folder(output, experiment, recipe, resume=resume)
    if (folder / ARGS).exists():
        return folder
    if Path(resume).is_dir():
        raise RsbdaliError(f"{resume} is no run's folder: it holds no {ARGS}{_near(Path(resume))}")
    return None


def _near(folder: Path) -> str:
    runs = sorted(path.parent for path in folder.glob(f"*/{ARGS}"))
    return f", but {runs[0]} is one" if runs else ""


def recipe_of(run: Path, overrides: dict[str, str]) -> Recipe:
    """The run's recipe, with some keys set otherwise."""
    return Recipe.from_dict(read_args(run)[1]).with_overrides(overrides)


def same_recipe(run: Path, given: Recipe) -> Recipe:
    """A recipe that was named besides the run.

    Raises:
        RecipeError: the run is of another one.
    """
    name = read_args(run)[1].get("name")
    if name != given.name:
        raise RecipeError(
            f"{run} is a run of {name}, not of {given.name}: leave the recipe out, and give the keys that shall change "
            "(--lr …); or start a new run from its weights, --initial-checkpoint"
        )
    return given


def options_of(run: Path, context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line: those that were not given are the run's.

    Args:
        run: its folder.
        context: of the command.
        given: all options by name, defaults among them.
    """
    params = {str(param.name): param for param in context.command.params}
    options, said = dict(given), []
    for name, value in read_options(run).items():
        if name not in options or (name == "nproc" and _is_rank()):
            continue
        before = None if value is None else params[name].type_cast_value(context, value)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            options[name] = before
        elif before != options[name]:
            said.append(f"{params[name].opts[0]} {options[name]} (before: {before})")
    if World.from_env().is_rank_zero and (options.get("nproc", 1) == 1 or _is_rank()):
        log.info("%s: recipe, data and options as before%s", run, f", but for {', '.join(said)}" if said else "")
    return options


def _is_rank() -> bool:
    return "RANK" in os.environ or World.from_env().size > 1
