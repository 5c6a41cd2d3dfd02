"""timm's 15 RandAugment ops as DALI graph code: ids and arguments come from the plan, per sample and layer.

Sources: `timm.data.auto_augment`; Pillow's `ImageOps`, `ImageEnhance`, `Image.transform`. All images are uint8 HWC RGB
of one size. DALI's conditionals run each op on the samples that ask for it. Arithmetic follows Pillow's, integer for
integer and truncation for truncation, so results are Pillow's to the bit.
"""

import math
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dmath

from rsbdali.ops.warp import affine_matrices
from rsbdali.pipelines.torch_ops import equalize_samples, warp_samples
from rsbdali.plan.planner import BatchPlan
from rsbdali.plan.randaugment import Op

LAYER_FIELDS = 4  # op, arg, matrix, filter
Node = Any  # a DALI node


def layer_fields(plan: BatchPlan, *, layers: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Inputs of `apply_randaugment`: for each layer op int32, arg float32, matrix float64 (6), filter int32."""
    fields: list[np.ndarray] = []
    for layer in range(layers):
        op_N, arg_N = plan.op_NL[:, layer], plan.arg_NL[:, layer]
        fields += [
            op_N.astype(np.int32),
            arg_N.astype(np.float32),
            affine_matrices(op_N, arg_N, size),
            plan.op_interp_NL[:, layer].astype(np.int32),
        ]
    return fields


def apply_randaugment(images: Node, fields: Any, *, size: tuple[int, int], device: str) -> Node:
    """All layers, one after the other.

    Args:
        images: uint8 HWC RGB node, all of `size`.
        fields: nodes of `layer_fields`, on the CPU.
        size: (H, W).
        device: 'cpu' or 'gpu', where `images` are.
    """
    for first in range(0, len(fields), LAYER_FIELDS):
        op, arg, matrix, filters = fields[first : first + LAYER_FIELDS]
        images = _layer(images, op, arg, matrix, filters, size, device)
    # conditionals leave the samples scattered in memory
    return fn.copy(images) if fields else images


def _layer(images: Node, op: Node, arg: Node, matrix: Node, filters: Node, size: tuple[int, int], device: str) -> Node:
    """One op on each sample, or none. `if` acts per sample."""
    if device == "gpu":
        arg, matrix, filters = arg.gpu(), matrix.gpu(), filters.gpu()
    call: dict[str, Any] = {"device": device, "batch_processing": True, "output_layouts": "HWC"}
    if op >= 0:
        if op == Op.AUTO_CONTRAST.value:
            images = auto_contrast(images)
        elif op == Op.EQUALIZE.value:
            images = fn.dl_tensor_python_function(images, function=equalize_samples, **call)
        elif op == Op.INVERT.value:
            images = images ^ types.Constant(255, dtype=types.UINT8)
        elif op == Op.POSTERIZE.value:
            images = posterize(images, arg)
        elif op == Op.SOLARIZE.value:
            images = solarize(images, arg)
        elif op == Op.SOLARIZE_ADD.value:
            images = solarize_add(images, arg)
        elif op == Op.COLOR.value:
            images = color(images, arg)
        elif op == Op.CONTRAST.value:
            images = contrast(images, arg, size)
        elif op == Op.BRIGHTNESS.value:
            images = blend(types.Constant(0.0), images, arg)
        elif op == Op.SHARPNESS.value:
            images = sharpness(images, arg, size, device)
        else:
            images = fn.dl_tensor_python_function(images, matrix, filters, function=warp_samples, **call)
    return images


def auto_contrast(images: Node) -> Node:
    """Stretch each channel to 0..255 (`ImageOps.autocontrast`); a flat channel stays."""
    low = fn.reductions.min(images, axes=(0, 1), keep_dims=True)
    high = fn.reductions.max(images, axes=(0, 1), keep_dims=True)
    low, high = fn.cast(low, dtype=types.FLOAT64), fn.cast(high, dtype=types.FLOAT64)
    # Pillow computes in double and truncates: one rounding more or less moves whole gray levels
    flat = fn.cast(high == low, dtype=types.FLOAT64)
    scale = 255.0 / (high - low + flat * 255.0)
    scale = flat + (1.0 - flat) * scale
    offset = (flat - 1.0) * low * scale
    return _truncate(fn.cast(images, dtype=types.FLOAT64) * scale + offset)


def posterize(images: Node, bits: Node) -> Node:
    """Keep the upper `bits` bits (`ImageOps.posterize`), 0 to 8."""
    step = dmath.pow(2.0, 8.0 - bits)
    return images & fn.cast(256.0 - step, dtype=types.UINT8)


def solarize(images: Node, threshold: Node) -> Node:
    """Invert the pixels at or above the threshold (`ImageOps.solarize`)."""
    above = fn.cast(images >= threshold, dtype=types.UINT8)
    return images ^ (above * types.Constant(255, dtype=types.UINT8))


def solarize_add(images: Node, addend: Node) -> Node:
    """Add to the pixels below 128, up to 255 (timm's `solarize_add`)."""
    below = fn.cast(images < 128, dtype=types.FLOAT)
    return _truncate(images + below * addend)


def color(images: Node, factor: Node) -> Node:
    """Blend with the gray image (`ImageEnhance.Color`)."""
    return blend(fn.cast(_luma(images), dtype=types.FLOAT), images, factor)


def contrast(images: Node, factor: Node, size: tuple[int, int]) -> Node:
    """Blend with the mean gray (`ImageEnhance.Contrast`)."""
    pixels = math.prod(size)
    total = fn.reductions.sum(fn.cast(_luma(images), dtype=types.INT64), axes=(0, 1), keep_dims=True)
    mean = (total * 2 + pixels) // (2 * pixels)
    return blend(fn.cast(mean, dtype=types.FLOAT), images, factor)


def sharpness(images: Node, factor: Node, size: tuple[int, int], device: str) -> Node:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13 (`ImageEnhance.Sharpness`); the border stays."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    inside = np.zeros((*size, 1), np.int32)
    inside[1:-1, 1:-1] = 1
    total = fn.filter(images, types.Constant(kernel, device=device), dtype=types.FLOAT, border="reflect_101")
    smooth = (fn.cast(total, dtype=types.INT32) * 2 + 13) // 26
    mask = types.Constant(inside, device=device)
    base = fn.cast(images, dtype=types.INT32)
    return blend(fn.cast(base + mask * (smooth - base), dtype=types.FLOAT), images, factor)


def blend(degenerate: Node, images: Node, factor: Node) -> Node:
    """`degenerate + factor * (images - degenerate)` in float32, clipped, truncated (`Image.blend`)."""
    return _truncate(degenerate + factor * (fn.cast(images, dtype=types.FLOAT) - degenerate))


def _luma(images: Node) -> Node:
    """Pillow's RGB to L, int32 HW1: (19595 R + 38470 G + 7471 B + 32768) >> 16."""
    weights = types.Constant(np.array([[[19595, 38470, 7471]]], np.int32), device=images.device)
    total = fn.reductions.sum(fn.cast(images, dtype=types.INT32) * weights, axes=(2,), keep_dims=True)
    return fn.cast((total + 32768) // 65536, dtype=types.INT32)


def _truncate(values: Node) -> Node:
    """Clip to 0..255 and cut the fraction off, as C's cast does."""
    return fn.cast(dmath.floor(dmath.clamp(values, 0.0, 255.0)), dtype=types.UINT8)
