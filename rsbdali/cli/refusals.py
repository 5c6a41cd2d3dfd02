"""What the machine refuses, in one line: a file that cannot be written, a full disk behind `>`, no memory."""

import errno
import io
import os
import sys
from typing import Any

# as the loader of libraries, torch, oneDNN, DALI and Python's threads put it
NO_MEMORY = (
    "failed to map segment",
    "annot allocate memory",
    "can't allocate memory",
    "could not create a primitive",
    "bad_alloc",
    "Resource temporarily unavailable",
    "can't start new thread",
)


def of_the_machine(error: Exception) -> str | None:
    """What to print for an error that is neither a mistake in the arguments nor one of the program.

    Returns:
        None where it is another kind of error.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{name}{error.strerror}"
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        said = f" ({text.splitlines()[0]})" if text else ""
        return f"out of memory{said}: see `ulimit -v`, and what else runs here; --workers 1 needs less"
    return None


class _Named(io.FileIO):
    """A stream whose first error says which one it is, as the system's do not; what follows is lost without a word."""

    lost = False

    def write(self, data: Any, /) -> int:
        if self.lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.lost = True
            raise OSError(error.errno, error.strerror, "standard output") from error


def name_standard_output() -> None:
    """Let errors of standard output name it, unless a program has replaced it."""
    old = sys.stdout
    if old is None:  # closed by whoever started us
        sys.stdout = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    elif old is sys.__stdout__ and isinstance(old, io.TextIOWrapper):
        old.flush()
        buffer = io.BufferedWriter(_Named(old.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(buffer, old.encoding, old.errors, line_buffering=old.line_buffering)
