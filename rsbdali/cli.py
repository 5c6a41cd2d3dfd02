"""The command line: parse, call, print. Mistakes of the user end in one line and exit code 2; `--debug` shows more."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler

from rsbdali import __version__
from rsbdali.errors import RecipeError, RsbdaliError

USER_MISTAKE = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit; the `rsbdali` script."""
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    _set_up_logging(debug)
    # read by torch when imported: its CPU threads would spin while they wait, on cores that the loader needs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        sys.exit(cli(arguments, prog_name="rsbdali", standalone_mode=False) or 0)
    except RsbdaliError as error:
        _fail(str(error), USER_MISTAKE, debug)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug)
    except click.Abort:
        _fail("interrupted", INTERRUPTED, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _set_up_logging(debug: bool) -> None:
    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=debug, show_time=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("rsbdali").addHandler(handler)
    logging.getLogger("rsbdali").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rsbdali")
def cli() -> None:
    """ResNet Strikes Back (A1, A2, A3) at the speed of the GPU.

    Add --debug to any command to see a traceback.
    """


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


DATA = click.option("--data", type=click.Path(path_type=Path), help="Folder with train/<class>/… and val/<class>/….")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
WORKERS = click.option("--workers", "-j", type=click.IntRange(1), help="CPU threads of the loader (default: all).")
EXECUTOR = click.option(
    "--executor", type=click.Choice(["auto", "graph", "host"]), default="auto", show_default=True,
    help="graph: all in DALI; host: DALI decodes, the CPU's threads do the rest.",
)  # fmt: skip


@cli.command()
@recipe_options
@DATA
@click.option("--demo", is_flag=True, help="Scale the recipe down, on a small made-up data set.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("output"), show_default=True)
@click.option("--experiment", help="Folder below --output (default: recipe and model, numbered).")
@click.option("--resume", metavar="auto|PATH", help="Go on from a checkpoint; auto: the experiment's last.")
@click.option("--initial-checkpoint", type=click.Path(path_type=Path), help="Start from these weights.")
@click.option("--pretrained", is_flag=True, help="Start from timm's weights for the model.")
@DEVICE
@WORKERS
@EXECUTOR
@click.option("--deterministic", is_flag=True, help="Bitwise repeatable steps, slower on a GPU.")
@click.option("--max-bad-images", type=click.IntRange(0), help="Stop once more images than this do not decode.")
@click.option("--val-labels", type=click.Path(path_type=Path), help="Label file of a flat val folder (ImageNet's).")
@click.pass_context
def train(
    ctx: click.Context, recipe: str, overrides: tuple[str, ...], demo: bool, data: Path | None, **rest: Any
) -> int:  # fmt: skip
    """Train a recipe: from a folder of images to a validated checkpoint."""
    from rsbdali.recipe import Recipe, demo_overrides
    from rsbdali.trainer import TrainOptions
    from rsbdali.trainer import train as run

    chosen = Recipe.load(recipe, {**(demo_overrides() if demo else {}), **parse_overrides(overrides)})
    if demo and data is None:
        data = rest["output"] / "demo-data"
        ctx.invoke(demo_data, folder=data)
    if data is None:
        raise RsbdaliError("--data is missing: the folder with train/<class>/… and val/<class>/… (or use --demo)")
    summary = run(TrainOptions(recipe=chosen, data=data, **rest))
    for line in summary.lines():
        click.echo(line)
    return summary.exit_code


@cli.command()
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
def validate(overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Top-1, top-5 and loss over exactly all validation images."""
    from rsbdali.distributed import World
    from rsbdali.validate import ValidateOptions
    from rsbdali.validate import validate as run

    if data is None:
        raise RsbdaliError("--data is missing: the folder with val/<class>/…")
    result = run(ValidateOptions(data=data, overrides=parse_overrides(overrides), **rest))
    if World.from_env().is_primary:
        click.echo(result.line())


@cli.command("index")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--workers", "-j", type=click.IntRange(1), help="Threads of the scan (default: all cores).")
@click.option("--rebuild", is_flag=True, help="Scan again, even where the cache still fits.")
def index_command(folder: Path, workers: int | None, rebuild: bool) -> None:
    """Scan FOLDER (or its train and val folders): counts, sizes, formats, and every file that is no image."""
    from rsbdali.index_report import report

    report(Console(), folder, threads=workers, rebuild=rebuild)


@cli.group()
def recipe() -> None:
    """List and show recipes."""


@recipe.command("list")
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
            name, r.model, sizes, str(r.epochs), str(r.global_batch_size), f"{reported.top1} %", f"{reported.hours:g}",
            reported.hardware,
        )  # fmt: skip
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


@recipe.command("show")
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
@click.option("--as", "form", type=click.Choice(["yaml", "timm"]), default="yaml", show_default=True)
@click.option("--world-size", type=click.IntRange(1), default=1, show_default=True, help="GPUs, for --as timm.")
def recipe_show(name: str, overrides: tuple[str, ...], form: str, world_size: int) -> None:
    """Print a recipe: as it is resolved, or as a file for timm's train.py."""
    import yaml

    from rsbdali.recipe import Recipe
    from rsbdali.timm_args import timm_yaml

    chosen = Recipe.load(name, parse_overrides(overrides))
    if form == "timm":
        click.echo(timm_yaml(chosen, world_size), nl=False)
    else:
        click.echo(yaml.safe_dump(chosen.to_dict(), sort_keys=False, allow_unicode=True), nl=False)


@cli.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def demo_data(folder: Path, seed: int = 0) -> None:
    """Make a small data set of real JPEGs in FOLDER: ten classes of shapes and textures."""
    from rsbdali.demo import make_demo_data

    made = make_demo_data(folder, seed=seed)
    click.echo(f"demo data in {folder}: {made}")


@cli.command("bench-loader")
@recipe_options
@DATA
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@WORKERS
@DEVICE
@EXECUTOR
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="A round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved with the peers'.")
@click.option("--peers", help="Comma-separated: timm, torchvision, dali-basic.")
@click.option("--stages", is_flag=True, help="Add the ladder read → decode → … with CPU-µs per image.")
@click.option("--against", metavar="MODEL", help="Measure this model's training step too, and say which one waits.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the record here.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write one HTML page here.")
def bench_loader(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Images per second of the training loader, and whether data will hold training back."""
    from rsbdali.bench import loader as bench
    from rsbdali.recipe import Recipe

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    bench.main(Recipe.load(recipe, parse_overrides(overrides)), data, Console(), **rest)


@cli.command()
@recipe_options
@DATA
@click.option("--out", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True)
@click.option("--images", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--draws", type=click.IntRange(1, 16), default=4, show_default=True, help="Augmentations of each image.")
@EXECUTOR
def preview(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Draw what a recipe does to a few images, with the ops and their arguments."""
    from rsbdali.preview import preview as draw
    from rsbdali.recipe import Recipe

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    path = draw(Recipe.load(recipe, parse_overrides(overrides)), data, **rest)
    click.echo(f"wrote {path}")


@cli.command()
def doctor() -> int:
    """Say what this machine can do, what is amiss, and how to mend it."""
    from rsbdali.doctor import examine, print_findings

    return print_findings(Console(), examine())
