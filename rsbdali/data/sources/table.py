"""A table of image files and labels: CSV or TSV, `path,label` with or without a line that names the columns.

Paths are absolute, or relative to the table's folder (or to another root). A label is a number or a class name; a table
that names its columns may have both, `label` and `class`.
"""

import csv
import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rsbdali.data.columns import to_scan
from rsbdali.data.header import NoImageError, read_header
from rsbdali.data.sources.base import CHUNK, DEFAULT_THREADS, Found, Place, Progress, Scan
from rsbdali.errors import DataError

PATH_NAMES = ("path", "filepath", "file_path", "image_path", "file", "filename", "file_name", "image", "name")
LABEL_NAMES = ("label", "target", "class_id", "cls", "class_idx")
CLASS_NAMES = ("class", "class_name", "wnid", "synset")


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
        self._rows = read_table(table)

    def fingerprint(self) -> bytes:
        """See `Source`: rows, and size and time of last change of each file."""
        digest = hashlib.blake2b(digest_size=32)
        for row in self._rows:
            digest.update(f"{row}{self._stat(row)}".encode("utf-8", "surrogateescape"))
        return digest.digest()

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`."""
        found: list[Found] = []
        starts = range(0, len(self._rows), CHUNK)
        with ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="index") as pool:
            for part in pool.map(lambda start: [self._found(r) for r in self._rows[start : start + CHUNK]], starts):
                found += part
                if progress is not None:
                    progress(len(found), len(self._rows))
        return to_scan(self._table, found, kind="files")

    def _stat(self, row: Row) -> tuple[int, int] | str:
        try:
            status = os.stat(os.path.join(self._root, row.path))
        except OSError as error:
            return error.strerror or str(error)
        return status.st_size, status.st_mtime_ns

    def _found(self, row: Row) -> Found:
        path, status = os.path.join(self._root, row.path), self._stat(row)
        if isinstance(status, str):
            return Found(Place(row.path, -1, 0, 0), f"cannot be read: {status}", row.label, row.class_name)
        place = Place(row.path, -1, 0, status[0])
        try:
            return Found(place, read_header(path, status[0]), row.label, row.class_name)
        except NoImageError as error:
            return Found(place, str(error), row.label, row.class_name)


def read_table(table: str) -> list[Row]:
    """Rows of a CSV or TSV file.

    Raises:
        DataError: no such file, no rows, a line of too few columns, or a path with two labels.
    """
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    lines = [(n, cells) for n, cells in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if any(cells)]
    if not lines:
        raise DataError(f"{table}: no rows: expected lines of path,label")
    path_at, label_at, class_at = _columns(lines[0][1])
    named = lines[0][1][path_at].strip().lower() in PATH_NAMES
    if named and label_at is None and class_at is None:
        raise DataError(f"{table}: no column of labels: expected one named {', '.join(LABEL_NAMES[:2])} or class")
    rows = [
        _row(table, number, cells, path_at, label_at, class_at) for number, cells in (lines[1:] if named else lines)
    ]
    if all(row.class_name is not None and re.fullmatch(r"\d+", row.class_name) for row in rows) and class_at is None:
        rows = [Row(row.path, int(str(row.class_name)), None) for row in rows]
    _refuse_two_labels(table, rows)
    return list(dict.fromkeys(rows))


def _columns(first: Sequence[str]) -> tuple[int, int | None, int | None]:
    """Which columns hold path, label and class name; 0, 1 and none where the first line names no columns."""
    names = [cell.strip().lower() for cell in first]
    at = [next((names.index(n) for n in known if n in names), None) for known in (PATH_NAMES, LABEL_NAMES, CLASS_NAMES)]
    path_at, label_at, class_at = at
    return (0, 1, None) if path_at is None else (path_at, label_at, class_at)


def _row(
    table: str, number: int, cells: Sequence[str], path_at: int, label_at: int | None, class_at: int | None
) -> Row:  # fmt: skip
    needed = max(at for at in (path_at, label_at, class_at) if at is not None)
    if len(cells) <= needed or not cells[path_at].strip():
        raise DataError(f"{table}: line {number}: expected at least {needed + 1} columns with path and label")
    if class_at is None:
        return Row(cells[path_at].strip(), None, cells[label_at or 0].strip())
    if label_at is None:
        return Row(cells[path_at].strip(), None, cells[class_at].strip())
    if not re.fullmatch(r"\d+", cells[label_at].strip()):
        raise DataError(f"{table}: line {number}: label {cells[label_at]!r}: expected a number beside the class name")
    return Row(cells[path_at].strip(), int(cells[label_at]), cells[class_at].strip())


def _refuse_two_labels(table: str, rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        if seen.setdefault(row.path, row) != row:
            raise DataError(f"{table}: {row.path} is listed with two labels")
