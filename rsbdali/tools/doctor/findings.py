"""What `doctor` found: kinds of findings, how they are printed, and whether one prevents training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table


class Level(Enum):
    """How good or bad a finding is; the value is the mark that is printed."""

    GOOD = "✓"
    NOTE = "·"
    WARNING = "!"
    FATAL = "✗"


@dataclass(frozen=True)
class Finding:
    """What was found about one thing, and how to fix it where it is wrong."""

    level: Level
    topic: str
    text: str
    fix: str = ""


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether nothing found prevents training on this machine."""
    return all(f.level is not Level.FATAL for f in findings)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if this machine can train, else 1."""
    return 0 if can_train(findings) else 1


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for programs: whether this machine can train, and each by level, topic, text and fix."""
    listed = [{"level": f.level.name.lower(), "topic": f.topic, "text": f.text, "fix": f.fix} for f in findings]
    return json.dumps({"can_train": can_train(findings), "findings": listed}, indent=1)


def print_findings(console: Console, findings: Sequence[Finding]) -> int:
    """Print a table and a last line that sums it up.

    Returns:
        The exit code: 0 if this machine can train, else 1.
    """
    color = {Level.GOOD: "green", Level.NOTE: "dim", Level.WARNING: "yellow", Level.FATAL: "red"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for f in findings:
        text = f.text + (f"\n→ {f.fix}" if f.fix else "")
        table.add_row(f"[{color[f.level]}]{f.level.value}[/]", f.topic, text.replace("[", r"\["))
    console.print(table)
    fit = can_train(findings)
    wrong = sum(f.level is Level.WARNING for f in findings)
    device = "its GPU" if any(f.topic.startswith("GPU") and f.level is Level.GOOD for f in findings) else "its CPU only"
    hint = f"; {wrong} {'thing' if wrong == 1 else 'things'} to fix" if wrong else ""
    said = f"This machine can train, on {device}{hint}." if fit else "This machine cannot train until ✗ is fixed."
    console.print(said, style="bold", markup=False)
    return exit_code(findings)
