"""RandAugment's ops on one image by Pillow, as timm calls it: the reference, and what runs where Numba cannot."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from rsbdali.pipelines.host import pillow_ops
from rsbdali.plan.randaugment import BICUBIC, FILL_RGB, HOST_OPS, Op

SOLARIZE_ADD_BELOW = 128  # timm: only levels below this are raised
RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
assert BICUBIC == 1


class Warp(NamedTuple):
    """What the geometric ops take besides their argument."""

    resample: Image.Resampling
    fillcolor: tuple[int, ...]


def augment(
    image_HWC: np.ndarray,
    op_L: Sequence[int],
    arg_L: Sequence[float],
    interp_L: Sequence[int],
    fill: tuple[int, ...] = FILL_RGB,
) -> None:
    """Apply one image's layers in turn, in place.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous and writable.
        op_L: values of `policy.Op`; NONE skips a layer.
        arg_L: the ops' arguments (`policy.level_to_arg`).
        interp_L: `policy.BILINEAR` or `policy.BICUBIC`, for geometric ops.
        fill: levels of R, G and B outside the image.
    """
    layers = [layer for layer in zip(op_L, arg_L, interp_L, strict=True) if layer[0] != Op.NONE]
    if not layers:
        return
    image = Image.fromarray(image_HWC)
    for op, arg, interp in layers:
        image = OPS[op](image, arg, Warp(RESAMPLING[interp], fill))
    np.copyto(image_HWC, np.asarray(image))


def _posterize(image: Image.Image, bits: float, _warp: Warp) -> Image.Image:
    mask = 256 - (1 << (8 - int(bits))) & 0xFF  # Pillow 13's own function refuses to keep no bit, Pillow 11's did not
    return image.point([v & mask for v in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float, _warp: Warp) -> Image.Image:
    table = [min(255, v + int(addend)) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **warp._asdict())


def _by_pillow(op: Op) -> Callable[[Image.Image, float, Warp], Image.Image]:
    return lambda image, arg, _warp: pillow_ops.OPS[op](image, arg)


OPS: dict[int, Callable[[Image.Image, float, Warp], Image.Image]] = {
    Op.AUTO_CONTRAST: lambda image, _arg, _warp: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, _arg, _warp: ImageOps.equalize(image),
    Op.INVERT: lambda image, _arg, _warp: ImageOps.invert(image),
    Op.ROTATE: lambda image, degrees, warp: image.rotate(degrees, **warp._asdict()),
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: lambda image, threshold, _warp: ImageOps.solarize(image, int(threshold)),
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: lambda image, factor, _warp: ImageEnhance.Color(image).enhance(factor),
    Op.CONTRAST: lambda image, factor, _warp: ImageEnhance.Contrast(image).enhance(factor),
    Op.BRIGHTNESS: lambda image, factor, _warp: ImageEnhance.Brightness(image).enhance(factor),
    Op.SHARPNESS: lambda image, factor, _warp: ImageEnhance.Sharpness(image).enhance(factor),
    Op.SHEAR_X: lambda image, shear, warp: _affine(image, (1, shear, 0, 0, 1, 0), warp),
    Op.SHEAR_Y: lambda image, shear, warp: _affine(image, (1, 0, 0, shear, 1, 0), warp),
    Op.TRANSLATE_X: lambda image, share, warp: _affine(image, (1, 0, share * image.width, 0, 1, 0), warp),
    Op.TRANSLATE_Y: lambda image, share, warp: _affine(image, (1, 0, 0, 0, 1, share * image.height), warp),
    Op.FLIP_Y: lambda image, _arg, _warp: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    Op.TRANSLATE_X_ABS: lambda image, pixels, warp: _affine(image, (1, 0, pixels, 0, 1, 0), warp),
    Op.TRANSLATE_Y_ABS: lambda image, pixels, warp: _affine(image, (1, 0, 0, 0, 1, pixels), warp),
    **{op: _by_pillow(op) for op in HOST_OPS},
}
