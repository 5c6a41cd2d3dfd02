"""Triton kernels without a GPU: run by its interpreter in a process of its own, and compiled for any GPU.

A script that `interpret` starts is a test file whose last lines hand its checks to `report`.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import numpy as np
import pytest

CAPABILITIES = (70, 80, 90, 100)
POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}

TRITON = tuple(map(int, metadata.version("triton").split(".")[:2]))
needs_ranges = pytest.mark.skipif(
    TRITON < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="this Triton's interpreter cannot take range(argument) with NumPy 2.4",
)
needs_hooks = pytest.mark.skipif(TRITON < (3, 6), reason="this Triton's interpreter has no hooks that count launches")


def names_of(checks: Iterable[Callable[[], None]], counting: Iterable[Callable[[], None]] = ()) -> list[Any]:
    """Parameters of a test for each check; those that count launches are skipped where that cannot be."""
    return [pytest.param(check.__name__, marks=needs_hooks if check in counting else ()) for check in checks]


def interpret(path: str) -> dict[str, str]:
    """Run a test file as a script under Triton's interpreter: what went wrong in each check, by name, or "".

    In a process of its own, since Triton 3.3's interpreter changes Triton for the rest of a process.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "RSBDALI_KERNELS": "interpret"}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(checks: Iterable[Callable[[], None]]) -> None:
    """Run each check, and print as JSON what `interpret` returns."""
    found = {}
    for check in checks:
        try:
            check()
            found[check.__name__] = ""
        except Exception:  # whatever it is, the test of that name prints it and fails
            found[check.__name__] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def compiled(
    kernel: Any,
    capability: int,
    types: dict[str, str],
    constants: dict[str, Any],
    *,
    aligned: Iterable[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """A kernel's stages ("ptx", "cubin", …), compiled for a GPU that need not be there.

    Args:
        kernel: `triton.jit` function.
        capability: 90 for sm_90.
        types: Triton's type of each argument that is no constant.
        constants: the others.
        aligned: arguments that divide by 16, as pointers from torch do; a call finds that out by itself.
        **options: of the compiler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
