"""`train` and `validate`."""

import sys
from pathlib import Path
from typing import Any

import click

from rsbdali.cli.data import make_demo
from rsbdali.cli.options import DATA, DEVICE, EXECUTOR, WORKERS, parse_overrides, recipe_options
from rsbdali.errors import RsbdaliError


@click.command()
@recipe_options
@DATA
@click.option("--demo", is_flag=True, help="Scale the recipe down, on a small made-up data set.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("output"), show_default=True)
@click.option("--experiment", help="Folder below --output (default: recipe and model, numbered).")
@click.option("--resume", metavar="auto|PATH", help="Go on from a checkpoint; auto: the experiment's newest whole one.")
@click.option("--checkpoint-every", metavar="500steps|10m", help="Save that often too, besides the ends of epochs.")
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="A loss that is not finite: stop and note the batch, or leave the step's update out.",
)
@click.option("--initial-checkpoint", type=click.Path(path_type=Path), help="Start from these weights.")
@click.option("--pretrained", is_flag=True, help="Start from timm's weights for the model.")
@DEVICE
@WORKERS
@EXECUTOR
@click.option("--tuned", is_flag=True, help="Run the loader as `rsbdali tune` found best on this machine.")
@click.option("--deterministic", is_flag=True, help="Bitwise repeatable steps, slower on a GPU.")
@click.option(
    "--torch-compile",
    default="off",
    show_default=True,
    type=click.Choice(["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]),
    help="Run the model through torch.compile in this mode.",
)
@click.option("--cuda-graph", is_flag=True, help="Capture the step into CUDA graphs and replay them (one GPU).")
@click.option("--max-bad-images", type=click.IntRange(0), help="Stop once more images than this do not decode.")
@click.option("--val-labels", type=click.Path(path_type=Path), help="Label file of a flat val folder (ImageNet's).")
@click.option("--class-map", type=click.Path(path_type=Path), help="Class names in label order, one a line (timm's).")
@click.option(
    "--log",
    "loggers",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="Send the figures there too (repeatable); needs the extra of that name.",
)
@click.option("--nproc", type=click.IntRange(1), default=1, help="Processes on this machine, one a GPU (torchrun's).")
@click.option("--affinity/--no-affinity", default=True, help="Keep each of several processes to its own cores.")
@click.option(
    "--rank-timeout",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=10.0,
    show_default=True,
    help="Minutes that processes wait for each other in a step.",
)
def train(recipe: str, overrides: tuple[str, ...], demo: bool, data: Path | None, nproc: int, **rest: Any) -> int:
    """Train a recipe: from a folder of images to a validated checkpoint."""
    from functools import partial

    from rsbdali.distributed.launch import launch
    from rsbdali.recipe import Recipe, demo_overrides
    from rsbdali.training.train import TrainOptions
    from rsbdali.training.train import train as run

    chosen = Recipe.load(recipe, {**(demo_overrides() if demo else {}), **parse_overrides(overrides)})
    if demo and data is None:
        data = rest["output"] / "demo-data"
        rest["prepare"] = partial(make_demo, data)
    if data is None:
        raise RsbdaliError("--data is missing: the folder with train/<class>/… and val/<class>/… (or use --demo)")
    if nproc > 1:
        return launch(nproc, sys.argv[1:], rest["device"])
    summary = run(TrainOptions(recipe=chosen, data=data, **rest))
    for line in summary.lines():
        click.echo(line)
    return summary.exit_code


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A checkpoint that `rsbdali train` wrote.")
@click.option("--model", help="A timm model instead of a checkpoint.")
@click.option("--pretrained", is_flag=True, help="With --model: timm's weights.")
@click.option("--recipe", help="Settings of the evaluation (default: the checkpoint's own, else a3).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
@DATA
@DEVICE
@WORKERS
@click.option("--batch-size", type=click.IntRange(1), help="Images a batch (default: 256 on a GPU, 64 on a CPU).")
@click.option("--val-labels", type=click.Path(path_type=Path), help="Label file of a flat val folder (ImageNet's).")
@click.option("--class-map", type=click.Path(path_type=Path), help="Class names in label order, one a line (timm's).")
def validate(overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Top-1, top-5 and loss over exactly all validation images."""
    from rsbdali.distributed.world import World
    from rsbdali.training.validate import ValidateOptions
    from rsbdali.training.validate import validate as run

    if data is None:
        raise RsbdaliError("--data is missing: the folder with val/<class>/…")
    result = run(ValidateOptions(data=data, overrides=parse_overrides(overrides), **rest))
    if World.from_env().is_rank_zero:
        click.echo(result.line())
