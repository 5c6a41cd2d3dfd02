"""Number formats and kernel choice: the AMP dtype, TF32, cuDNN's autotuner, deterministic kernels."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rsbdali.errors import RecipeError

log = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: the recipe's `amp_dtype` for this device.

    `auto` takes float16 on Volta and Turing (sm_70 to sm_75, which have tensor cores for float16 alone), bfloat16 from
    Ampere on (sm_80, which computes it natively), float32 on older GPUs and on the CPU.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32


def warn_if_emulated(dtype: torch.dtype, device: torch.device) -> None:
    """Say so where a GPU is asked for bfloat16 and has no unit for it: it runs, at a fraction of float16's speed."""
    if dtype is torch.bfloat16 and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            log.warning(
                "amp_dtype=bfloat16 on sm_%d%d, which has no bfloat16 of its own: slow; auto takes %s there",
                major,
                minor,
                name_of(amp_dtype("auto", device)),
            )


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; off for float32."""
    enabled = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16, and so on."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def kernel_policy(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Set the process's kernel policy while the block runs, and log it.

    On a GPU TF32 serves what autocast leaves in float32, and cuDNN tries its algorithms out (sizes never change in
    training). `deterministic` turns the trying off and has torch take kernels that give the same result every time;
    where it has none for an operation, it warns and names it.

    Raises:
        RecipeError: deterministic was asked for when CUDA's workspace was already set up otherwise.
    """
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if deterministic and device.type == "cuda":
        _fix_cublas_workspace()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before[0])
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    log.info(
        "Kernels: TF32 %s, cudnn.benchmark %s, deterministic %s",
        *(("on" if on else "off") for on in (device.type == "cuda", torch.backends.cudnn.benchmark, deterministic)),
    )
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])


def _fix_cublas_workspace() -> None:
    # cuBLAS reads it when its first handle is made; its products may vary without it
    wanted = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted not in (":4096:8", ":16:8"):
        raise RecipeError(f"CUBLAS_WORKSPACE_CONFIG={wanted} is not deterministic: set it to :4096:8")
