"""Compiled code: where it is cached, and that nothing about the cache or Numba can stop a run or change a pixel."""

import builtins
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsbdali.pipelines.host import compiled

# prints which ways were found, and a checksum of an image that went through both
PROGRAM = """
import logging, sys, zlib
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
{before}
import numpy as np
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.pipelines.host.resize import find_resize
image = np.random.default_rng(0).integers(0, 256, (150, 97, 3), dtype=np.uint8)
out = np.empty((64, 64, 3), np.uint8)
resize, augment = find_resize(), find_augment()
resize(image, (3, 5, 140, 80), out, 1, mirror=True)
for op in range(15):
    augment(out, [op], [{{3: 12.0, 4: 5.0, 5: 200.0}}.get(op, 0.3)], [op % 2])
print("found", resize.__module__.rpartition(".")[2], augment.__module__.rpartition(".")[2], zlib.crc32(out))
"""


def _run(before: str = "", **environment: str) -> tuple[str, list[str]]:
    """All output, and what `found` printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, next(line for line in done.stdout.splitlines() if "found" in line).split()[1:]


@pytest.fixture(scope="module")
def cached(compiled_code: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """The cache folder of all tests, which some process has filled; what one logs and finds with it."""
    home = tmp_path_factory.mktemp("cache")
    (home / "rsbdali").mkdir()
    (home / "rsbdali" / "compiled").symlink_to(compiled_code)
    text, found = _run(XDG_CACHE_HOME=str(home))
    return home, text, found


def test_code_is_compiled_once_and_then_loaded(cached: tuple[Path, str, list[str]]) -> None:
    home, text, found = cached
    (folder,) = (home / "rsbdali" / "compiled").iterdir()
    assert f"cache: {folder}" in text
    assert found[1] == "augment_numba"
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ic]")}
    assert len(files) > 20
    _, again = _run(XDG_CACHE_HOME=str(home))
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ic]")} == files


def test_without_numba_pillow_gives_the_same_bytes(cached: tuple[Path, str, list[str]]) -> None:
    text, found = _run("sys.modules['numba'] = None")
    assert found[:2] == ["resize", "augment_pillow"]
    assert found[2] == cached[2][2]
    assert text.count("WARNING Pillow resizes") == text.count("WARNING Pillow augments") == 1


def test_with_numba_switched_off_pillow_gives_the_same_bytes(cached: tuple[Path, str, list[str]]) -> None:
    text, found = _run(NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT" in text
    assert found[1:] == ["augment_pillow", cached[2][2]]


def test_a_home_that_cannot_be_written_to_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    """A file where the folder should be stops root, too; Numba's own `cache=True` would try HOME and the package."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "one_kernel.py").write_text(
        "from rsbdali.pipelines.host.compiled import kernel\n\n\n"
        "@kernel('float64(float64)')\ndef double(x):\n    return 2 * x\n"
    )
    program = "from rsbdali.pipelines.host.compiled import kernels; print(kernels('one_kernel').double(21.0))"
    where = {"XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": str(tmp_path / "file"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **where})
    assert done.stdout == "42.0\n"
    assert "compiled code cannot be cached" in done.stderr


def test_a_damaged_cache_is_said_and_left_aside(cached: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    home = tmp_path / "copy"
    subprocess.run(["cp", "-rL", str(cached[0]), str(home)], check=True)
    for path in home.rglob("*"):
        if path.suffix in (".nbi", ".nbc") and ("look_up" in path.name or "weigh4" in path.name):
            path.write_bytes(path.read_bytes()[:40])
    text, found = _run(XDG_CACHE_HOME=str(home))
    assert "cannot be used for _look_up" in text
    assert found == cached[2]


def test_one_process_at_a_time_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a module of kernels is imported no other process gets the cache's lock; afterwards it does."""

    def try_lock() -> bool:
        with (tmp_path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kernels_of_a_test.py").write_text("import builtins\nfree = builtins.try_lock()\n")
    monkeypatch.setattr(builtins, "try_lock", try_lock, raising=False)
    module = compiled.kernels("kernels_of_a_test")
    assert module.free is False
    assert try_lock()


def test_numba_is_imported_with_the_host_executor_only() -> None:
    code = "import sys, rsbdali, rsbdali.pipelines.host.executor; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
