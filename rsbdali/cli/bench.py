"""`bench-loader`, `bench-step`, `tune` and `doctor`: what this machine does, and can do."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rsbdali.cli.help import command
from rsbdali.cli.options import (
    COMPILE_MODES,
    DATA,
    DEVICE,
    PATH,
    WORKERS,
    decode_options,
    parse_overrides,
    recipe_options,
)
from rsbdali.errors import RsbdaliError


@command("bench-loader")
@recipe_options
@DATA
@click.option("--batch-size", type=click.IntRange(2), default=128, help="Rows of a batch.")
@WORKERS
@DEVICE
@decode_options
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, help="Of a round.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Interleaved with the peers'.")
@click.option(
    "--peers",
    show_default="none",
    help="Comma-separated: timm, torchvision, dali-basic, dali-exact, spdl, turboloader.",
)
@click.option("--stages", is_flag=True, help="Add the stage breakdown read → decode → … with CPU-µs per image.")
@click.option("--against", metavar="MODEL", help="Measure this model's training step too, and say which one waits.")
@click.option("--json", "json_path", type=PATH, help="Write the record here.")
@click.option("--report", "report_path", type=PATH, help="Write one HTML page here.")
def bench_loader(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Images per second of the training loader, and whether data will hold training back."""
    from rsbdali.bench import loader as bench
    from rsbdali.recipe import Recipe

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    bench.main(Recipe.load(recipe, parse_overrides(overrides)), data, Console(), **rest)


@command("bench-step")
@recipe_options
@DEVICE
@click.option("--batch-size", type=click.IntRange(2), show_default="a mix group; 8 on a CPU", help="Rows of a step.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, help="Of a round.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Interleaved with the peers'.")
@click.option("--peers", show_default="none", help="timm: its own step, eager, with and without its Mixup.")
@click.option(
    "--torch-compile",
    metavar="MODE",
    type=click.Choice(COMPILE_MODES[1:]),
    show_default="not measured",
    help=f"Measure the steps through torch.compile too: {', '.join(COMPILE_MODES[1:])}.",
)
@click.option("--cuda-graph", is_flag=True, help="Measure our step as CUDA graphs too.")
@click.option("--json", "json_path", type=PATH, help="Write the record here.")
def bench_step(recipe: str, overrides: tuple[str, ...], **rest: Any) -> None:
    """Images per second of the training step on synthetic data, and where its time goes."""
    from rsbdali.bench import step as bench
    from rsbdali.recipe import Recipe

    bench.main(Recipe.load(recipe, parse_overrides(overrides)), Console(), **rest)


@command("tune")
@recipe_options
@DATA
@click.option("--batch-size", type=click.IntRange(2), default=128, help="Rows of a batch.")
@DEVICE
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    help="Of searching, about; where they are few, some settings are not tried, which is said.",
)
@click.option(
    "--allow-pixels", is_flag=True, help="Search decode mode and JPEG engine's share too: they change pixels."
)
@click.option("--against", metavar="MODEL", help="Measure this model's training step too, and say which one waits.")
def tune(recipe: str, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> None:
    """Find the loader's fastest settings on this machine, and keep them for `train --tuned`."""
    from rsbdali.bench import tune as bench
    from rsbdali.recipe import Recipe

    if data is None:
        raise RsbdaliError("--data is missing: a folder of images by class, or one with train/")
    bench.main(Recipe.load(recipe, parse_overrides(overrides)), data, Console(), **rest)


@command("doctor")
@click.option("--data", type=PATH, help="Decode up to 200 of these images too.")
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="The findings as JSON: on standard output, or in FILE.",
)
def doctor(data: Path | None, json_path: str | None) -> int:
    """Say what this machine can do, what is wrong, and how to fix it."""
    from rsbdali.atomic import write_text
    from rsbdali.progress_bar import waiting
    from rsbdali.tools.doctor.checks import examine, print_findings
    from rsbdali.tools.doctor.findings import as_json, exit_code

    with waiting("doctor"):
        found = examine(data)
    if json_path is None:
        return print_findings(Console(), found)
    if json_path == "-":
        click.echo(as_json(found))
    else:
        write_text(Path(json_path).expanduser(), as_json(found) + "\n")
    return exit_code(found)
