"""Pillow's enhancements and contrast stretch, bit for bit, by NumPy in a third to a fifth of the time.

Images are uint8 (H, W, 3). Pillow blends in float32 and truncates (`Blend.c`): out = a + factor · (b − a), clipped.
"""

import numpy as np
from PIL import Image


def brightness(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """`ImageEnhance.Brightness`: a blend with black."""
    value_HWC = image_HWC * np.float32(factor)
    return np.minimum(value_HWC, np.float32(255), out=value_HWC).astype(np.uint8)


def contrast(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """`ImageEnhance.Contrast`: a blend with the image's mean luma."""
    height, width, _ = image_HWC.shape
    image = Image.frombuffer("RGB", (width, height), image_HWC, "raw", "RGB", 0, 1)
    luma_HW = np.asarray(image.convert("L"))
    mean = int(int(luma_HW.sum()) / luma_HW.size + 0.5)
    return _blend(np.int16(mean), image_HWC, factor)


def sharpness(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """`ImageEnhance.Sharpness`: a blend with `ImageFilter.SMOOTH`, which leaves border pixels as they are."""
    height, width, _ = image_HWC.shape
    if height < 3 or width < 3:
        return image_HWC
    value_HX = image_HWC.reshape(height, -1).astype(np.uint16)
    row_HX = value_HX[:, :-6] + value_HX[:, 3:-3]
    row_HX += value_HX[:, 6:]
    sum_HX = row_HX[:-2] + row_HX[1:-1]
    sum_HX += row_HX[2:]
    inner_HX = value_HX[1:-1, 3:-3]
    sum_HX += inner_HX << 2  # the centre counts 5 of 13
    # s / 13 to the nearest: never a tie, and Pillow's float error is far below the 1/26 that would matter
    smooth_HX = (sum_HX * np.uint16(2) + np.uint16(13)) // np.uint16(26)
    out_HWC = image_HWC.copy()
    blended = _blend(smooth_HX.view(np.int16), image_HWC.reshape(height, -1)[1:-1, 3:-3], factor)
    out_HWC.reshape(height, -1)[1:-1, 3:-3] = blended
    return out_HWC


def _blend(base: np.ndarray | np.int16, image: np.ndarray, factor: float) -> np.ndarray:
    """From `base` (int16) to `image` (uint8) and, for a factor above 1, beyond."""
    value = (image - base).astype(np.float32)
    value *= np.float32(factor)
    value += base
    if factor > 1:
        np.maximum(value, np.float32(0), out=value)
        np.minimum(value, np.float32(255), out=value)
    return value.astype(np.uint8)


def auto_contrast(image_HWC: np.ndarray) -> np.ndarray:
    """`ImageOps.autocontrast`: each channel stretched to 0..255, by the table that Pillow makes."""
    height, width, _ = image_HWC.shape
    # columns first: reducing over three channels side by side would be slow
    low_C = image_HWC.min(axis=0).min(axis=0).astype(np.float64)
    high_C = image_HWC.max(axis=0).max(axis=0).astype(np.float64)
    flat_C = high_C <= low_C
    scale_C = 255.0 / np.where(flat_C, 255.0, high_C - low_C)
    shift_C = np.where(flat_C, 0.0, -low_C * scale_C)
    value_HX = image_HWC.reshape(height, -1) * np.tile(scale_C, width)
    value_HX += np.tile(shift_C, width)
    # between low and high nothing leaves 0..255 by more than a rounding error, which truncation or the clip takes off
    return np.minimum(value_HX, 255.0, out=value_HX).astype(np.uint8).reshape(image_HWC.shape)
