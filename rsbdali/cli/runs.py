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


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
def report_command(runs: tuple[Path, ...], output: Path) -> None:
    """Draw RUNS (folders of `rsbdali train`) side by side: curves, settings that differ, machines, checkpoints."""
    from rsbdali.runs.report.page import write_report

    write_report(runs, output)
    click.echo(f"wrote {output}")


@click.command("export")
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="A checkpoint that `rsbdali train` wrote."
)
@click.option(
    "--format",
    required=True,
    type=click.Choice(["safetensors", "onnx", "timm", "hf"]),
    help="timm: a folder for create_model('local-dir:…'); hf: the same with a model card.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--ema/--no-ema", "use_ema", default=None, help="Averaged weights or not (default: where there are some)."
)
def export_command(**options: Any) -> None:
    """Write a checkpoint's model as safetensors, ONNX, a timm folder or a Hugging Face one."""
    from rsbdali.tools.export.export import ExportOptions, export

    for line in export(ExportOptions(**options)):
        click.echo(line)
