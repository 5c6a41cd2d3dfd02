"""RandAugment's ops on one image on the CPU, by the plan's numbers and bit for bit what timm gets from Pillow.

An image is a uint8 array (H, W, 3). Where NumPy does an op's arithmetic exactly and in a fraction of the time, it does;
Pillow does the rest. Each op is compared with timm's `NAME_TO_OP` over its whole range in tests/test_parity_host.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from rsbdali.pipelines.host import tone
from rsbdali.pipelines.host.warp import shift_lines
from rsbdali.plan.randaugment import BICUBIC, FILL_RGB, Op

SOLARIZE_ADD_BELOW = 128  # timm: only pixels darker than this are raised


def augment(image_HWC: np.ndarray, op_L: Sequence[int], arg_L: Sequence[float], interp_L: Sequence[int]) -> np.ndarray:
    """Apply one image's layers in turn.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous; left as it is.
        op_L: values of `policy.Op`; NONE skips a layer.
        arg_L: the ops' arguments (`policy.level_to_arg`).
        interp_L: `plan.BILINEAR` or `plan.BICUBIC`, for geometric ops.

    Returns:
        uint8, shape (H, W, 3), contiguous; the argument itself where no layer did anything.
    """
    for op, arg, interp in zip(op_L, arg_L, interp_L, strict=True):
        if op != Op.NONE:
            image_HWC = OPS[op](image_HWC, arg, interp)
    return image_HWC


def _pillow(image_HWC: np.ndarray) -> Image.Image:
    height, width, _ = image_HWC.shape
    return Image.frombuffer("RGB", (width, height), image_HWC, "raw", "RGB", 0, 1)


def _array(image: Image.Image) -> np.ndarray:
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def _auto_contrast(image_HWC: np.ndarray, _arg: float, _interp: int) -> np.ndarray:
    return tone.auto_contrast(image_HWC)


def _equalize(image_HWC: np.ndarray, _arg: float, _interp: int) -> np.ndarray:
    return _array(ImageOps.equalize(_pillow(image_HWC)))


def _invert(image_HWC: np.ndarray, _arg: float, _interp: int) -> np.ndarray:
    return np.invert(image_HWC)  # 255 - v


def _rotate(image_HWC: np.ndarray, degrees: float, interp: int) -> np.ndarray:
    return _array(_pillow(image_HWC).rotate(degrees, resample=_filter(interp), fillcolor=FILL_RGB))


def _posterize(image_HWC: np.ndarray, bits: float, _interp: int) -> np.ndarray:
    return image_HWC & np.uint8(256 - (1 << (8 - int(bits))) & 0xFF)


def _solarize(image_HWC: np.ndarray, threshold: float, _interp: int) -> np.ndarray:
    if threshold > 255:
        return image_HWC
    # v ^ 255 is 255 - v; the product is 255 where v is bright enough, else 0
    return image_HWC ^ ((image_HWC >= np.uint8(threshold)) * np.uint8(255))


def _solarize_add(image_HWC: np.ndarray, addend: float, _interp: int) -> np.ndarray:
    # a dark value is below 128 and the addend at most 128: no overflow
    return image_HWC + (image_HWC < np.uint8(SOLARIZE_ADD_BELOW)) * np.uint8(addend)


def _color(image_HWC: np.ndarray, factor: float, _interp: int) -> np.ndarray:
    return _array(ImageEnhance.Color(_pillow(image_HWC)).enhance(factor))


def _contrast(image_HWC: np.ndarray, factor: float, _interp: int) -> np.ndarray:
    return tone.contrast(image_HWC, factor)


def _brightness(image_HWC: np.ndarray, factor: float, _interp: int) -> np.ndarray:
    return tone.brightness(image_HWC, factor)


def _sharpness(image_HWC: np.ndarray, factor: float, _interp: int) -> np.ndarray:
    return tone.sharpness(image_HWC, factor)


def _shear_x(image_HWC: np.ndarray, factor: float, interp: int) -> np.ndarray:
    shift_H = factor * (np.arange(image_HWC.shape[0]) + 0.5)
    return _moved(image_HWC, shift_H, 1, (1, factor, 0, 0, 1, 0), interp)


def _shear_y(image_HWC: np.ndarray, factor: float, interp: int) -> np.ndarray:
    shift_W = factor * (np.arange(image_HWC.shape[1]) + 0.5)
    return _moved(image_HWC, shift_W, 0, (1, 0, 0, factor, 1, 0), interp)


def _translate_x(image_HWC: np.ndarray, share: float, interp: int) -> np.ndarray:
    pixels = share * image_HWC.shape[1]
    return _moved(image_HWC, np.array([pixels]), 1, (1, 0, pixels, 0, 1, 0), interp)


def _translate_y(image_HWC: np.ndarray, share: float, interp: int) -> np.ndarray:
    pixels = share * image_HWC.shape[0]
    return _moved(image_HWC, np.array([pixels]), 0, (1, 0, 0, 0, 1, pixels), interp)


def _moved(image_HWC: np.ndarray, shift_L: np.ndarray, axis: int, matrix: tuple[float, ...], interp: int) -> np.ndarray:
    """A warp that moves lines along themselves, by NumPy where that is exact; `matrix` says the same to Pillow."""
    moved_HWC = shift_lines(image_HWC, shift_L, axis, interp)
    if moved_HWC is not None:
        return moved_HWC
    image = _pillow(image_HWC)
    size, affine = image.size, Image.Transform.AFFINE
    return _array(image.transform(size, affine, matrix, resample=_filter(interp), fillcolor=FILL_RGB))


def _filter(interp: int) -> Image.Resampling:
    return Image.Resampling.BICUBIC if interp == BICUBIC else Image.Resampling.BILINEAR


OPS: dict[int, Callable[[np.ndarray, float, int], np.ndarray]] = {
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: _invert,
    Op.ROTATE: _rotate,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: _color,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: _brightness,
    Op.SHARPNESS: _sharpness,
    Op.SHEAR_X: _shear_x,
    Op.SHEAR_Y: _shear_y,
    Op.TRANSLATE_X: _translate_x,
    Op.TRANSLATE_Y: _translate_y,
}
