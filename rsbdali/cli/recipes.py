"""`recipe list` and `recipe show`."""

import sys

import click
from rich.console import Console

from rsbdali.cli.completion import complete_recipes
from rsbdali.cli.help import Group, command
from rsbdali.cli.options import parse_overrides
from rsbdali.cli.recipe_keys import key_options


@click.group(cls=Group)
def recipe() -> None:
    """List and show recipes."""


@command("list")
def recipe_list() -> None:
    """The recipes that come with rsbdali."""
    from rich.table import Table

    from rsbdali.recipe import Recipe, recipe_names

    heads = "recipe", "model", "train → test px", "epochs", "batch", "reported top-1", "hours", "hardware"
    table = Table(*heads, box=None)
    for name in recipe_names():
        r = Recipe.load(name)
        sizes = f"{r.train_size[0]} → {r.test_size[0]}"
        reported = r.reported
        table.add_row(
            name,
            r.model,
            sizes,
            str(r.epochs),
            str(r.global_batch_size),
            f"{reported.top1} %",
            "–" if reported.hours is None else f"{reported.hours:g}",
            reported.hardware,
        )
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


@command("show")
@click.argument("recipe_name", metavar="RECIPE", is_eager=True, shell_complete=complete_recipes)
@key_options()
@click.option("--as", "form", type=click.Choice(["yaml", "timm"]), default="yaml", help="timm: for its train.py -c.")
@click.option("--world-size", type=click.IntRange(1), default=1, help="GPUs, for --as timm.")
def recipe_show(recipe_name: str, overrides: tuple[str, ...], form: str, world_size: int) -> None:
    """Print a recipe: as it is resolved, or as a file for timm's train.py."""
    import yaml

    from rsbdali.integrations.timm_arguments import timm_yaml
    from rsbdali.recipe import Recipe

    chosen = Recipe.load(recipe_name, parse_overrides(overrides))
    if form == "timm":
        click.echo(timm_yaml(chosen, world_size), nl=False)
    else:
        click.echo(yaml.safe_dump(chosen.to_dict(), sort_keys=False, allow_unicode=True), nl=False)


recipe.add_command(recipe_list)
recipe.add_command(recipe_show)
