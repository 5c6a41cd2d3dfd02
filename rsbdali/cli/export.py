"""`export`: a checkpoint in a form that others read."""

from pathlib import Path
from typing import Any

import click


@click.command("export")
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="A checkpoint that `rsbdali train` wrote."
)
@click.option(
    "--format", required=True, type=click.Choice(["safetensors", "onnx", "timm", "hf"]),
    help="timm: a folder for create_model('local-dir:…'); hf: the same with a model card.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--ema/--no-ema", "use_ema", default=None, help="Averaged weights or not (default: where there are some)."
)
def export_command(**options: Any) -> None:
    """Write a checkpoint's model as safetensors, ONNX, a timm folder or a Hugging Face one."""
    from rsbdali.tools.export.export import ExportOptions, export

    for line in export(ExportOptions(**options)):
        click.echo(line)
