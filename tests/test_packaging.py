"""The wheel holds every file of the packages, and nothing else; the mapped folders cannot be imported twice."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {name: f"rsbdali/{name}" for name in ("pipelines", "recipes", "bench")} | {"rsbdali": "rsbdali"}


def test_wheel_equals_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: a stale build folder must not ship, and the tree stays clean
    copytree(ROOT, source, ignore=ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "output"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        shipped = {n for n in wheel.namelist() if ".dist-info/" not in n}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for pattern in ("*.py", "*.yaml", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert shipped == expected


@pytest.mark.parametrize("folder", ["pipelines", "recipes", "bench"])
def test_mapped_folders_refuse_a_second_copy(folder: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert f"import this package as rsbdali.{folder}" in done.stderr
