"""Who may import whom, read from the source: imports go downward only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {name: f"rsbdali.{name}" for name in ("pipelines", "recipes", "bench")} | {"rsbdali": "rsbdali"}

# from the top down; a module may import from its own line or from lines below
LAYERS = [
    {"cli", "commands", "__main__"},
    {"bench", "doctor", "preview"},
    {"trainer", "validate", "train_options"},
    {"step", "evaluate", "report", "outputs", "checkpoint"},
    {"loader"},
    {"feed"},
    {"pipelines"},
    {"plan"},
    {"order", "index"},
    {"recipe"},
]
"""Modules not named here stand at the height that their imports allow; only the order of the named ones is fixed."""


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imports(path: Path, name: str, known: set[str]) -> set[str]:
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            targets |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {t for t in targets if t in known and t != name}


GRAPH = {name: imports(path, name, set(modules())) - {"rsbdali"} for name, path in modules().items()}


def layer(name: str) -> int | None:
    part = name.removeprefix("rsbdali.").split(".")[0]
    return next((i for i, names in enumerate(LAYERS) if part in names), None)


def reachable(name: str) -> set[str]:
    seen: set[str] = set()
    stack = [name]
    while stack:
        for target in GRAPH[stack.pop()] - seen:
            seen.add(target)
            stack.append(target)
    return seen


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_go_downward(name: str) -> None:
    mine, below = layer(name), reachable(name)
    assert name not in below, f"{name} imports itself in a circle"
    for target in below:
        other = layer(target)
        assert mine is None or other is None or other >= mine, f"{name} must not import {target}"


@pytest.mark.parametrize("name", sorted(n for n in GRAPH if n.startswith("rsbdali.ops.") or n == "rsbdali.recipe"))
def test_ops_and_recipe_import_nothing_of_ours(name: str) -> None:
    assert not {t for t in GRAPH[name] if t != "rsbdali.errors" and not t.startswith("rsbdali.ops")}


@pytest.mark.parametrize("name", ["rsbdali.plan", "rsbdali.plan.sampler", "rsbdali.plan.randaugment"])
def test_the_plan_knows_no_file_and_no_device(name: str) -> None:
    text = modules()[name].read_text(encoding="utf-8")
    for word in ("pathlib", "import os", "open(", "nvidia", "cuda"):
        assert word not in text


def test_public_names_are_lazy() -> None:
    code = (
        "import sys, rsbdali; assert 'torch' not in sys.modules and 'nvidia.dali' not in sys.modules;"
        "[getattr(rsbdali, n) for n in rsbdali.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
