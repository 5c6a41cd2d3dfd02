"""All ops on one image by Pillow (blur and hue as torchvision has them): what every faster way is compared with.

Sources: `timm.data.auto_augment` (its functions of the same names), Pillow's `ImageOps`, `ImageEnhance`,
`Image.transform`; torchvision's `GaussianBlur(kernel_size=23)` and `adjust_hue`, as timm's
`transforms_imagenet_train` calls them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rsbdali.plan.randaugment import BICUBIC, Op

SOLARIZE_ADD_BELOW = 128  # timm raises only pixels darker than this
BLUR_TAPS = 23
RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
assert BICUBIC == 1


class Warp(NamedTuple):
    """What the geometric ops take besides their argument."""

    resample: Image.Resampling
    fillcolor: tuple[int, ...]


def apply_layers(
    image: Image.Image, op_L: Sequence[int], arg_L: Sequence[float], interp_L: Sequence[int], fill: tuple[int, ...]
) -> Image.Image:
    """Apply one image's layers in turn.

    Args:
        image: RGB.
        op_L: values of `Op`; NONE skips a layer.
        arg_L: the ops' arguments (`plan.randaugment.level_to_arg`).
        interp_L: BILINEAR or BICUBIC, for geometric ops.
        fill: levels of R, G and B outside the image.
    """
    for op, arg, interp in zip(op_L, arg_L, interp_L, strict=True):
        if op != Op.NONE:
            image = OPS[op](image, float(arg), Warp(RESAMPLING[interp], fill))
    return image


def _posterize(image: Image.Image, bits: float, _warp: Warp) -> Image.Image:
    mask = 256 - (1 << max(0, 8 - int(bits))) & 0xFF  # Pillow 13's own function refuses to keep no bit, 11's did not
    return image.point([v & mask for v in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float, _warp: Warp) -> Image.Image:
    table = [min(255, v + int(addend)) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **warp._asdict())


def _gaussian_blur(image: Image.Image, radius: float, _warp: Warp) -> Image.Image:
    """Pillow's approximation by box blurs; radius in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius=radius))


def _gaussian_filter(image: Image.Image, sigma: float, _warp: Warp) -> Image.Image:
    """Torchvision's convolution in float32, rounded; sigma in pixels."""
    from torchvision.transforms import functional  # takes a while to import, and few recipes blur

    blurred: Image.Image = functional.gaussian_blur(image, BLUR_TAPS, sigma)
    return blurred


def _rotate_hue(image: Image.Image, share: float, _warp: Warp) -> Image.Image:
    """Add a share of the circle, -0.5 to 0.5, to the hue in Pillow's HSV, in 256 steps, toward zero."""
    hue, saturation, value = image.convert("HSV").split()
    rotated = np.asarray(hue) + np.int32(share * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(rotated, "L"), saturation, value)).convert("RGB")


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
    Op.GAUSSIAN_BLUR: _gaussian_blur,
    Op.GAUSSIAN_FILTER: _gaussian_filter,
    Op.HUE: _rotate_hue,
}
