"""How files are written: readers see the old one or the whole new one, and an error says which file it was."""

import secrets
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                fill(file)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of a text in UTF-8.

    What no encoding has, the surrogates in names of files that are no text, is written as escapes: in JSON they are
    its own.

    Raises:
        OSError: as `write_atomically`.
    """
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
