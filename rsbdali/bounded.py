"""YAML and JSON that others wrote: plain values or an error that says why not, with bounds on size, depth and nodes.

The text is not to be trusted: a recipe from the web, the files of a damaged run. PyYAML takes 400 bytes of
aliases that unfold to 9^10 values, ends with a ValueError on numbers that are none, and takes the last of two equal
keys; all of these are errors here.
"""

import json
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import yaml

MOST_BYTES = 1 << 20  # of a small file, and of a line of a log
MOST_YAML = 1 << 18  # characters: PyYAML takes a second for so many
MOST_NODES = 10_000
MOST_DEPTH = 20
MOST_SCALAR = 4096  # characters: the longest path of Linux
MOST_SHOWN = 100
MOST_COUNT = 10**9  # of epochs, steps, images, …: more is no count, and its sum may not fit 64 bits


class NotPlain(ValueError):
    """A text that cannot be taken; the message says why, in words that follow the name of the file."""


def parse_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        NotPlain: it is no YAML, has aliases, tags or a key twice, or is too large or too deep.
    """
    if len(text) > MOST_YAML:
        raise NotPlain(f"has {len(text):,} characters, over {MOST_YAML:,}")
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise NotPlain(f"is no YAML: {clipped(' '.join(str(error).split()), 300)}") from error
    except (ValueError, OverflowError) as error:  # a number that is none: 0b_
        raise error if isinstance(error, NotPlain) else NotPlain(f"is no YAML: {clipped(str(error), 300)}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses what it would unfold, convert by name, or lose; dates stay texts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = f"in line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise NotPlain(f"has an alias (*{clipped(str(event.anchor))}) {where}: write its value out")
        if getattr(event, "tag", None) is not None:
            raise NotPlain(f"has a tag ({clipped(event.tag)}) {where}: write a plain value")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_SCALAR:
            raise NotPlain(f"has a value of {len(event.value):,} characters {where}, over {MOST_SCALAR:,}")
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._nodes > MOST_NODES or self._depth > MOST_DEPTH:
            raise NotPlain(f"has over {MOST_NODES:,} values, or is over {MOST_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        count = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, times in count.most_common(1):
            if times > 1:
                raise NotPlain(f"has the key {clipped(key)!r} {times} times")
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotPlain: it is no JSON, or is too large or too deep.
    """
    if len(text) > MOST_BYTES:
        raise NotPlain(f"has {len(text):,} bytes, over {MOST_BYTES:,}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a number of 5000 digits, too
        raise NotPlain(f"is no JSON: {clipped(str(error), 300)}") from error


def read_text(path: Path) -> str:
    """All of a small text file, UTF-8 with or without a byte order mark.

    Raises:
        NotPlain: it is no regular file (a pipe would block), cannot be read, is no UTF-8 or too large.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotPlain("is no regular file")
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, NotPlain):
            raise
        raise NotPlain(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MOST_BYTES:
        raise NotPlain(f"has more than {MOST_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotPlain(f"is no UTF-8 ({error.reason} at byte {error.start})") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a log with their ends; of one that is over `MOST_BYTES` long, `MOST_BYTES + 1` bytes without an end."""
    with path.open("rb") as file:
        while line := file.readline(MOST_BYTES + 1):
            yield line
            while len(line) > MOST_BYTES and not line.endswith(b"\n"):
                line = file.readline(MOST_BYTES + 1)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number from 0 to `MOST_COUNT` (True is none)."""
    return type(value) is int and 0 <= value <= MOST_COUNT


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a float holds, NaN and inf among them (True is none)."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def shown(value: Any) -> str:
    """`repr` of a value for a message, cut short and in one line, whatever it is."""
    try:
        return clipped(" ".join(_REPR.repr(value).split()))
    except (ValueError, RecursionError):  # an integer of 5000 digits
        return f"a very long {type(value).__name__}"


def clipped(text: str, most: int = MOST_SHOWN) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= most else text[:most] + "…"


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, MOST_SHOWN, MOST_SHOWN, MOST_SHOWN
