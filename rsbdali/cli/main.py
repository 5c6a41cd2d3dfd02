"""The command line: parse, call, print. Mistakes of the user end in one line and exit code 2; `--debug` shows more."""

import io
import logging
import os
import sys

import click
from rich.console import Console
from rich.logging import RichHandler

from rsbdali import __version__
from rsbdali.cli import bench, data, recipes, runs, training
from rsbdali.cli.completion import completion
from rsbdali.cli.help import Group
from rsbdali.cli.refusals import name_standard_output, of_the_machine
from rsbdali.distributed.launch import end_with_launcher
from rsbdali.errors import RsbdaliError

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit; the `rsbdali` script."""
    end_with_launcher()
    name_standard_output()
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    _set_up_logging(debug)
    # read by torch when imported: its CPU threads would spin while they wait, on cores that the loader needs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = cli(arguments, prog_name="rsbdali", standalone_mode=False) or 0
        sys.stdout.flush()
    except RsbdaliError as error:
        _fail("" if error.reported_elsewhere else str(error), error.exit_code, debug)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug)
    except click.Abort:
        _fail("interrupted", INTERRUPTED, debug)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        message = of_the_machine(error)
        if message is None:
            raise
        _fail(message, RsbdaliError.exit_code, debug)
    sys.exit(code)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    if message:
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
        # files of a cluster's job are read afterwards: when it was belongs to each line
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("rsbdali").addHandler(handler)
    logging.getLogger("rsbdali").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rsbdali")
def cli() -> None:
    """ResNet Strikes Back (A1, A2, A3) at the speed of the GPU.

    Add --debug to any command to see a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that is no text is printed with escapes


for command in (
    training.train,
    training.validate,
    data.index_command,
    data.demo_data,
    data.preview,
    data.pack_command,
    recipes.recipe,
    bench.bench_loader,
    bench.bench_step,
    bench.tune,
    bench.doctor,
    runs.export_command,
    runs.report_command,
    runs.replay,
    completion,
):
    cli.add_command(command)
