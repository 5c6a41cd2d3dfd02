"""RandAugment and the flip by Pillow, image by image: the meaning of `ops.randaugment`, not the fast way.

Sources: `timm.data.auto_augment` (its functions of the same names), Pillow's `ImageOps`, `ImageEnhance`,
`Image.transform`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from rsbdali.plan.randaugment import BICUBIC, Op

SOLARIZE_ADD_BELOW = 128  # timm raises only pixels darker than this


class Warp(NamedTuple):
    """What the geometric ops take besides their argument."""

    resample: Image.Resampling
    fillcolor: tuple[int, ...]


def randaugment_reference(
    images_NHWC: torch.Tensor,
    flip_N: np.ndarray,
    op_NL: np.ndarray,
    arg_NL: np.ndarray,
    op_interp_NL: np.ndarray,
    *,
    fill: Sequence[int],
) -> torch.Tensor:
    """`randaugment` by Pillow, on any device: the images travel to the host and back."""
    out_NHWC = np.empty(images_NHWC.shape, np.uint8)
    rows = zip(images_NHWC.cpu().numpy(), flip_N, op_NL, arg_NL, op_interp_NL, strict=True)
    for row, (image_HWC, flip, *layers) in enumerate(rows):
        out_NHWC[row] = _augment(Image.fromarray(image_HWC), bool(flip), zip(*layers, strict=True), tuple(fill))
    return torch.from_numpy(out_NHWC).to(images_NHWC.device)


def _augment(
    image: Image.Image, flip: bool, layers: Iterable[tuple[int, float, int]], fill: tuple[int, ...]
) -> np.ndarray:
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for op, arg, interp in layers:
        if op != Op.NONE:
            resample = Image.Resampling.BICUBIC if interp == BICUBIC else Image.Resampling.BILINEAR
            image = OPS[Op(op)](image, float(arg), Warp(resample, fill))
    return np.asarray(image)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    if bits >= 8:
        return image
    if bits < 1:  # Pillow 11 and 12 give black, 13 refuses
        return Image.new("RGB", image.size)
    return ImageOps.posterize(image, bits)


def _solarize_add(image: Image.Image, addend: int) -> Image.Image:
    table = [min(255, v + addend) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], warp: Warp) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **warp._asdict())


OPS: dict[Op, Callable[[Image.Image, float, Warp], Image.Image]] = {
    Op.AUTO_CONTRAST: lambda image, _arg, _warp: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, _arg, _warp: ImageOps.equalize(image),
    Op.INVERT: lambda image, _arg, _warp: ImageOps.invert(image),
    Op.ROTATE: lambda image, degrees, warp: image.rotate(degrees, **warp._asdict()),
    Op.POSTERIZE: lambda image, bits, _warp: _posterize(image, int(bits)),
    Op.SOLARIZE: lambda image, threshold, _warp: ImageOps.solarize(image, int(threshold)),
    Op.SOLARIZE_ADD: lambda image, addend, _warp: _solarize_add(image, int(addend)),
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
}
