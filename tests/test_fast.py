"""tests/fast.txt: the modules that `make check` runs. conftest.py lets no test in them start a process."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMES = (TESTS / "fast.txt").read_text(encoding="utf-8").split()


def test_the_list_is_sorted_and_its_modules_exist() -> None:
    assert sorted(set(NAMES)) == NAMES
    assert [name for name in NAMES if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: multiprocessing.get_context("spawn").Process().start(),
        lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ),
        lambda: os.fork(),
        lambda: os.system("true"),
    ],
)
def test_a_process_fails_a_fast_test(start: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"take its module out of tests/fast\.txt"):
        start()
