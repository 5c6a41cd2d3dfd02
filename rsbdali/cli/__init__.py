"""The command line: argv in, one call, lines out. Heavy imports wait until a command runs."""

from rsbdali.cli.main import main

__all__ = ["main"]
