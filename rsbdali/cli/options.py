"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rsbdali.errors import RecipeError


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
    """--recipe and --set, on every command that takes a recipe."""
    function = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")(
        function
    )
    return click.option("--recipe", default="a3", show_default=True, help="a1, a2, a3 or the path of a .yaml file.")(
        function
    )


DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with train/ and val/ (or shards, tables, …), or its URL."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
WORKERS = click.option("--workers", "-j", type=click.IntRange(1), help="CPU threads of the loader (default: all).")
_DECODE = click.option(
    "--decode",
    type=click.Choice(["auto", "gpu", "gpu-roi", "cpu"]),
    default="auto",
    show_default=True,
    help="Where images are decoded and resized; gpu-roi: the crop's region alone. Modes differ in pixels.",
)
_HW_DECODER_LOAD = click.option(
    "--hw-decoder-load",
    type=click.FloatRange(0, 1),
    help="Share of the JPEGs for the GPU's JPEG engine (default: DALI's 0.65).",
)


def decode_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--decode and --hw-decoder-load, on every command that makes training batches."""
    return _DECODE(_HW_DECODER_LOAD(function))
