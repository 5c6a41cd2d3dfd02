"""Options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rsbdali.cli.completion import complete_recipes
from rsbdali.cli.recipe_keys import DEFAULT, key_options
from rsbdali.errors import RecipeError

COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
RECIPE_GIVEN = "rsbdali.recipe_given"  # in a context's meta: whether a recipe was named, or is the default


class FilePath(click.Path):
    """A path; `~` is expanded where the shell did not (`--data=~/images`)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, with the home folder in place of `~`."""
        path = Path(str(super().convert(value, param, ctx)))
        return path.expanduser() if str(path).startswith("~") else path


PATH = FilePath()


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, str]:
    """`key=value` pairs of --set as a dictionary."""
    overrides = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {pair}: expected key=value, for example --set epochs=10")
        overrides[key.strip()] = value
    return overrides


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe as an argument or by --recipe, and its keys: on every command that takes a recipe."""

    @functools.wraps(function)
    def call(*args: Any, recipe_name: str | None, recipe: str | None, **rest: Any) -> Any:
        chosen = _one_of(recipe_name, recipe)
        click.get_current_context().meta[RECIPE_GIVEN] = chosen is not None
        return function(*args, recipe=chosen or DEFAULT, **rest)

    return NAME(RECIPE(key_options()(call)))


def _one_of(argument: str | None, option: str | None) -> str | None:
    if argument is None or option is None or argument.lower() == option.lower():
        return _no_folder(argument or option)
    raise RecipeError(f"{argument} and --recipe {option} differ: give one recipe")


def _no_folder(recipe: str | None) -> str | None:
    if recipe is not None and not recipe.endswith((".yaml", ".yml")) and Path(recipe).is_dir():
        raise RecipeError(f"{recipe} is a folder, and no recipe: --data {recipe} trains on it")
    return recipe


def out_option(default: str | None, text: str, *more: str, **settings: Any) -> Callable[..., Any]:
    """-o/--out: where a command writes."""
    names = ["-o", "--out", *more]
    given: dict[str, Any] = {"default": Path(default)} if default else {}
    return click.option(*names, type=PATH, help=text, **given, **settings)


NAME = click.argument("recipe_name", metavar="[RECIPE]", required=False, is_eager=True, shell_complete=complete_recipes)
RECIPE = click.option(
    "--recipe",
    metavar="RECIPE",
    is_eager=True,
    show_default=DEFAULT,
    shell_complete=complete_recipes,
    help="a1, a2, a3 or the path of a .yaml file.",
)
DATA = click.option("--data", type=PATH, help="Folder with train/ and val/ (or shards, tables, …), or its URL.")
VAL_LABELS = click.option("--val-labels", type=PATH, help="Label file of a flat val folder (ImageNet's).")
CLASS_MAP = click.option(
    "--class-map",
    type=PATH,
    show_default="the training set's folders",
    help="Class names in label order, one a line (timm's).",
)
DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
WORKERS = click.option(
    "--workers", "-j", type=click.IntRange(1), show_default="all cores", help="CPU threads of the loader."
)
_DECODE = click.option(
    "--decode",
    type=click.Choice(["auto", "gpu", "gpu-roi", "cpu"]),
    default="auto",
    help="Where images are decoded and resized; gpu-roi: the crop's region alone. Modes differ in pixels.",
)
_HW_DECODER_LOAD = click.option(
    "--hw-decoder-load",
    type=click.FloatRange(0, 1),
    show_default="DALI's 0.65",
    help="Share of the JPEGs for the GPU's JPEG engine.",
)


def decode_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--decode and --hw-decoder-load, on every command that makes training batches."""
    return _DECODE(_HW_DECODER_LOAD(function))
