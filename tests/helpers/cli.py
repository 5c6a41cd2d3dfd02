"""The command line in this process: what starting another one costs is seconds of imports."""

import io
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from rsbdali.cli import main


def call(*words: object) -> "CompletedProcess[str]":
    """`rsbdali WORDS…`: its exit code, output and error output, as of a process of its own."""
    arguments, out, err = ["rsbdali", *map(str, words)], io.StringIO(), io.StringIO()
    code: object = 0
    with patch("sys.argv", arguments), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
