"""`replay`: what a run did."""

from pathlib import Path
from typing import Any

import click

from rsbdali.cli.help import command
from rsbdali.cli.options import DEVICE, PATH, out_option
from rsbdali.errors import counted


@command("replay")
@click.option("--run", type=PATH, required=True, help="The run's folder.")
@click.option(
    "--step",
    type=click.IntRange(1),
    required=True,
    help="Counted from 1, as the run's lines count: in --epoch, else over the whole run.",
)
@click.option("--epoch", type=click.IntRange(1), show_default="from --step", help="Counted from 1.")
@click.option("--data", type=PATH, show_default="where it was", help="Where the data is now.")
@out_option(None, "Picture to write (PNG); a CSV of that name gets all rows.", show_default="replay-….png in the run")
@click.option("--images", type=click.IntRange(1), default=12, help="Rows that are drawn and printed.")
@DEVICE
def replay(out: Path | None, images: int, step: int, epoch: int | None, **rest: Any) -> None:
    """The batch of one step of a run again, by the settings it had then: names, augmentation, pictures."""
    from rsbdali.errors import RecipeError
    from rsbdali.progress_bar import waiting
    from rsbdali.tools.replay import ReplayOptions
    from rsbdali.tools.replay import replay as again

    if out is not None and out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: the picture is a PNG, so the name must end in .png")
    with waiting("replay"):
        found = again(ReplayOptions(step=step - 1, epoch=None if epoch is None else epoch - 1, **rest))
    lines = found.lines()
    for line in lines[:images]:
        click.echo(line)
    picture = found.draw(out or rest["run"] / f"replay-epoch{found.epoch + 1}-step{found.step + 1}.png", images)
    click.echo(f"picture {picture}")
    click.echo(f"all {counted(len(lines), 'row')}: {found.write_csv(picture.with_suffix('.csv'))}")


@command("report")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@out_option("report.html", "Page to write.")
def report_command(runs: tuple[Path, ...], out: Path) -> None:
    """Draw RUNS (folders of `rsbdali train`) side by side: curves, settings that differ, machines, checkpoints."""
    from rsbdali.runs.report.page import write_report

    write_report(runs, out)
    click.echo(f"wrote {out}")


@command("export")
@click.option("--checkpoint", required=True, type=PATH, help="A checkpoint that `rsbdali train` wrote.")
@click.option(
    "--format",
    required=True,
    type=click.Choice(["safetensors", "onnx", "timm", "hf"]),
    help="timm: a folder for create_model('local-dir:…'); hf: the same with a model card.",
)
@out_option(None, "Folder to make.", required=True)
@click.option(
    "--ema/--no-ema", "use_ema", default=None, show_default="where there are some", help="Averaged weights or not."
)
def export_command(**options: Any) -> None:
    """Write a checkpoint's model as safetensors, ONNX, a timm folder or a Hugging Face one."""
    from rsbdali.progress_bar import waiting
    from rsbdali.tools.export.export import ExportOptions, export

    with waiting(f"export: {options['format']}"):
        lines = export(ExportOptions(**options))
    for line in lines:
        click.echo(line)
