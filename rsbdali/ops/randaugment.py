"""The flip and RandAugment on a batch of resized images, as the plan says, equal to Pillow and timm to the bit.

On a GPU they are two Triton kernels a layer (`randaugment_kernel.py`), elsewhere Pillow (`randaugment_reference.py`).
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from rsbdali.ops.backend import use_kernels
from rsbdali.ops.randaugment_reference import randaugment_reference

HostRows: TypeAlias = np.ndarray | torch.Tensor


def randaugment(
    images_NHWC: torch.Tensor,
    flip_N: HostRows,
    op_NL: HostRows,
    arg_NL: HostRows,
    op_interp_NL: HostRows,
    *,
    fill: Sequence[int],
) -> torch.Tensor:
    """Flip each image if its row says so, then apply its L ops in turn.

    Args:
        images_NHWC: uint8 RGB, contiguous, all of one size, at least one pixel; left as it is.
        flip_N: bool, horizontal flip. This and the following: NumPy arrays or CPU tensors, as in `BatchPlan`.
        op_NL: int, values of `Op`; NONE for a layer without an op. L may be 0.
        arg_NL: float64, the ops' arguments (`level_to_arg`). Ops that take a whole number cut the fraction off;
            numbers beyond Pillow's range act like the nearest one inside; 0 bits of Posterize give black.
        op_interp_NL: int, BILINEAR or BICUBIC, filter of the geometric ops.
        fill: levels of R, G and B outside the image.

    Returns:
        uint8, shape (N, H, W, 3), memory of its own, on the images' device; on CUDA, work on the current stream.
    """
    assert images_NHWC.dtype == torch.uint8
    assert images_NHWC.ndim == 4
    assert images_NHWC.shape[3] == 3
    rows = [np.asarray(array) for array in (flip_N, op_NL, arg_NL, op_interp_NL)]
    if use_kernels(images_NHWC.device):
        from rsbdali.ops.randaugment_kernel import randaugment_fused  # Triton takes a while to import

        return randaugment_fused(images_NHWC, *rows, fill=fill)
    return randaugment_reference(images_NHWC, *rows, fill=fill)
