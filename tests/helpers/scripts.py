"""Modules of this package as programs, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Variables of a process that imports `helpers`."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def without_gloo(text: str) -> str:
    """A program's output without what gloo of torch 2.8 to 2.10 prints there by itself."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("[Gloo] "))


def script(name: str, *arguments: object) -> str:
    """What `python -m helpers.NAME ARGUMENT…` prints, but for gloo's lines; warnings are errors, so is an exit code."""
    command = [sys.executable, "-W", "error", "-m", f"helpers.{name}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return without_gloo(done.stdout)
