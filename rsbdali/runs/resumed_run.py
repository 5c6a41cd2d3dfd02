"""The run that a resume means, and its recipe: what a shell and a program ask alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rsbdali.errors import RecipeError, RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import ARGS, choose_folder, read_args, resumed_folder


def run_of(resume: str | None, output: Path, experiment: str | None, load_recipe: Callable[[], Recipe]) -> Path | None:
    """The folder of the run that `resume` means, where it has an `args.yaml`.

    Args:
        resume: a run's folder, a checkpoint, 'auto', or None.
        output: folder of all experiments.
        experiment: name of this one.
        load_recipe: called for 'auto' alone, whose folder may go by the recipe's name.

    Raises:
        RsbdaliError: a folder was named that is not there, or no run's.
    """
    if resume is None:
        return None
    if resume != "auto" and not Path(resume).suffix and not Path(resume).exists():
        raise RsbdaliError(f"{resume}: there is no such run")
    folder = resumed_folder(resume) or choose_folder(output, experiment, load_recipe(), resume=resume)
    if (folder / ARGS).exists():
        return folder
    if Path(resume).is_dir():
        raise RsbdaliError(f"{resume} is no run's folder: it holds no {ARGS}{_near(Path(resume))}")
    return None


def _near(folder: Path) -> str:
    runs = sorted(path.parent for path in folder.glob(f"*/{ARGS}"))
    return f", but {runs[0]} is one" if runs else ""


def recipe_of(run: Path, overrides: Mapping[str, Any]) -> Recipe:
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
