"""Which way an op runs: as a Triton kernel or as plain torch. Every op asks here, and nowhere else.

| device | RSBDALI_KERNELS unset | `interpret` | `reference` |
|---|---|---|---|
| CUDA | kernel; without Triton or a compiler plain torch | kernel | plain torch |
| CPU | plain torch | kernel, in Triton's interpreter | plain torch |

`interpret` lets tests run the kernels without a GPU; it needs TRITON_INTERPRET=1 from before Triton is imported.
`reference` lets a GPU run without the kernels, to see whether one of them is at fault.
"""

import importlib.util
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch

from rsbdali.errors import DeviceError

VARIABLE = "RSBDALI_KERNELS"
CHOICES = ("", "interpret", "reference")


def use_kernels(device: torch.device) -> bool:
    """Whether tensors on this device go to the Triton kernels; see the module's table.

    Args:
        device: where the op's tensors are.

    Raises:
        DeviceError: `RSBDALI_KERNELS` has a value that is not known, or asks for an interpreter that is off.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice not in CHOICES:
        raise DeviceError(f"{VARIABLE}={choice!r}: leave it out, or use interpret or reference")
    if choice == "interpret" and os.environ.get("TRITON_INTERPRET") != "1":
        raise DeviceError(f"{VARIABLE}=interpret needs TRITON_INTERPRET=1 in the environment as well")
    return choice == "interpret" or (choice == "" and device.type == "cuda" and missing_compiler() is None)


@cache
def missing_compiler() -> str | None:
    """What Triton lacks here to compile a kernel (it builds a small C module for each); None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if "CC" not in os.environ and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "there is no C compiler"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"there is no {header}"
