"""`replay`: what a run did."""

from pathlib import Path
from typing import Any

import click

from rsbdali.cli.options import DEVICE


@click.command()
@click.option("--run", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--step", type=click.IntRange(0), required=True, help="From 0; in --epoch, else over the whole run.")
@click.option("--epoch", type=click.IntRange(0), help="From 0.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lies now (default: where it lay).")
@click.option("--out", type=click.Path(path_type=Path), help="Picture to write (default: replay-….png in the folder).")
@click.option("--images", type=click.IntRange(1), default=12, show_default=True, help="Rows of the picture.")
@DEVICE
def replay(out: Path | None, images: int, **rest: Any) -> None:
    """The batch of one step of a run again: names, augmentation, pictures."""
    from rsbdali.errors import RecipeError
    from rsbdali.tools.replay import ReplayOptions
    from rsbdali.tools.replay import replay as again

    if out is not None and out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: the picture is a PNG, so the name must end in .png")
    found = again(ReplayOptions(**rest))
    for line in found.lines():
        click.echo(line)
    name = f"replay-{found.epoch}-{found.step}.png"
    click.echo(f"picture {found.draw(out or rest['run'] / name, images)}")
