"""`report`: runs as one page."""

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
def report_command(runs: tuple[Path, ...], output: Path) -> None:
    """Draw RUNS (folders of `rsbdali train`) side by side: curves, settings that differ, machines, checkpoints."""
    from rsbdali.runs.report.page import write_report

    write_report(runs, output)
    click.echo(f"wrote {output}")
