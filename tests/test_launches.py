"""Where kernels are launched and chosen, read from the source: on the tensors' GPU, and where `use_kernels` says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("rsbdali/**/*.py"), *ROOT.glob("pipelines/**/*.py")])
KERNELS = {f"rsbdali.ops.{path.stem}" for path in ROOT.glob("rsbdali/ops/*_kernel*.py")}
# what a module that launches imports for another that has asked already, see Lamb.is_fused
ASKED_BEFORE = {("lamb_launch.py", "rsbdali.ops.lamb_kernels")}


def walk(node: ast.AST, above: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Every node with those that it is in."""
    yield node, above
    for child in ast.iter_child_nodes(node):
        yield from walk(child, (*above, node))


def is_launch(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and ast.unparse(node.func.value).endswith("_kernel")
    )


def unguarded(source: str) -> list[str]:
    """Launches of Triton kernels outside `with torch.cuda.device_of(...)`: they would go to the current GPU."""
    return [
        ast.unparse(node.func)
        for node, above in walk(ast.parse(source))
        if is_launch(node) and not any(isinstance(a, ast.With) and "cuda.device_of(" in ast.unparse(a) for a in above)
    ]


def unasked(source: str) -> list[str]:
    """Modules of kernels imported other than behind `if use_kernels(...)`."""
    found = []
    for node, above in walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)} & KERNELS
            is_asked = any(isinstance(a, ast.If) and "use_kernels(" in ast.unparse(a.test) for a in above)
            found += [] if is_asked else sorted(names)
    return found


def test_launches_are_guarded_and_kernels_asked_for() -> None:
    sources = [(path.name, path.read_text(encoding="utf-8")) for path in SOURCES]
    assert [(name, launch) for name, source in sources for launch in unguarded(source)] == []
    assert {(name, module) for name, source in sources for module in unasked(source)} == ASKED_BEFORE


def test_the_reader_sees_all_launches() -> None:
    found = [
        ast.unparse(node.func) for path in SOURCES for node, _ in walk(ast.parse(path.read_text())) if is_launch(node)
    ]
    assert len(found) == 5 + 2 + 1 + 1 + 2 + 1  # LAMB, BCE, mix, warp, RandAugment, erasing


@pytest.mark.parametrize(
    ("source", "launches", "imports"),
    [
        ("with torch.cuda.device_of(x):\n  my_kernel[(1,)](x)", 0, 0),
        ("with open(x):\n  my_kernel[(1,)](x)", 1, 0),
        ("k.my_kernel[grid](x)", 1, 0),
        ("if use_kernels(d):\n  from rsbdali.ops.warp_kernel import warp_fused", 0, 0),
        ("if x.is_cuda:\n  from rsbdali.ops.warp_kernel import warp_fused", 0, 1),
        ("def f():\n  from rsbdali.ops import lamb_kernels as k", 0, 1),
    ],
)
def test_a_planted_launch_is_seen(source: str, launches: int, imports: int) -> None:
    assert (len(unguarded(source)), len(unasked(source))) == (launches, imports)
