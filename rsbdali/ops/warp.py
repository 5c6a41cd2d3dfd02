"""Pillow's affine warps in torch, to the bit, on the CPU or a GPU; DALI has no exact operator for them.

(OpenCV, on which DALI's `warp_perspective` rests, rounds source positions to 1/32 pixel and results to nearest, and has
another cubic kernel, a = -0.75; `warp_affine` has no cubic.) Pillow computes in double, takes a = -0.5, truncates, and
has a hard edge to the fill color. On a GPU `warp_kernel.py` does the same in one pass; `warp_each` chooses.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from rsbdali.ops.backend import use_kernels
from rsbdali.plan.randaugment import FILL_RGB, Op

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def affine_matrices(op_N: np.ndarray, arg_N: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Output-to-source matrices of the geometric ops (timm's `shear_x`, …; `PIL.Image.rotate`).

    Args:
        op_N: int, values of `Op`; the identity is given for ops that are not geometric.
        arg_N: float64, degrees, shear, share of the side, or pixels.
        size: (H, W) of the image.

    Returns:
        float64, shape (N, 6): (a, b, c, d, e, f) with x_in = a x + b y + c and y_in = d x + e y + f at pixel centers.
    """
    height, width = size
    matrix_N6 = np.tile(np.array(IDENTITY), (len(op_N), 1))
    for op, column, factor in (
        (Op.SHEAR_X, 1, 1.0),
        (Op.SHEAR_Y, 3, 1.0),
        (Op.TRANSLATE_X, 2, width),
        (Op.TRANSLATE_Y, 5, height),
        (Op.TRANSLATE_X_ABS, 2, 1.0),
        (Op.TRANSLATE_Y_ABS, 5, 1.0),
    ):
        rows = op_N == op
        matrix_N6[rows, column] = arg_N[rows] * factor
    matrix_N6[op_N == Op.FLIP_Y] = 1.0, 0.0, 0.0, 0.0, -1.0, height
    for row in np.flatnonzero(op_N == Op.ROTATE):
        matrix_N6[row] = _rotation(float(arg_N[row]), size)
    return matrix_N6


def _rotation(degrees: float, size: tuple[int, int]) -> tuple[float, ...]:
    """Pillow's matrix, its rounding to 15 digits included."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    cy, cx = size[0] / 2.0, size[1] / 2.0
    return cos, sin, cos * -cx + sin * -cy + cx, -sin, cos, -sin * -cx + cos * -cy + cy


def warp_each(images_NHWC: torch.Tensor, matrix_N6: torch.Tensor, cubic_N: torch.Tensor) -> torch.Tensor:
    """`warp` with a filter per image: in one pass by the kernel, or image by image.

    Args:
        images_NHWC: uint8, contiguous, three channels.
        matrix_N6: float64, see `affine_matrices`, on the same device.
        cubic_N: bool, bicubic where true, else bilinear.

    Returns:
        uint8, same shape.
    """
    if use_kernels(images_NHWC.device):
        from rsbdali.ops.warp_kernel import warp_fused  # Triton takes a while to import, and a CPU needs none

        return warp_fused(images_NHWC, matrix_N6, cubic_N)
    # image by image the working set stays in a CPU's cache
    one = [slice(i, i + 1) for i in range(len(images_NHWC))]
    return torch.cat(
        [warp(images_NHWC[i], matrix_N6[i], cubic=cubic) for i, cubic in zip(one, cubic_N.tolist(), strict=True)]
    )


def warp(images_NHWC: torch.Tensor, matrix_N6: torch.Tensor, *, cubic: bool) -> torch.Tensor:
    """Affine warp as `PIL.Image.transform` with `FILL_RGB`, bilinear or bicubic (a = -0.5).

    Args:
        images_NHWC: uint8.
        matrix_N6: float64, see `affine_matrices`, on the same device.
        cubic: the filter.

    Returns:
        uint8, same shape: truncated, not rounded, and with a hard edge to the fill, as Pillow's.
    """
    n, height, width, channels = images_NHWC.shape
    x_11W, y_1H1 = _centers(width, matrix_N6)[None, None], _centers(height, matrix_N6)[None, :, None]
    a, b, c, d, e, f = matrix_N6.T[:, :, None, None]
    x_P, y_P = (a * x_11W + b * y_1H1 + c).flatten(), (d * x_11W + e * y_1H1 + f).flatten()
    inside_P = (x_P >= 0) & (x_P < width) & (y_P >= 0) & (y_P < height)
    x_P, y_P = x_P - 0.5, y_P - 0.5
    left_P, top_P = x_P.floor(), y_P.floor()
    dx_P, dy_P = x_P - left_P, y_P - top_P
    left_P, top_P = left_P.int(), top_P.int()
    pixels_CP = images_NHWC.reshape(-1, channels).T.double().contiguous()
    first_P = torch.arange(n, dtype=torch.int32, device=images_NHWC.device).repeat_interleave(height * width)
    first_P = first_P * (height * width)
    taps = range(-1, 3) if cubic else range(2)
    interpolate = _cubic if cubic else _linear
    columns = [(left_P + i).clamp(0, width - 1) for i in taps]

    def line(j: int) -> torch.Tensor:
        start_P = first_P + (top_P + j).clamp(0, height - 1) * width
        return interpolate([pixels_CP.index_select(1, start_P + column_P) for column_P in columns], dx_P)

    values_CP = interpolate([line(j) for j in taps], dy_P).clamp(0, 255).to(torch.uint8)
    fill_C1 = torch.tensor(FILL_RGB, dtype=torch.uint8, device=images_NHWC.device)[:, None]
    return torch.where(inside_P, values_CP, fill_C1).T.reshape(n, height, width, channels)


def _centers(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64, device=like.device) + 0.5


def _linear(v: Sequence[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    return v[0] + (v[1] - v[0]) * t


def _cubic(v: Sequence[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    """Pillow's BICUBIC macro, in its order of operations."""
    p1, p2 = v[1], v[2] - v[0]
    p3, p4 = 2 * (v[0] - v[1]) + v[2] - v[3], -v[0] + v[1] - v[2] + v[3]
    return p1 + t * (p2 + t * (p3 + t * p4))
