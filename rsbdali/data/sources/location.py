"""What a user may write for a data source: a folder, a file, several files by a pattern, or a URL.

    /data/train    /data/train.tar    /data/train-*.tar    /data/train-{000000..000146}.tar    s3://bucket/prefix/train

A URL may come as a `pathlib.Path`, which makes one slash of two (`s3:/bucket`); it is understood all the same.
"""

import fnmatch
import os
import re
from dataclasses import dataclass
from itertools import product

from rsbdali.errors import DataError

PATTERN_SIGNS = "*?{["
FILE_ENDINGS = (".tar", ".parquet", ".csv", ".tsv", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Location:
    """Where a data set is, taken apart.

    Attributes:
        text: as it is shown: an absolute path, or a URL.
        base: folder or URL prefix of the files.
        pattern: names of files in `base`; None where `base` itself is the data set.
        is_url: whether fsspec opens it.
    """

    text: str
    base: str
    pattern: str | None
    is_url: bool

    @classmethod
    def parse(cls, given: str | os.PathLike[str]) -> "Location":
        """Take a path, a pattern or a URL apart; nothing is opened but the local folder looked at."""
        text = os.fspath(given)
        url = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", text, re.DOTALL)
        if url and url[1] in ("file", "local"):
            text, url = f"/{url[2]}", None
        if url is None or os.path.lexists(text):
            text = os.path.abspath(text)
            is_pattern = not os.path.isdir(text) and _names_files(text)
            base, name = os.path.split(text) if is_pattern else (text, None)
            return cls(text, base, name, False)
        text = f"{url[1]}://{url[2].rstrip('/')}"
        base, _, name = text.rpartition("/") if _names_files(text) else (text, "", None)
        return cls(text, base, name, True)

    @property
    def identity(self) -> str:
        """What identifies this source: the real path, or the URL."""
        return self.text if self.is_url else os.path.realpath(self.text)

    def join(self, name: str) -> str:
        """Path or URL of a file in `base`."""
        return f"{self.base}/{name}" if self.is_url else os.path.join(self.base, name)

    def choose(self, names: list[str]) -> list[str]:
        """The names that the pattern means, sorted.

        Raises:
            DataError: a file that the pattern spells out is missing, or nothing fits.
        """
        assert self.pattern is not None, "no pattern"
        chosen: set[str] = set()
        for each in expand_braces(self.pattern):
            fitting = [each] if each in names else fnmatch.filter(names, each)
            if not fitting:
                missing = self.join(each)
                raise DataError(f"{missing}: no such file" + ("" if missing == self.text else f" (of {self.text})"))
            chosen.update(fitting)
        return sorted(chosen)


def _names_files(text: str) -> bool:
    name = text.rpartition("/")[2]
    return any(sign in name for sign in PATTERN_SIGNS) or name.lower().endswith(FILE_ENDINGS)


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` → a-08.tar, a-09.tar, a-10.tar; `{a,b}` → a, b; as WebDataset and shells write it."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _alternatives(part) for i, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _alternatives(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        return inside.split(",")
    width = len(numbers[1])
    return [f"{i:0{width}d}" for i in range(int(numbers[1]), int(numbers[2]) + 1)]
