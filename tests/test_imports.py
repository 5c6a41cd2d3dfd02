"""Who may import whom, read from the source: a table of packages, in which imports go downward only."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import rsbdali

ROOT = Path(__file__).parents[1]
FOLDERS = {name: f"rsbdali.{name}" for name in ("pipelines", "recipes", "bench")} | {"rsbdali": "rsbdali"}

# Package, or module directly in rsbdali/ → what it may import besides itself. From the bottom up.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),  # the version, and public names that are imported when first used: see `target_of`
    "errors": set(),
    "atomic": set(),
    "recipes": set(),  # holds YAML files
    "bounded": set(),
    "lr_scaling": set(),
    "progress_bar": set(),
    "recipe": {"errors", "bounded", "lr_scaling"},
    "distributed": {"errors"},
    "data": {"errors", "atomic", "distributed"},
    "plan": {"errors", "bounded", "recipe"},
    # an op carries out what the plan drew, so both use its op numbers and the fill color
    "ops": {"errors", "plan", "distributed"},
    "pipelines": {"errors", "recipe", "distributed", "data", "plan", "ops"},
    # bounded, atomic, environment: what is tuned is a small file for each machine
    "loader": {
        "errors",
        "bounded",
        "atomic",
        "recipe",
        "environment",
        "distributed",
        "data",
        "plan",
        "ops",
        "pipelines",
    },
    "integrations": {"errors", "recipe", "distributed", "data", "plan", "ops", "loader"},
    "environment": {"__init__", "errors", "atomic"},
    "runs": {"__init__", "errors", "bounded", "atomic", "recipe", "environment", "distributed"},
    "training": {
        "errors",
        "bounded",
        "progress_bar",
        "recipe",
        "environment",
        "distributed",
        "data",
        "ops",
        "runs",
        "loader",
    },
    "tools": {
        "__init__",
        "errors",
        "bounded",
        "progress_bar",
        "atomic",
        "recipe",
        "environment",
        "distributed",
        "data",
        "plan",
        "ops",
        "runs",
        "pipelines",
        "loader",
        "training",
    },
    "bench": {
        "errors",
        "atomic",
        "recipe",
        "environment",
        "distributed",
        "data",
        "plan",
        "ops",
        "runs",
        "pipelines",
        "loader",
        "training",
        "tools",  # to measure what they cost
    },
    "cli": {
        "__init__",
        "errors",
        "atomic",
        "bounded",
        "progress_bar",
        "recipe",
        "distributed",
        "runs",
        "training",
        "integrations",
        "tools",
        "bench",
    },
    "__main__": {"cli"},
}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages below `root` by its installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def package_of(name: str) -> str:
    return f"{name}.__init__".split(".")[1]


@cache
def imported(source: str) -> tuple[tuple[str, str], ...]:
    """(module, name in it or "") of each import of a source text: anywhere in it, for types alone too."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno} of: {source[:80]}"
            found += [(str(node.module), alias.name) for alias in node.names]
    return tuple(found)


def target_of(module: str, name: str, known: set[str]) -> str:
    """The module that `from module import name` is about; a lazy public name counts as where it lives."""
    if module == "rsbdali" and name in rsbdali._HOMES:
        return rsbdali._HOMES[name]
    return f"{module}.{name}" if f"{module}.{name}" in known else module


def graph_of(root: Path) -> dict[str, set[str]]:
    found = modules(root)
    known = set(found)
    graph = {}
    for name, path in found.items():
        targets = {target_of(*each, known) for each in imported(path.read_text(encoding="utf-8"))}
        graph[name] = (targets & known) - {name}
    graph["rsbdali"] = set()  # what it imports for type checkers is imported by whoever uses the name
    return graph


def offenders(graph: dict[str, set[str]]) -> list[str]:
    """What the table does not allow, one line each."""
    strays = [f"{name} has no package" for name in graph if package_of(name) not in MAY_IMPORT]
    wrong = [
        f"{name} must not import {target}"
        for name, targets in graph.items()
        for target in targets
        if package_of(target) not in {package_of(name)} | MAY_IMPORT.get(package_of(name), set())
    ]
    return sorted([*strays, *wrong])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return graph_of(ROOT)


def test_imports_are_in_the_table(graph: dict[str, set[str]]) -> None:
    assert offenders(graph) == []


def test_the_table_goes_downward_and_holds_what_there_is(graph: dict[str, set[str]]) -> None:
    tuple(TopologicalSorter(MAY_IMPORT).static_order())  # a circle raises
    assert set(MAY_IMPORT) == {package_of(name) for name in graph}
    used = {(package_of(name), package_of(target)) for name, targets in graph.items() for target in targets}
    granted = {(package, target) for package, targets in MAY_IMPORT.items() for target in targets}
    assert {(a, b) for a, b in used if a != b} <= granted
    assert {package for package, targets in MAY_IMPORT.items() if "bench" in targets} == {"cli"}


def test_no_module_imports_itself_in_a_circle(graph: dict[str, set[str]]) -> None:
    tuple(TopologicalSorter(graph).static_order())  # a circle raises, and its modules are named


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        copytree(ROOT / folder, tmp_path / folder, ignore=ignore_patterns("__pycache__", "results"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "target"),
    [
        ("rsbdali/plan/sampler.py", "from rsbdali.data.header import ImageFlags", "rsbdali.data.header"),
        ("rsbdali/distributed/world.py", "from rsbdali.runs import checkpoint", "rsbdali.runs.checkpoint"),
        ("rsbdali/ops/mix.py", "import rsbdali.loader.prefetcher", "rsbdali.loader.prefetcher"),
        ("rsbdali/data/splits.py", "from rsbdali.training.train import TrainOptions", "rsbdali.training.train"),
        ("rsbdali/tools/doctor/checks.py", "from rsbdali.bench import scale", "rsbdali.bench.scale"),
        ("rsbdali/plan/draws.py", "from rsbdali.ops.mix import mix_normalize", "rsbdali.ops.mix"),
        ("pipelines/host/augment.py", "from rsbdali.loader import TrainLoader", "rsbdali.loader"),
        ("rsbdali/data/index.py", "from rsbdali import create_loader", "rsbdali.integrations.create_loader"),
        ("rsbdali/errors.py", "def f() -> None:\n    import rsbdali.recipe", "rsbdali.recipe"),
        ("rsbdali/runs/state.py", "if TYPE_CHECKING:\n    from rsbdali.training import step", "rsbdali.training.step"),
    ],
)
def test_a_planted_import_is_seen(copy: Path, file: str, line: str, target: str) -> None:
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    name = next(name for name, path in modules(copy).items() if path == copy / file)
    assert offenders(graph_of(copy)) == [f"{name} must not import {target}"]


def test_a_module_without_a_package_is_seen(copy: Path) -> None:
    (copy / "rsbdali/helpers.py").write_text('"""Everything else."""\n', encoding="utf-8")
    (copy / "rsbdali/misc").mkdir()
    (copy / "rsbdali/misc/more.py").write_text("", encoding="utf-8")
    assert offenders(graph_of(copy)) == ["rsbdali.helpers has no package", "rsbdali.misc.more has no package"]


def test_a_planted_circle_is_seen(copy: Path) -> None:
    with (copy / "rsbdali/plan/randaugment.py").open("a", encoding="utf-8") as source:
        source.write("\nfrom rsbdali.plan import planner\n")
    with pytest.raises(ValueError, match="cycle"):
        test_no_module_imports_itself_in_a_circle(graph_of(copy))


def test_the_plan_knows_no_file_and_no_device() -> None:
    words = ("pathlib", "import os", "open(", "nvidia", "cuda")
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "rsbdali/plan").glob("*.py")}
    assert [(name, word) for name, text in texts.items() for word in words if word in text] == []


def test_the_package_stays_small_to_look_at() -> None:
    names = [path.name for path in (ROOT / "rsbdali").iterdir() if path.name != "__pycache__"]
    assert len(names) <= 20, sorted(names)


def test_public_names_are_lazy() -> None:
    code = (
        "import sys, rsbdali; assert 'torch' not in sys.modules and 'nvidia.dali' not in sys.modules;"
        "[getattr(rsbdali, n) for n in rsbdali.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
