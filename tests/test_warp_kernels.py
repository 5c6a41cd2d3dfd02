"""The GPU's warp without a GPU: Triton's interpreter against Pillow's result in torch, and compiled for each GPU."""

import numpy as np
import pytest
import torch

from helpers import triton_tools
from rsbdali.ops import warp_kernel
from rsbdali.ops.warp import affine_matrices, warp, warp_each
from rsbdali.plan.randaugment import Op

OPS = np.array([Op.ROTATE, Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y])
ARGS = np.array([-30, 17.3, 0.3, -0.1799, 0.45, -0.2713])


def case(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Six noisy images and the matrices of the geometric ops."""
    images_NHWC = np.random.default_rng(1).integers(0, 256, (len(OPS), height, width, 3), dtype=np.uint8)
    return torch.from_numpy(images_NHWC), torch.from_numpy(affine_matrices(OPS, ARGS, (height, width)))


def reference(images_NHWC: torch.Tensor, matrix_N6: torch.Tensor, cubic_N: torch.Tensor) -> torch.Tensor:
    rows = range(len(images_NHWC))
    return torch.cat([warp(images_NHWC[i : i + 1], matrix_N6[i : i + 1], cubic=bool(cubic_N[i])) for i in rows])


def check_interpreted() -> None:
    images_NHWC, matrix_N6 = case(15, 17)
    for first in (True, False):
        cubic_N = torch.arange(len(OPS)) % 2 == int(first)
        warped_NHWC = warp_each(images_NHWC, matrix_N6, cubic_N)
        assert torch.equal(warped_NHWC, reference(images_NHWC, matrix_N6, cubic_N))


def test_parity_warp_kernel_interpreted() -> None:
    assert triton_tools.interpret(__file__) == {"check_interpreted": ""}


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
def test_warp_kernel_compiles(capability: int) -> None:
    types = {"images": "*u8", "out": "*u8", "matrices": "*fp64", "cubics": "*i32", "height": "i32", "width": "i32"}
    stages = triton_tools.compiled(
        warp_kernel.warp_kernel, capability, types, {"BLOCK": warp_kernel.BLOCK}, enable_fp_fusion=False
    )
    assert stages["cubin"]
    assert "fma.rn.f64" not in stages["ptx"]  # Pillow rounds after each multiplication


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parity_warp_kernel_on_the_gpu() -> None:
    images_NHWC, matrix_N6 = case(160, 176)
    for first in (True, False):
        cubic_N = torch.arange(len(OPS)) % 2 == int(first)
        warped_NHWC = warp_kernel.warp_fused(images_NHWC.cuda(), matrix_N6.cuda(), cubic_N.cuda())
        assert torch.equal(warped_NHWC.cpu(), reference(images_NHWC, matrix_N6, cubic_N))


if __name__ == "__main__":
    triton_tools.report([check_interpreted])
