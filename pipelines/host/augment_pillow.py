"""RandAugment's ops on one image by Pillow, as timm calls it: the reference, and what runs where Numba cannot."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from rsbdali.plan.randaugment import BICUBIC, FILL_RGB, Op

SOLARIZE_ADD_BELOW = 128  # timm: only levels below this are raised
RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
assert BICUBIC == 1


def augment(image_HWC: np.ndarray, op_L: Sequence[int], arg_L: Sequence[float], interp_L: Sequence[int]) -> None:
    """Apply one image's layers in turn, in place.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous and writable.
        op_L: values of `policy.Op`; NONE skips a layer.
        arg_L: the ops' arguments (`policy.level_to_arg`).
        interp_L: `policy.BILINEAR` or `policy.BICUBIC`, for geometric ops.
    """
    layers = [layer for layer in zip(op_L, arg_L, interp_L, strict=True) if layer[0] != Op.NONE]
    if not layers:
        return
    image = Image.fromarray(image_HWC)
    for op, arg, interp in layers:
        image = OPS[op](image, arg, RESAMPLING[interp])
    np.copyto(image_HWC, np.asarray(image))


def _posterize(image: Image.Image, bits: float, _resampling: Image.Resampling) -> Image.Image:
    mask = 256 - (1 << (8 - int(bits))) & 0xFF  # Pillow 13's own function refuses to keep no bit, Pillow 11's did not
    return image.point([v & mask for v in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float, _resampling: Image.Resampling) -> Image.Image:
    table = [min(255, v + int(addend)) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], resampling: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=FILL_RGB)


OPS: dict[int, Callable[[Image.Image, float, Image.Resampling], Image.Image]] = {
    Op.AUTO_CONTRAST: lambda image, _arg, _resampling: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, _arg, _resampling: ImageOps.equalize(image),
    Op.INVERT: lambda image, _arg, _resampling: ImageOps.invert(image),
    Op.ROTATE: lambda image, degrees, resampling: image.rotate(degrees, resample=resampling, fillcolor=FILL_RGB),
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: lambda image, threshold, _resampling: ImageOps.solarize(image, int(threshold)),
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: lambda image, factor, _resampling: ImageEnhance.Color(image).enhance(factor),
    Op.CONTRAST: lambda image, factor, _resampling: ImageEnhance.Contrast(image).enhance(factor),
    Op.BRIGHTNESS: lambda image, factor, _resampling: ImageEnhance.Brightness(image).enhance(factor),
    Op.SHARPNESS: lambda image, factor, _resampling: ImageEnhance.Sharpness(image).enhance(factor),
    Op.SHEAR_X: lambda image, shear, resampling: _affine(image, (1, shear, 0, 0, 1, 0), resampling),
    Op.SHEAR_Y: lambda image, shear, resampling: _affine(image, (1, 0, 0, shear, 1, 0), resampling),
    Op.TRANSLATE_X: lambda image, share, resampling: _affine(image, (1, 0, share * image.width, 0, 1, 0), resampling),
    Op.TRANSLATE_Y: lambda image, share, resampling: _affine(image, (1, 0, 0, 0, 1, share * image.height), resampling),
}
