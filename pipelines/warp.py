"""The two RandAugment ops for which DALI has no exact operator, in torch: Pillow's affine warps and its equalize.

DALI calls `warp_samples` and `equalize_samples` from inside the graph with the samples of a batch that need them, as
DLPack capsules on the CPU or the GPU. The arithmetic is Pillow's, in double and in integers, so the results are its
own to the bit on either device. (OpenCV, on which DALI's `warp_perspective` rests, has another cubic kernel, a = -0.75,
and rounds source positions to 1/32 pixel; `fn.equalize` builds another table.)
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils import dlpack

from rsbdali.plan import BICUBIC
from rsbdali.policy import FILL_RGB, Op

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def affine_matrices(op_N: np.ndarray, arg_N: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Output-to-source matrices of the geometric ops (timm's `shear_x`, …; `PIL.Image.rotate`).

    Args:
        op_N: int, values of `Op`; the identity is given for ops that are not geometric.
        arg_N: float64, degrees, shear, or share of the side.
        size: (H, W) of the image.

    Returns:
        float64, shape (N, 6): (a, b, c, d, e, f) with x_in = a x + b y + c and y_in = d x + e y + f at pixel centres.
    """
    height, width = size
    matrix_N6 = np.tile(np.array(IDENTITY), (len(op_N), 1))
    for op, column, factor in (
        (Op.SHEAR_X, 1, 1.0), (Op.SHEAR_Y, 3, 1.0), (Op.TRANSLATE_X, 2, width), (Op.TRANSLATE_Y, 5, height),
    ):  # fmt: skip
        rows = op_N == op
        matrix_N6[rows, column] = arg_N[rows] * factor
    for row in np.flatnonzero(op_N == Op.ROTATE):
        matrix_N6[row] = _rotation(float(arg_N[row]), size)
    return matrix_N6


def _rotation(degrees: float, size: tuple[int, int]) -> tuple[float, ...]:
    """Pillow's matrix, its rounding to 15 digits included."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    cy, cx = size[0] / 2.0, size[1] / 2.0
    return cos, sin, cos * -cx + sin * -cy + cx, -sin, cos, -sin * -cx + cos * -cy + cy


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
    x_N1W, y_NH1 = _centres(width, matrix_N6)[None, None], _centres(height, matrix_N6)[None, :, None]
    a, b, c, d, e, f = matrix_N6.T[:, :, None, None]
    x_NHW, y_NHW = a * x_N1W + b * y_NH1 + c, d * x_N1W + e * y_NH1 + f
    inside_NHW = (x_NHW >= 0) & (x_NHW < width) & (y_NHW >= 0) & (y_NHW < height)
    x_NHW, y_NHW = x_NHW - 0.5, y_NHW - 0.5
    column_NHW, row_NHW = x_NHW.floor(), y_NHW.floor()
    dx_NHW1, dy_NHW1 = (x_NHW - column_NHW)[..., None], (y_NHW - row_NHW)[..., None]
    column_NHW, row_NHW = column_NHW.long(), row_NHW.long()
    pixels_PC = images_NHWC.reshape(-1, channels)
    first_N11 = torch.arange(n, device=images_NHWC.device)[:, None, None] * (height * width)
    taps = range(-1, 3) if cubic else range(2)
    interpolate = _cubic if cubic else _linear

    def line(j: int) -> torch.Tensor:
        start_NHW = first_N11 + (row_NHW + j).clamp(0, height - 1) * width
        columns = [start_NHW + (column_NHW + i).clamp(0, width - 1) for i in taps]
        return interpolate([pixels_PC[at].double() for at in columns], dx_NHW1)

    values_NHWC = interpolate([line(j) for j in taps], dy_NHW1)
    fill_C = torch.tensor(FILL_RGB, dtype=torch.uint8, device=images_NHWC.device)
    return torch.where(inside_NHW[..., None], values_NHWC.clamp(0, 255).to(torch.uint8), fill_C)


def _centres(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64, device=like.device) + 0.5


def _linear(v: Sequence[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    return v[0] + (v[1] - v[0]) * t


def _cubic(v: Sequence[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    """Pillow's BICUBIC macro, in its order of operations."""
    p1, p2 = v[1], v[2] - v[0]
    p3, p4 = 2 * (v[0] - v[1]) + v[2] - v[3], -v[0] + v[1] - v[2] + v[3]
    return p1 + t * (p2 + t * (p3 + t * p4))


def equalize(images_NHWC: torch.Tensor) -> torch.Tensor:
    """Histogram equalisation of each channel as `PIL.ImageOps.equalize`, uint8 in and out."""
    n, height, width, channels = images_NHWC.shape
    planes_KP = images_NHWC.permute(0, 3, 1, 2).reshape(n * channels, height * width).long()
    histogram_KV = torch.zeros(len(planes_KP), 256, dtype=torch.int64, device=images_NHWC.device)
    histogram_KV.scatter_add_(1, planes_KP, torch.ones_like(planes_KP))
    brightest_K1 = histogram_KV.gather(1, planes_KP.amax(1, keepdim=True))
    step_K1 = torch.div(height * width - brightest_K1, 255, rounding_mode="floor")
    below_KV = histogram_KV.cumsum(1) - histogram_KV
    divisor_K1 = step_K1.clamp(min=1)
    table_KV = torch.div(divisor_K1 // 2 + below_KV, divisor_K1, rounding_mode="floor").clamp(max=255)
    # a step of 0 (nearly one grey level) leaves the channel as it is
    equalized_KP = torch.where(step_K1 == 0, planes_KP, table_KV.gather(1, planes_KP))
    return equalized_KP.to(torch.uint8).view(n, channels, height, width).permute(0, 2, 3, 1).contiguous()


def warp_samples(image_capsules: list[Any], matrix_capsules: list[Any], filter_capsules: list[Any]) -> list[Any]:
    """`warp` for DALI's `dl_tensor_python_function`: lists of DLPack capsules in, one list out."""

    def run(images_NHWC: torch.Tensor) -> torch.Tensor:
        matrix_N6, filter_N = _stack(matrix_capsules), _stack(filter_capsules).flatten()
        warped_NHWC = torch.empty_like(images_NHWC)
        for cubic in (False, True):
            rows = torch.nonzero((filter_N == BICUBIC) == cubic).flatten()
            if len(rows):
                warped_NHWC[rows] = warp(images_NHWC[rows], matrix_N6[rows], cubic=cubic)
        return warped_NHWC

    return _run(run, image_capsules)


def equalize_samples(image_capsules: list[Any]) -> list[Any]:
    """`equalize` for DALI's `dl_tensor_python_function`."""
    return _run(equalize, image_capsules)


def _stack(capsules: list[Any]) -> torch.Tensor:
    return torch.stack([dlpack.from_dlpack(c) for c in capsules])


def _run(function: Callable[[torch.Tensor], torch.Tensor], image_capsules: list[Any]) -> list[Any]:
    """Call `function` on the stacked images; on a GPU in a stream of its own, finished on return.

    DALI has finished the inputs before it calls (`synchronize_stream`) and takes the results up on its own stream.
    The default stream would queue this work behind the model's.
    """
    first = dlpack.from_dlpack(image_capsules[0])
    images = [first, *(dlpack.from_dlpack(c) for c in image_capsules[1:])]
    if not first.is_cuda:
        result_NHWC = function(torch.stack(images))
    else:
        stream = _side_stream(first.device.index)
        with torch.cuda.device(first.device), torch.cuda.stream(stream):
            result_NHWC = function(torch.stack(images))
        stream.synchronize()
    return [dlpack.to_dlpack(image) for image in result_NHWC]  # type: ignore[attr-defined]  # not in __all__


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
