"""RandAugment's ops on one image by compiled loops, bit for bit what timm gets from Pillow.

Images are uint8 (H, W, 3), contiguous, and changed in place. Each loop is the C that it equals: `Point.c` (tables),
`Blend.c` (float32, truncated), `Filter.c` (the 3 × 3 smoothing); `warp_numba` has the geometric ops.

Shapes: P pixels of a line, X = 3 × W interleaved values of a row, C channels, V levels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rsbdali.pipelines.host import augment_pillow
from rsbdali.pipelines.host.compiled import inner, kernel
from rsbdali.pipelines.host.warp_numba import WARP_OPS
from rsbdali.plan.randaugment import FILL_RGB, HOST_OPS, WARPS, Op

LEVELS = 256


def augment(
    image_HWC: np.ndarray,
    op_L: Sequence[int],
    arg_L: Sequence[float],
    interp_L: Sequence[int],
    fill: tuple[int, ...] = FILL_RGB,
) -> None:
    """Apply one image's layers in turn, in place; as `augment_pillow.augment`."""
    for op, arg, interp in zip(op_L, arg_L, interp_L, strict=True):
        if op in WARPS:
            WARP_OPS[op](image_HWC, arg, interp, np.array(fill, np.uint8))
        elif op in HOST_OPS:
            augment_pillow.augment(image_HWC, [op], [arg], [interp], fill)
        elif op != Op.NONE:
            OPS[op](image_HWC, arg)


# ---------------------------------------------------------------- ops that map a level to a level


@inner("void(u1[:, :, ::1], u1[:, ::1])")
def _look_up(image_HWC: np.ndarray, table_VC: np.ndarray) -> None:
    pixel_PC = image_HWC.reshape(image_HWC.size // 3, 3)
    for p in range(len(pixel_PC)):
        pixel_PC[p, 0] = table_VC[pixel_PC[p, 0], 0]
        pixel_PC[p, 1] = table_VC[pixel_PC[p, 1], 1]
        pixel_PC[p, 2] = table_VC[pixel_PC[p, 2], 2]


@inner("i8[:, ::1](u1[:, :, ::1])")
def _histogram(image_HWC: np.ndarray) -> np.ndarray:
    count_CV = np.zeros((3, LEVELS), np.int64)
    pixel_PC = image_HWC.reshape(image_HWC.size // 3, 3)
    for p in range(len(pixel_PC)):
        count_CV[0, pixel_PC[p, 0]] += 1
        count_CV[1, pixel_PC[p, 1]] += 1
        count_CV[2, pixel_PC[p, 2]] += 1
    return count_CV


@kernel("void(u1[:, :, ::1])")
def _auto_contrast(image_HWC: np.ndarray) -> None:
    """`ImageOps.autocontrast`: each channel stretched to 0..255."""
    count_CV = _histogram(image_HWC)
    table_VC = np.empty((LEVELS, 3), np.uint8)
    for c in range(3):
        low, high = 0, LEVELS - 1
        while low < high and count_CV[c, low] == 0:
            low += 1
        while high > low and count_CV[c, high] == 0:
            high -= 1
        scale = 255.0 / (high - low)
        offset = -low * scale
        for v in range(LEVELS):
            table_VC[v, c] = v if high == low else min(max(int(v * scale + offset), 0), 255)
    _look_up(image_HWC, table_VC)


@kernel("void(u1[:, :, ::1])")
def _equalize(image_HWC: np.ndarray) -> None:
    """`ImageOps.equalize`: each channel's levels spread so that they are equally frequent."""
    count_CV = _histogram(image_HWC)
    table_VC = np.empty((LEVELS, 3), np.uint8)
    for c in range(3):
        last = LEVELS - 1
        while count_CV[c, last] == 0:
            last -= 1
        step = (image_HWC.size // 3 - count_CV[c, last]) // 255  # 0 where there is but one level, too
        below = step // 2
        for v in range(LEVELS):
            table_VC[v, c] = v if step == 0 else min(below // step, 255)
            below += count_CV[c, v]
    _look_up(image_HWC, table_VC)


@kernel("void(u1[:, :, ::1])")
def _invert(image_HWC: np.ndarray) -> None:
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = 255 - value_X[x]


@kernel("void(u1[:, :, ::1], i8)")
def _posterize(image_HWC: np.ndarray, bits: int) -> None:
    mask = np.uint8(255 - ((1 << (8 - bits)) - 1))
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = value_X[x] & mask


@kernel("void(u1[:, :, ::1], i8)")
def _solarize(image_HWC: np.ndarray, threshold: int) -> None:
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = value_X[x] if value_X[x] < threshold else 255 - value_X[x]


@kernel("void(u1[:, :, ::1], i8)")
def _solarize_add(image_HWC: np.ndarray, addend: int) -> None:
    """Timm's `solarize_add`: levels below 128 are raised."""
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = min(value_X[x] + addend, 255) if value_X[x] < 128 else value_X[x]


# ---------------------------------------------------------------- enhancements: blends of the image and another


@inner("u1(f4, f4, f4)")
def _blend(other: np.float32, value: np.float32, factor: np.float32) -> np.uint8:
    """`ImagingBlend`: from the other's value (factor 0) to the image's (1) and beyond, clipped, truncated."""
    blended = other + factor * (value - other)
    return np.uint8(np.int32(min(max(blended, np.float32(0)), np.float32(255))))


@inner("i4(i4, i4, i4)")
def _luma(red: int, green: int, blue: int) -> np.int32:
    """`convert("L")`."""
    return np.int32((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)


@kernel("void(u1[:, :, ::1], f4)")
def _brightness(image_HWC: np.ndarray, factor: float) -> None:
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = _blend(np.float32(0), np.float32(value_X[x]), factor)


@kernel("void(u1[:, :, ::1], f4)")
def _contrast(image_HWC: np.ndarray, factor: float) -> None:
    """The other image is gray all over, as light as this one is on average."""
    pixel_PC = image_HWC.reshape(image_HWC.size // 3, 3)
    total = 0
    for p in range(len(pixel_PC)):
        total += _luma(pixel_PC[p, 0], pixel_PC[p, 1], pixel_PC[p, 2])
    mean = np.float32(int(total / len(pixel_PC) + 0.5))
    value_X = image_HWC.reshape(image_HWC.size)
    for x in range(value_X.size):
        value_X[x] = _blend(mean, np.float32(value_X[x]), factor)


@kernel("void(u1[:, :, ::1], f4)")
def _color(image_HWC: np.ndarray, factor: float) -> None:
    height, width, _ = image_HWC.shape
    gray_X = np.empty(3 * width, np.float32)
    for y in range(height):
        image_WC = image_HWC[y]
        for x in range(width):
            gray = np.float32(_luma(image_WC[x, 0], image_WC[x, 1], image_WC[x, 2]))
            gray_X[3 * x] = gray
            gray_X[3 * x + 1] = gray
            gray_X[3 * x + 2] = gray
        image_X = image_WC.reshape(3 * width)
        for x in range(3 * width):
            image_X[x] = _blend(gray_X[x], np.float32(image_X[x]), factor)


@kernel("void(u1[:, :, ::1], f4)")
def _sharpness(image_HWC: np.ndarray, factor: float) -> None:
    """The other image is smoothed by `ImageFilter.SMOOTH`, which leaves border pixels as they are.

    Pillow sums nine products of float32 and rounds. No sum of 13ths is a tie and the nearest is 1/26 away from one, far
    more than the error of float32: the order of the sum does not matter.
    """
    height, width, _ = image_HWC.shape
    if height < 3 or width < 3:
        return
    source_HX = image_HWC.copy().reshape(height, 3 * width)
    out_HX = image_HWC.reshape(height, 3 * width)
    column_X = np.empty(3 * width, np.float32)
    thirteenth, half = np.float32(1 / 13), np.float32(0.5)
    for y in range(1, height - 1):
        above_X, own_X, below_X = source_HX[y - 1], source_HX[y], source_HX[y + 1]
        for x in range(3 * width):
            column_X[x] = np.int32(above_X[x] + own_X[x] + below_X[x])
        left_X, middle_X, right_X = column_X[:-6], column_X[3:-3], column_X[6:]
        own_X, out_X = own_X[3:-3], out_HX[y][3:-3]
        for x in range(len(out_X)):
            own = np.float32(own_X[x])
            total = left_X[x] + middle_X[x] + right_X[x] + np.float32(4) * own
            out_X[x] = _blend(np.float32(np.int32(total * thirteenth + half)), own, factor)


OPS: dict[int, Callable[[np.ndarray, float], None]] = {
    Op.AUTO_CONTRAST: lambda image, _arg: _auto_contrast(image),
    Op.EQUALIZE: lambda image, _arg: _equalize(image),
    Op.INVERT: lambda image, _arg: _invert(image),
    Op.POSTERIZE: lambda image, bits: _posterize(image, int(bits)),
    Op.SOLARIZE: lambda image, threshold: _solarize(image, int(threshold)),
    Op.SOLARIZE_ADD: lambda image, addend: _solarize_add(image, int(addend)),
    Op.COLOR: lambda image, factor: _color(image, factor),
    Op.CONTRAST: lambda image, factor: _contrast(image, factor),
    Op.BRIGHTNESS: lambda image, factor: _brightness(image, factor),
    Op.SHARPNESS: lambda image, factor: _sharpness(image, factor),
}
