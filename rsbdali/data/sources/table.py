"""A table of image files and labels: CSV or TSV, `path,label` with or without a line that names the columns.

Paths are absolute, or relative to the table's folder (or to another root). A label is a number or a class name; a table
that names its columns may have both, `label` and `class`.
"""

import csv
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rsbdali.data.columns import to_scan
from rsbdali.data.header import InvalidImageError, read_header
from rsbdali.data.names import (
    CLASS_NAMES,
    LABEL_NAMES,
    PATH_NAMES,
    is_hidden,
    is_image_name,
    notes_on_names,
)
from rsbdali.data.sources.base import CHUNK, DEFAULT_THREADS, Entry, Progress, Scan, StoredImage
from rsbdali.data.text import LabelError, lines_of, parse_label, read_text
from rsbdali.errors import DataError


class Row(NamedTuple):
    """A line of a table: the image's path as written, its label as a number, as a name."""

    path: str
    label: int | None
    class_name: str | None


class TableSource:
    """The images that a table lists.

    Args:
        table: path of the CSV or TSV file.
        root: folder that relative paths start from.
    """

    def __init__(self, table: str, root: str) -> None:
        self._table, self._root = table, root
        rows = read_table(table)
        self._hidden = [row.path for row in rows if _is_hidden(row.path)]
        self._rows = [row for row in rows if not _is_hidden(row.path)]
        if not self._rows:
            raise DataError(f"{table}: no images: all {len(rows)} are hidden files")

    def fingerprint(self) -> bytes:
        """See `Source`: rows, and size and time of last change of each file."""
        digest = hashlib.blake2b(digest_size=32)
        for row in self._rows:
            digest.update(f"{row}{self._stat(row)}".encode("utf-8", "surrogateescape"))
        return digest.digest()

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`."""
        found: list[Entry] = []
        starts = range(0, len(self._rows), CHUNK)
        with ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="index") as pool:
            for part in pool.map(lambda start: [self._found(r) for r in self._rows[start : start + CHUNK]], starts):
                found += part
                if progress is not None:
                    progress(len(found), len(self._rows))
        return to_scan(self._table, found, kind="files", notes=notes_on_names(self._hidden, []))

    def _stat(self, row: Row) -> tuple[int, int] | str:
        try:
            status = os.stat(os.path.join(self._root, row.path))
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            return getattr(error, "strerror", None) or str(error)
        if not stat.S_ISREG(status.st_mode):
            return "is no regular file"
        return status.st_size, status.st_mtime_ns

    def _found(self, row: Row) -> Entry:
        path, status = os.path.join(self._root, row.path), self._stat(row)
        if isinstance(status, str):
            return Entry(StoredImage(row.path, -1, 0, 0), f"cannot be read: {status}", row.label, row.class_name)
        image = StoredImage(row.path, -1, 0, status[0])
        try:
            return Entry(image, read_header(path, status[0]), row.label, row.class_name)
        except InvalidImageError as error:
            return Entry(image, str(error), row.label, row.class_name)


def _is_hidden(path: str) -> bool:
    """Where a table names a folder by its whole path, what is above the data is not judged."""
    return is_hidden(os.path.basename(path) if os.path.isabs(path) else path)


def read_table(table: str) -> list[Row]:
    """Rows of a CSV or TSV file; those without a label have neither number nor name.

    Raises:
        DataError: no such file, no rows, a first line of unknown names, a line of too few columns, a label that is
            none, numbers beside names, or a path with two labels.
    """
    lines = _cells(table)
    if not lines:
        raise DataError(f"{table}: no rows: expected lines of path,label")
    at = _columns(table, lines)
    rows = []
    for number, cells in lines[1:] if at.is_named else lines:
        try:
            rows.append(_row(cells, at))
        except LabelError as error:
            raise DataError(f"{table}: line {number}: {error}") from error
    if not rows:
        raise DataError(f"{table}: no rows: expected lines of path,label below the names of the columns")
    if at.class_name is None:
        _refuse_mixture(table, rows, [number for number, _ in lines[-len(rows) :]])
    _refuse_two_labels(table, rows)
    return list(dict.fromkeys(rows))


class Columns(NamedTuple):
    """Which columns hold what, and whether the first line names them."""

    path: int
    label: int | None
    class_name: int | None
    is_named: bool


def _cells(table: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not empty."""
    text = read_text(table, "table")
    first = lines_of(text)[0]
    delimiter = next((sign for sign in "\t,;" if sign in first), ",")
    # strict: a quote that is not closed would swallow the lines behind it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{table}: line {reader.line_num}: {error}") from error


def _columns(table: str, lines: Sequence[tuple[int, list[str]]]) -> Columns:
    """Columns by the first line's names; 0 and 1 where it names none.

    Raises:
        DataError: the first line names columns, and which is which is not known.
    """
    names = [cell.strip().lower() for cell in lines[0][1]]
    at = [next((names.index(n) for n in known if n in names), None) for known in (PATH_NAMES, LABEL_NAMES, CLASS_NAMES)]
    path_at, label_at, class_at = at
    if path_at is not None:
        if label_at is None and class_at is None:
            expected = f"{', '.join(LABEL_NAMES[:3])} or {CLASS_NAMES[0]}"
            raise DataError(f"{table}: no column of labels: expected one named {expected}")
        return Columns(path_at, label_at, class_at, True)
    is_image = [is_image_name(cells[0].strip().rpartition("/")[2]) for _, cells in lines]
    if label_at is not None or class_at is not None or (not is_image[0] and any(is_image)):
        first = ",".join(lines[0][1])[:80]
        raise DataError(f"{table}: line {lines[0][0]}: {first!r} names no column of paths: expected path,label")
    return Columns(0, 1, None, False)


def _row(cells: Sequence[str], at: Columns) -> Row:
    needed = max(column for column in (at.path, at.label, at.class_name) if column is not None)
    if len(cells) <= needed or not cells[at.path].strip():
        raise LabelError(f"expected at least {needed + 1} columns with path and label")
    path = cells[at.path].strip()
    if at.class_name is not None:
        name = cells[at.class_name].strip()
        if at.label is None:
            return Row(path, None, None if parse_label(name) is None else name)
        label = parse_label(cells[at.label])
        if isinstance(label, str):
            raise LabelError(f"label {cells[at.label]!r}: expected a number beside the class name")
        return Row(path, label, name if label is not None else None)
    assert at.label is not None, "a column of labels"
    label = parse_label(cells[at.label])
    return Row(path, None, label) if isinstance(label, str) else Row(path, label, None)


def _refuse_mixture(table: str, rows: Sequence[Row], numbers: Sequence[int]) -> None:
    """Numbers beside names: which of them is wrong cannot be known, and names are numbered otherwise."""
    first: dict[bool, int] = {}
    for row, number in zip(rows, numbers, strict=True):
        if row.label is not None or row.class_name is not None:
            first.setdefault(row.class_name is not None, number)
    if len(first) > 1:
        raise DataError(
            f"{table}: line {first[True]} has a class name and line {first[False]} a number: expected one or the other"
        )


def _refuse_two_labels(table: str, rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        if seen.setdefault(row.path, row) != row:
            raise DataError(f"{table}: {row.path} is listed with two labels")
