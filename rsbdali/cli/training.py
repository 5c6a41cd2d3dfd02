"""`train` and `validate`."""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from rsbdali.cli.completion import complete_recipes
from rsbdali.cli.data import make_demo
from rsbdali.cli.help import command
from rsbdali.cli.options import (
    CLASS_MAP,
    COMPILE_MODES,
    DATA,
    DEVICE,
    PATH,
    RECIPE_GIVEN,
    VAL_LABELS,
    WORKERS,
    decode_options,
    out_option,
    parse_overrides,
    recipe_options,
)
from rsbdali.cli.recipe_keys import key_options
from rsbdali.errors import RecipeError, RsbdaliError, counted

EXAMPLES = """\
rsbdali train a3 --data IMAGENET --nproc 4
rsbdali train a3 --data FOLDER --model resnet18 --batch-size 64 --lr auto
rsbdali train --resume output/a3-resnet50
"""
log = logging.getLogger(__name__)


@command("train", epilog=EXAMPLES)
@recipe_options
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    show_default="the recipe's global batch, shared",
    help="Rows of each GPU and step: the global batch is this times the processes.",
)
@DATA
@click.option("--demo", is_flag=True, help="Scale the recipe down, on a small made-up data set.")
@out_option("output", "Folder of all experiments (--output is timm's name for it).", "--output", "output")
@click.option("--experiment", show_default="recipe and model, numbered", help="Folder below --out.")
@click.option(
    "--resume",
    metavar="RUN|FILE|auto",
    help="Go on with a run: RUN is its folder; FILE a checkpoint; auto: the experiment's newest whole one, if there "
    "is one. Recipe, data and options are the run's own but for what is given.",
)
@click.option(
    "--checkpoint-every",
    metavar="500steps|10m",
    show_default="ends of epochs alone",
    help="Save that often too, besides the ends of epochs.",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    help="A loss that is not finite: stop and note the batch, or leave the step's update out.",
)
@click.option("--initial-checkpoint", type=PATH, show_default="random weights", help="Start from these weights.")
@click.option("--pretrained", is_flag=True, help="Start from timm's weights for the model.")
@DEVICE
@WORKERS
@decode_options
@click.option("--tuned/--no-tuned", help="Run the loader as `rsbdali tune` found best on this machine.")
@click.option("--deterministic/--no-deterministic", help="Bitwise repeatable steps, slower on a GPU.")
@click.option(
    "--torch-compile",
    default="off",
    metavar="MODE",
    type=click.Choice(COMPILE_MODES),
    help=f"Run the model through torch.compile: {', '.join(COMPILE_MODES)}.",
)
@click.option("--cuda-graph/--no-cuda-graph", help="Capture the step into CUDA graphs and replay them (one GPU).")
@click.option(
    "--max-bad-images",
    type=click.IntRange(0),
    show_default="no limit",
    help="Stop once more images than this do not decode.",
)
@VAL_LABELS
@CLASS_MAP
@click.option(
    "--log",
    "loggers",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    show_default="files alone",
    help="Send the figures there too (repeatable); needs that package.",
)
@click.option("--nproc", type=click.IntRange(1), default=1, help="Processes on this machine, one a GPU (torchrun's).")
@click.option("--affinity/--no-affinity", default=True, help="Keep each of several processes to its own cores.")
@click.option(
    "--rank-timeout",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=10.0,
    help="Minutes that processes wait for each other in a step.",
)
@click.pass_context
def train(
    context: click.Context,
    recipe: str,
    overrides: tuple[str, ...],
    batch_size: int | None,
    demo: bool,
    **rest: Any,
) -> int:
    """Train a recipe: from a folder of images to a validated checkpoint."""
    from functools import partial

    from rsbdali.cli import resuming
    from rsbdali.distributed.launch import launch
    from rsbdali.recipe import Recipe, demo_overrides
    from rsbdali.runs import resumed_run
    from rsbdali.training.options import TrainOptions
    from rsbdali.training.train import train as run

    changed = parse_overrides(overrides)
    load = partial(Recipe.load, recipe, {**(demo_overrides() if demo else {}), **changed})
    before = resumed_run.run_of(rest["resume"], rest["output"], rest["experiment"], load)
    if before is None:
        chosen = load()
    else:
        named = context.meta[RECIPE_GIVEN] or demo
        chosen = resumed_run.same_recipe(before, load()) if named else resumed_run.recipe_of(before, changed)
        rest = resuming.options_of(before, context, rest)
    data, nproc = rest.pop("data"), rest.pop("nproc")
    if batch_size is not None:
        chosen = rows_a_gpu(chosen, batch_size, nproc, changed)
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


def rows_a_gpu(recipe: Any, rows: int, nproc: int, given: dict[str, str]) -> Any:
    """The recipe with a global batch of so many rows for each process, which is said.

    Raises:
        RecipeError: another global batch is given too.
    """
    from rsbdali.distributed.world import World

    world = World.from_env()
    ranks = max(world.size, nproc)
    total = rows * ranks
    if given.get("global_batch_size", str(total)) != str(total):
        other = given["global_batch_size"]
        raise RecipeError(
            f"--batch-size {rows} is a global batch of {counted(total, 'row')} here, and {other} is given: give one"
        )
    if world.size > 1 or nproc == 1:  # else the ranks say it
        log.info("batch: %s × %s = global_batch_size %d", counted(rows, "row"), counted(ranks, "rank"), total)
    return recipe.with_overrides({"global_batch_size": total, **({"lr": "auto"} if given.get("lr") == "auto" else {})})


@command("validate")
@click.option("--checkpoint", type=PATH, help="A checkpoint that `rsbdali train` wrote.")
@click.option("--model", help="A timm model instead of a checkpoint.")
@click.option("--pretrained", is_flag=True, help="With --model: timm's weights.")
@click.option(
    "--recipe",
    is_eager=True,
    shell_complete=complete_recipes,
    show_default="the checkpoint's own, else a3",
    help="Settings of the evaluation.",
)
@key_options(without=("model",))
@DATA
@DEVICE
@WORKERS
@click.option(
    "--batch-size", type=click.IntRange(1), show_default="256 on a GPU, 64 on a CPU", help="Images of a batch."
)
@VAL_LABELS
@CLASS_MAP
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
