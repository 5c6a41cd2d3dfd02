"""The geometric ops on one image by compiled loops, bit for bit Pillow's affine transform in doubles (`Geometry.c`).

Images are uint8 (H, W, 3), contiguous, and changed in place; output pixel (x, y) reads (x + ½, y + ½) moved.

Shapes: P pixels of a line, X = 3 × W interleaved values of a row, C channels.
"""

import math
from collections.abc import Callable

import numpy as np

from rsbdali.pipelines.host.compiled import inner, kernel
from rsbdali.plan.randaugment import BICUBIC, Op


@inner("f8(f8, f8, f8)")
def _bilinear(v1: float, v2: float, d: float) -> float:
    return v1 + (v2 - v1) * d


@inner("f8(f8, f8, f8, f8, f8)")
def _bicubic(v1: float, v2: float, v3: float, v4: float, d: float) -> float:
    p2 = v3 - v1
    p3 = 2.0 * (v1 - v2) + v3 - v4
    p4 = v2 - v1 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))


@inner("u1(f8)")
def _clip(value: float) -> np.uint8:
    return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@kernel("void(u1[:, :, ::1], f8, f8, i8, u1[::1])")
def _move_rows(image_HWC: np.ndarray, shear: float, pixels: float, interp: int, fill_C: np.ndarray) -> None:
    """Move each row along itself by `shear · (y + ½) + pixels`: of Pillow's taps those of one line are not 0.

    Pillow takes the floor of each position, here the whole part of the shift moves all pixels of a row alike. They
    differ where a sum is rounded up to a whole number; then d is 1, which gives the next pixel to the bit, as Pillow's
    next position with d = 0 does. Rounding keeps order, so that d is never outside 0..1.
    """
    height, width, _ = image_HWC.shape
    image_HX = image_HWC.reshape(height, 3 * width)
    center_X = np.empty(3 * width, np.float64)
    for x in range(3 * width):
        center_X[x] = x // 3 + 0.5
    start = 6  # two pixels before the row, two behind it: its edges repeated
    tap_X = np.empty(3 * (width + 4), np.float64)
    for y in range(height):
        row_X = image_HX[y]
        for x in range(3 * width):
            tap_X[start + x] = row_X[x]
        for x in range(6):
            tap_X[x] = row_X[x % 3]
            tap_X[start + 3 * width + x] = row_X[3 * width - 3 + x % 3]
        shift = shear * (y + 0.5) + pixels
        first, stop = 0, 3 * width
        while first < stop and center_X[first] + shift < 0.0:
            first += 3
        while stop > first and center_X[stop - 1] + shift >= width:
            stop -= 3
        for x in range(first):
            row_X[x] = fill_C[x % 3]
        for x in range(stop, 3 * width):
            row_X[x] = fill_C[x % 3]
        whole = math.floor(shift)
        out_X, at_X = row_X[first:stop], center_X[first:stop]
        v1_X = tap_X[start + first + 3 * int(whole) - 3 :]
        v2_X = tap_X[start + first + 3 * int(whole) :]
        v3_X = v2_X[3:]
        if interp == 0:
            for x in range(len(out_X)):
                d = at_X[x] + shift - 0.5 - (at_X[x] - 0.5 + whole)
                out_X[x] = _clip(_bilinear(v2_X[x], v3_X[x], d))
        else:
            v4_X = v2_X[6:]
            for x in range(len(out_X)):
                d = at_X[x] + shift - 0.5 - (at_X[x] - 0.5 + whole)
                out_X[x] = _clip(_bicubic(v1_X[x], v2_X[x], v3_X[x], v4_X[x], d))


@inner("void(u1[:, :, ::1], f8[::1], u1[:, :, ::1])")
def _move_columns_wholly(image_HWC: np.ndarray, whole_X: np.ndarray, moved_RWC: np.ndarray) -> None:
    """Move each column by whole pixels, with a pixel more before it and two behind; R = H + 3. Edges are repeated."""
    height, width, _ = image_HWC.shape
    for r in range(height + 3):
        for x in range(width):
            y = min(max(r - 1 + int(whole_X[3 * x]), 0), height - 1)
            moved_RWC[r, x, 0] = image_HWC[y, x, 0]
            moved_RWC[r, x, 1] = image_HWC[y, x, 1]
            moved_RWC[r, x, 2] = image_HWC[y, x, 2]


@kernel("void(u1[:, :, ::1], f8, f8, i8, u1[::1])")
def _move_columns(image_HWC: np.ndarray, shear: float, pixels: float, interp: int, fill_C: np.ndarray) -> None:
    """Move each column along itself by `shear · (x + ½) + pixels`."""
    height, width, _ = image_HWC.shape
    source_HWC = image_HWC.copy()
    out_HX = image_HWC.reshape(height, 3 * width)
    shift_X, whole_X = np.empty(3 * width, np.float64), np.empty(3 * width, np.float64)
    fill_X = np.empty(3 * width, np.uint8)
    for x in range(3 * width):
        shift_X[x] = shear * (x // 3 + 0.5) + pixels
        whole_X[x] = math.floor(shift_X[x])
        fill_X[x] = fill_C[x % 3]
    moved_RWC = np.empty((height + 3, width, 3), np.uint8)
    _move_columns_wholly(source_HWC, whole_X, moved_RWC)
    moved_RX = moved_RWC.reshape(height + 3, 3 * width)
    for y in range(height):
        center = y + 0.5
        out_X, v1_X, v2_X, v3_X, v4_X = out_HX[y], moved_RX[y], moved_RX[y + 1], moved_RX[y + 2], moved_RX[y + 3]
        if interp == 0:
            for x in range(3 * width):
                d = center + shift_X[x] - 0.5 - (y + whole_X[x])
                out_X[x] = _clip(_bilinear(v2_X[x], v3_X[x], d))
        else:
            for x in range(3 * width):
                d = center + shift_X[x] - 0.5 - (y + whole_X[x])
                out_X[x] = _clip(_bicubic(v1_X[x], v2_X[x], v3_X[x], v4_X[x], d))
        for x in range(3 * width):
            position = center + shift_X[x]
            out_X[x] = out_X[x] if position >= 0.0 and position < height else fill_X[x]


BLOCK = 64  # pixels that are computed together, by vector instructions


@inner("u4[:, ::1](u1[:, :, ::1])")
def _padded_words(image_HWC: np.ndarray) -> np.ndarray:
    """Each pixel as one word, with its edges repeated by two pixels on all sides: (H + 4, W + 4)."""
    height, width, _ = image_HWC.shape
    word_HW = np.empty((height + 4, width + 4), np.uint32)
    for y in range(height):
        image_WC, word_W = image_HWC[y], word_HW[y + 2]
        for x in range(width):
            green, blue = np.uint32(image_WC[x, 1]), np.uint32(image_WC[x, 2])
            word_W[x + 2] = np.uint32(image_WC[x, 0]) | green << np.uint32(8) | blue << np.uint32(16)
        word_W[0] = word_W[1] = word_W[2]
        word_W[width + 2] = word_W[width + 3] = word_W[width + 1]
    word_HW[0] = word_HW[1] = word_HW[2]
    word_HW[height + 2] = word_HW[height + 3] = word_HW[height + 1]
    return word_HW


@inner("void(u4[::1], i8[::1], i8, u4[::1], f8[::1])")
def _gather(word_P: np.ndarray, first_B: np.ndarray, offset: int, tap_B: np.ndarray, level_X: np.ndarray) -> None:
    """One tap of each pixel of a block, then its channels one behind the other: X = 3 × BLOCK."""
    for b in range(BLOCK):
        tap_B[b] = word_P[np.uint64(first_B[b] + offset)]
    for b in range(BLOCK):
        level_X[b] = np.int32(tap_B[b] & np.uint32(255))
        level_X[BLOCK + b] = np.int32(tap_B[b] >> np.uint32(8) & np.uint32(255))
        level_X[2 * BLOCK + b] = np.int32(tap_B[b] >> np.uint32(16))


@inner("void(f8[:, ::1], f8[::1], i8, f8[::1])")
def _interpolate(tap_4X: np.ndarray, d_X: np.ndarray, interp: int, out_X: np.ndarray) -> None:
    v1_X, v2_X, v3_X, v4_X = tap_4X[0], tap_4X[1], tap_4X[2], tap_4X[3]
    if interp == 0:
        for x in range(3 * BLOCK):
            out_X[x] = _bilinear(v1_X[x], v2_X[x], d_X[x])
    else:
        for x in range(3 * BLOCK):
            out_X[x] = _bicubic(v1_X[x], v2_X[x], v3_X[x], v4_X[x], d_X[x])


@inner("void(u4[:, ::1], i8[::1], f8[:, ::1], i8[::1], i8, i8, u1[:, ::1])")
def _compute_block(
    word_HW: np.ndarray,
    first_B: np.ndarray,
    d_2X: np.ndarray,
    pixel_B: np.ndarray,
    count: int,
    interp: int,
    out_PC: np.ndarray,
) -> None:
    """Pixels from their 2 × 2 or 4 × 4 taps: along the rows, then across."""
    tap_4X, row_4X = np.empty((4, 3 * BLOCK), np.float64), np.empty((4, 3 * BLOCK), np.float64)
    reach, word_P = 2 if interp == 0 else 4, word_HW.reshape(word_HW.size)
    tap_B = np.empty(BLOCK, np.uint32)
    for r in range(reach):
        for k in range(reach):
            _gather(word_P, first_B, r * word_HW.shape[1] + k, tap_B, tap_4X[k])
        _interpolate(tap_4X, d_2X[0], interp, row_4X[r])
    level_X = tap_4X[0]
    _interpolate(row_4X, d_2X[1], interp, level_X)
    for b in range(count):
        for c in range(3):
            out_PC[pixel_B[b], c] = _clip(level_X[c * BLOCK + b])


@kernel("void(u1[:, :, ::1], f8, f8, f8, f8, f8, f8, i8, u1[::1])")
def _warp(
    image_HWC: np.ndarray,
    a0: float,
    a1: float,
    a2: float,
    a3: float,
    a4: float,
    a5: float,
    interp: int,
    fill_C: np.ndarray,
) -> None:
    """`ImagingTransformAffine`: find where each pixel reads, and compute those that read the image block by block."""
    height, width, _ = image_HWC.shape
    word_HW = _padded_words(image_HWC)
    out_PC = image_HWC.reshape(height * width, 3)
    d_2X = np.zeros((2, 3 * BLOCK), np.float64)
    first_B, pixel_B = np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.int64)
    pad = 2 if interp == 0 else 1  # from the padding's edge to the first tap
    b = 0
    for y in range(height):
        for x in range(width):
            x_in = a0 * (x + 0.5) + a1 * (y + 0.5) + a2
            y_in = a3 * (x + 0.5) + a4 * (y + 0.5) + a5
            if x_in >= 0.0 and x_in < width and y_in >= 0.0 and y_in < height:
                x_at, y_at = np.floor(x_in - 0.5), np.floor(y_in - 0.5)
                for c in range(3):
                    d_2X[0, c * BLOCK + b], d_2X[1, c * BLOCK + b] = x_in - 0.5 - x_at, y_in - 0.5 - y_at
                first_B[b] = (int(y_at) + pad) * (width + 4) + int(x_at) + pad
                pixel_B[b] = y * width + x
                b += 1
            else:
                for c in range(3):
                    out_PC[y * width + x, c] = fill_C[c]
            if b == BLOCK or (y == height - 1 and x == width - 1):
                _compute_block(word_HW, first_B, d_2X, pixel_B, b, interp, out_PC)
                b = 0


def _rotate(image_HWC: np.ndarray, degrees: float, interp: int, fill_C: np.ndarray) -> None:
    """`Image.rotate` about the middle, whose matrix is rounded to 15 digits."""
    height, width, _ = image_HWC.shape
    if degrees % 360.0 == 0.0:
        return
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    middle_x, middle_y = width / 2, height / 2
    x = cos * -middle_x + sin * -middle_y + 0.0 + middle_x
    y = round(-math.sin(angle), 15) * -middle_x + cos * -middle_y + 0.0 + middle_y
    _warp(image_HWC, cos, sin, x, round(-math.sin(angle), 15), cos, y, interp, fill_C)


def _flip_y(image_HWC: np.ndarray, _arg: float, _interp: int, _fill_C: np.ndarray) -> None:
    image_HWC[:] = image_HWC[::-1].copy()


WARP_OPS: dict[int, Callable[[np.ndarray, float, int, np.ndarray], None]] = {
    Op.ROTATE: _rotate,
    Op.SHEAR_X: lambda image, shear, interp, fill_C: _move_rows(image, shear, 0.0, interp, fill_C),
    Op.SHEAR_Y: lambda image, shear, interp, fill_C: _move_columns(image, shear, 0.0, interp, fill_C),
    Op.TRANSLATE_X: lambda image, share, interp, fill_C: _move_rows(image, 0.0, share * image.shape[1], interp, fill_C),
    Op.TRANSLATE_Y: lambda image, share, interp, fill_C: _move_columns(
        image, 0.0, share * image.shape[0], interp, fill_C
    ),
    Op.FLIP_Y: _flip_y,
    Op.TRANSLATE_X_ABS: lambda image, pixels, interp, fill_C: _move_rows(image, 0.0, pixels, interp, fill_C),
    Op.TRANSLATE_Y_ABS: lambda image, pixels, interp, fill_C: _move_columns(image, 0.0, pixels, interp, fill_C),
}
assert BICUBIC == 1  # the kernels' code of the filters
