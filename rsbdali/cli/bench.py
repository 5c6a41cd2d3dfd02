"""`bench-loader`, `bench-step`, `tune` and `doctor`: what this machine does, and can do."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rsbdali.cli.options import DATA, DEVICE, EXECUTOR, WORKERS, parse_overrides, recipe_options
from rsbdali.errors import RsbdaliError


@click.command("bench-loader")
@recipe_options
@DATA
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@WORKERS
@DEVICE
@EXECUTOR
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="A round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved with the peers'.")
@click.option("--peers", help="Comma-separated: timm, torchvision, dali-basic, dali-exact, spdl, turboloader.")
@click.option("--stages", is_flag=True, help="Add the stage breakdown read → decode → … with CPU-µs per image.")
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


@click.command("bench-step")
@recipe_options
@DEVICE
@click.option("--batch-size", type=click.IntRange(2), help="Rows of a step. Default: a mix group; 8 on a CPU.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="A round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Interleaved with the peers'.")
@click.option("--peers", help="timm: its own step, eager, with and without its Mixup.")
@click.option(
    "--torch-compile",
    type=click.Choice(["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]),
    help="Measure the steps through torch.compile in this mode too.",
)
@click.option("--cuda-graph", is_flag=True, help="Measure our step as CUDA graphs too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the record here.")
def bench_step(recipe: str, overrides: tuple[str, ...], **rest: Any) -> None:
    """Images per second of the training step on synthetic data, and where its time goes."""
    from rsbdali.bench import step as bench
    from rsbdali.recipe import Recipe

    bench.main(Recipe.load(recipe, parse_overrides(overrides)), Console(), **rest)


@click.command()
@recipe_options
@DATA
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@DEVICE
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="To search.")
@click.option("--allow-pixels", is_flag=True, help="Try the other executor too: its pixels differ a little.")
@click.option("--against", metavar="MODEL", help="Measure this model's training step too, and say which one waits.")
def tune(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Find the loader's fastest settings on this machine, and keep them for `train --tuned`."""
    from rsbdali.bench import tune as bench
    from rsbdali.recipe import Recipe

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    bench.main(Recipe.load(recipe, parse_overrides(overrides)), data, Console(), **rest)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Decode up to 200 of these images too.")
def doctor(data: Path | None) -> int:
    """Say what this machine can do, what is wrong, and how to fix it."""
    from rsbdali.tools.doctor.checks import examine, print_findings

    return print_findings(Console(), examine(data))
