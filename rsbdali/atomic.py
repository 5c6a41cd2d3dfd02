"""How files are written: readers see the old one or the whole new one, and an error says which file it was."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name into errors: a full disk's has none, and a temporary file's name says nothing to a user."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path.parent):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Create `path` with what `fill(file)` writes; readers see the old file or the whole new one.

    Raises:
        OSError: the folder cannot be made or written to; no temporary file stays behind.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                fill(file)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of a text in UTF-8, for others to read too (a temporary file is its maker's alone).

    What no encoding has, the surrogates in names of files that are no text, is written as escapes: in JSON they are
    its own. Only one thread may write to `path` at a time.

    Raises:
        OSError: as `write_atomically`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
