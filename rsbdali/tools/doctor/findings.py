"""What `doctor` found: kinds of findings, how they are printed, and whether one stands in the way of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table


class Level(Enum):
    """How good or bad a finding is; the value is the mark that is printed."""

    GOOD = "✓"
    NOTE = "·"
    AMISS = "!"
    FATAL = "✗"


@dataclass(frozen=True)
class Finding:
    """What was found about one thing, and how to mend it where it is amiss."""

    level: Level
    topic: str
    text: str
    mend: str = ""


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether nothing found stands in the way of training on this machine."""
    return all(f.level is not Level.FATAL for f in findings)


def print_findings(console: Console, findings: Sequence[Finding]) -> int:
    """Print a table and a last line that sums it up.

    Returns:
        The exit code: 0 if this machine can train, else 1.
    """
    colour = {Level.GOOD: "green", Level.NOTE: "dim", Level.AMISS: "yellow", Level.FATAL: "red"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for f in findings:
        text = f.text + (f"\n→ {f.mend}" if f.mend else "")
        table.add_row(f"[{colour[f.level]}]{f.level.value}[/]", f.topic, text.replace("[", r"\["))
    console.print(table)
    fit = can_train(findings)
    amiss = sum(f.level is Level.AMISS for f in findings)
    device = "its GPU" if any(f.topic.startswith("GPU") and f.level is Level.GOOD for f in findings) else "its CPU only"
    hint = f"; {amiss} {'thing' if amiss == 1 else 'things'} to mend" if amiss else ""
    said = f"This machine can train, on {device}{hint}." if fit else "This machine cannot train until ✗ is mended."
    console.print(said, style="bold", markup=False)
    return 0 if fit else 1
