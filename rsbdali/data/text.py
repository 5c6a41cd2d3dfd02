"""Text files that a user gives (label files, class maps, tables), within bounds, whatever editor wrote them."""

import codecs
import io
import os
import re
import stat
from pathlib import Path

from rsbdali.errors import DataError

MOST_LINE_CHARS = 1 << 20
MOST_LABEL = 1_000_000  # a label is the number of a class: a larger number would cost memory for every class below it


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """All of a text file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Bytes that are no UTF-8 come as surrogates, as in file names.

    Args:
        path: the file.
        what: what it is, for messages.

    Raises:
        DataError: it is no regular file (a pipe would block), cannot be read, or has a line of more than 1 MiB.
    """
    try:
        # without O_NONBLOCK the open of a pipe would wait for a writer
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{os.fspath(path)}: {what} cannot be read: is no regular file")
            data = file.read()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: {what} cannot be read: {error.strerror}") from error
    text = _decode(data, path, what)
    longest = max((len(line) for line in lines_of(text)), default=0)
    if longest > MOST_LINE_CHARS:
        raise DataError(f"{os.fspath(path)}: {what} has a line of {longest:,} characters, over {MOST_LINE_CHARS:,}")
    return text


def _decode(data: bytes, path: str | os.PathLike[str], what: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(f"{os.fspath(path)}: {what} cannot be read: {error}") from error
    return data.decode("utf-8-sig", "surrogateescape")


def lines_of(text: str) -> list[str]:
    r"""Lines without their ends: \n, \r\n or \r, and no others (`str.splitlines` splits at form feeds too)."""
    return io.StringIO(text, newline=None).read().split("\n")


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file, stripped; errors as `read_text`."""
    return [line.strip() for line in lines_of(read_text(path, what))]


class LabelError(ValueError):
    """A label that cannot be one; the message says why."""


def parse_label(text: str) -> int | str | None:
    """A label as written: a number, a class name, or None where it says that there is none ("", "nan", below 0).

    "3.0" is 3, as tables that once had an empty cell are written.

    Raises:
        LabelError: a number that is not whole, or larger than `MOST_LABEL`.
    """
    text = text.strip()
    if text.lower() in ("", "nan"):
        return None
    number = re.fullmatch(r"(-?)([0-9]+)(?:\.([0-9]*))?", text)
    if number is None:
        return text
    if (number[3] or "").strip("0"):
        raise LabelError(f"label {text[:40]!r} is not a whole number")
    digits = number[2].lstrip("0") or "0"
    if number[1] and digits != "0":
        return None
    if len(digits) > len(str(MOST_LABEL)) or int(digits) > MOST_LABEL:
        raise LabelError(f"label {text[:40]} is too large: expected at most {MOST_LABEL}")
    return int(digits)
