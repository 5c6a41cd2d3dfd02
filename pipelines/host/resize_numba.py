"""Pillow's `resize` of RGB images by compiled loops, equal to the bit (`Resample.c`).

Two passes, each in fixed point of 22 bits, rounded and clipped to 8. Down columns, whole rows are weighed and summed,
which vector instructions do well. Along rows, blocks of lines are transposed first, so that it is the same loop.

Shapes: H × W source, h × w output; A outputs of one axis, K taps each; S lines to be summed, X values of a line.
"""

from functools import lru_cache

import numpy as np

from rsbdali.pipelines.host.compiled import inner, kernel

BITS = 22  # of the weights: 32, less 8 of a pixel and 2 so that a sum with overshoots fits
HALF = np.int32(1 << (BITS - 1))
LINES = 32  # of a block: few enough for the first-level cache, enough for the loop over them to run


def resize(
    window_HWC: np.ndarray,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    offset: tuple[int, int],
    interp: int,
    mirror: bool,
    columns_first: bool,
    out_HWC: np.ndarray,
) -> None:
    """Resize a box of an image and cut a part out of the result, mirrored left to right or not.

    Args:
        window_HWC: uint8, contiguous.
        box: (y, x, h, w) in the window.
        size: (h, w) of the whole result.
        offset: (y, x) of the part in the result.
        interp: `policy.BILINEAR` or `policy.BICUBIC`.
        mirror: whether to flip the part.
        columns_first: which pass Pillow makes first.
        out_HWC: receives the part; uint8, contiguous, in memory of its own.
    """
    height, width, _ = out_HWC.shape
    row_weight_AK, row_A = (array[offset[0] : offset[0] + height] for array in axis_weights(box[2], size[0], interp))
    weight_AK, column_A = (array[offset[1] : offset[1] + width] for array in axis_weights(box[3], size[1], interp))
    top, lines = int(row_A[0]), int(row_A[-1] - row_A[0]) + row_weight_AK.shape[1]
    left, columns = int(column_A[0]), int(column_A[-1] - column_A[0]) + weight_AK.shape[1]
    row_A, column_A = row_A - np.int32(top), column_A - np.int32(left)
    if mirror:
        weight_AK, column_A = np.ascontiguousarray(weight_AK[::-1]), np.ascontiguousarray(column_A[::-1])
    top, left = top + box[0], left + box[1]
    out_HX = out_HWC.reshape(height, 3 * width)
    if columns_first:
        part_hX = np.empty((height, 3 * columns), np.uint8)
        image_HX = window_HWC.reshape(window_HWC.shape[0], -1)
        _weigh_lines(image_HX, top, 3 * left, row_weight_AK, row_A, part_hX)
        _weigh_columns(part_hX.reshape(height, columns, 3), 0, 0, columns, weight_AK, column_A, out_HX)
    else:
        part_Hx = np.empty((lines, 3 * width), np.uint8)
        _weigh_columns(window_HWC, top, left, columns, weight_AK, column_A, part_Hx)
        _weigh_lines(part_Hx, 0, 0, row_weight_AK, row_A, out_HX)


@lru_cache(maxsize=1024)
def axis_weights(source: int, size: int, interp: int) -> tuple[np.ndarray, np.ndarray]:
    """The taps of one axis.

    Returns:
        int32 weights (A, K), K a multiple of 4 unless it is the whole source; int32 index of the first tap (A,).
    """
    support = (interp + 1) * max(source / size, 1.0)
    taps = min(int(np.ceil(2 * support)), source)  # the most that an output has
    weight_AK = np.empty((size, min(-(-taps // 4) * 4, source)), np.int32)
    first_A = np.empty(size, np.int32)
    _fill_weights(weight_AK, first_A, source, interp)
    return weight_AK, first_A


@inner("f8(f8, i8)")
def _filter(t: float, interp: int) -> float:
    """`bilinear_filter` (0) and `bicubic_filter` (1) for t ≥ 0."""
    if interp == 0:
        return 1.0 - t if t < 1.0 else 0.0
    if t < 1.0:
        return ((-0.5 + 2.0) * t - (-0.5 + 3.0)) * t * t + 1.0
    return (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5 if t < 2.0 else 0.0


@kernel("void(i4[:, ::1], i4[::1], i8, i8)")
def _fill_weights(weight_AK: np.ndarray, first_A: np.ndarray, source: int, interp: int) -> None:
    """`precompute_coeffs` and `normalize_coeffs_8bpc`."""
    scale = source / len(first_A)
    stretch = max(scale, 1.0)
    support = (interp + 1) * stretch
    value_K = np.empty(weight_AK.shape[1] + 4, np.float64)
    for a in range(len(first_A)):
        center = (a + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        taps = min(int(center + support + 0.5), source) - first
        total = 0.0
        for k in range(taps):
            value_K[k] = _filter(abs((k + first - center + 0.5) * (1.0 / stretch)), interp)
            total += value_K[k]
        # at the end of the axis the room for taps begins before the first one
        start = max(0, min(first, source - weight_AK.shape[1]))
        first_A[a] = start
        weight_AK[a] = 0
        for k in range(taps):
            value = value_K[k] / total if total != 0.0 else value_K[k]
            weight = int(value * (1 << BITS) + (-0.5 if value < 0 else 0.5))
            if weight != 0:  # a tap too many, by rounding at the edge of the support, weighs nothing
                weight_AK[a, first + k - start] = weight


@inner("u1(i4)")
def _clip(total: int) -> np.uint8:
    """`clip8`: the sum without its fraction, within a byte."""
    return np.uint8(min(max(total >> BITS, 0), 255))


@inner("void(u1[:, ::1], i8, i8, i4[::1], u1[::1])")
def _weigh4(line_SX: np.ndarray, first: int, start: int, weight_K: np.ndarray, out_X: np.ndarray) -> None:
    stop = start + len(out_X)
    w0, w1, w2, w3 = weight_K[0], weight_K[1], weight_K[2], weight_K[3]
    a_X, b_X = line_SX[first][start:stop], line_SX[first + 1][start:stop]
    c_X, d_X = line_SX[first + 2][start:stop], line_SX[first + 3][start:stop]
    for x in range(len(out_X)):
        out_X[x] = _clip(np.int32(HALF + w0 * a_X[x] + w1 * b_X[x] + w2 * c_X[x] + w3 * d_X[x]))


@inner("void(u1[:, ::1], i8, i8, i4[::1], u1[::1])")
def _weigh8(line_SX: np.ndarray, first: int, start: int, weight_K: np.ndarray, out_X: np.ndarray) -> None:
    stop = start + len(out_X)
    w0, w1, w2, w3 = weight_K[0], weight_K[1], weight_K[2], weight_K[3]
    w4, w5, w6, w7 = weight_K[4], weight_K[5], weight_K[6], weight_K[7]
    a_X, b_X = line_SX[first][start:stop], line_SX[first + 1][start:stop]
    c_X, d_X = line_SX[first + 2][start:stop], line_SX[first + 3][start:stop]
    e_X, f_X = line_SX[first + 4][start:stop], line_SX[first + 5][start:stop]
    g_X, h_X = line_SX[first + 6][start:stop], line_SX[first + 7][start:stop]
    for x in range(len(out_X)):
        total = HALF + w0 * a_X[x] + w1 * b_X[x] + w2 * c_X[x] + w3 * d_X[x]
        out_X[x] = _clip(np.int32(total + w4 * e_X[x] + w5 * f_X[x] + w6 * g_X[x] + w7 * h_X[x]))


@inner("void(u1[:, ::1], i8, i8, i4[::1], u1[::1], i4[::1])")
def _weigh_any(
    line_SX: np.ndarray, first: int, start: int, weight_K: np.ndarray, out_X: np.ndarray, total_X: np.ndarray
) -> None:
    stop, whole = start + len(out_X), len(weight_K) // 4 * 4
    for x in range(len(out_X)):
        total_X[x] = HALF
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = weight_K[k], weight_K[k + 1], weight_K[k + 2], weight_K[k + 3]
        a_X, b_X = line_SX[first + k][start:stop], line_SX[first + k + 1][start:stop]
        c_X, d_X = line_SX[first + k + 2][start:stop], line_SX[first + k + 3][start:stop]
        for x in range(len(out_X)):
            total_X[x] = np.int32(total_X[x] + w0 * a_X[x] + w1 * b_X[x] + w2 * c_X[x] + w3 * d_X[x])
    for k in range(whole, len(weight_K)):
        w0, a_X = weight_K[k], line_SX[first + k][start:stop]
        for x in range(len(out_X)):
            total_X[x] = np.int32(total_X[x] + w0 * a_X[x])
    for x in range(len(out_X)):
        out_X[x] = _clip(total_X[x])


@kernel("void(u1[:, ::1], i8, i8, i4[:, ::1], i4[::1], u1[:, ::1])")
def _weigh_lines(
    line_SX: np.ndarray, top: int, start: int, weight_AK: np.ndarray, first_A: np.ndarray, out_AX: np.ndarray
) -> None:
    """Each line of output as the weighted sum of K lines from `top + first_A` on, in the loop for its K."""
    taps = weight_AK.shape[1]
    total_X = np.empty(out_AX.shape[1], np.int32)
    for a in range(len(first_A)):
        if taps == 4:
            _weigh4(line_SX, top + first_A[a], start, weight_AK[a], out_AX[a])
        elif taps == 8:
            _weigh8(line_SX, top + first_A[a], start, weight_AK[a], out_AX[a])
        else:
            _weigh_any(line_SX, top + first_A[a], start, weight_AK[a], out_AX[a], total_X)


@inner("void(u1[:, ::1], i8, i8, i8, u1[:, ::1])")
def _lines_to_columns(image_HX: np.ndarray, top: int, last: int, start: int, block_SX: np.ndarray) -> None:
    """Transpose: of each value of a line its 32 (LINES) neighbors below follow. Four lines make one word.

    The last line takes the place of those that are missing at the end.
    """
    count = block_SX.size // LINES
    word = block_SX.reshape(block_SX.size).view(np.uint32)
    for r in range(0, LINES, 4):
        a_X = image_HX[min(top + r, last)][start : start + count]
        b_X = image_HX[min(top + r + 1, last)][start : start + count]
        c_X = image_HX[min(top + r + 2, last)][start : start + count]
        d_X = image_HX[min(top + r + 3, last)][start : start + count]
        for x in range(count):
            low = np.uint32(a_X[x]) | np.uint32(b_X[x]) << np.uint32(8)
            high = np.uint32(c_X[x]) | np.uint32(d_X[x]) << np.uint32(8)
            word[x * (LINES // 4) + r // 4] = low | high << np.uint32(16)


@inner("void(u1[:, ::1], i8, u1[:, ::1])")
def _columns_to_lines(block_AX: np.ndarray, top: int, out_HX: np.ndarray) -> None:
    """The way back; what the last line stood for is written to it again."""
    last = len(out_HX) - 1
    word = block_AX.reshape(block_AX.size).view(np.uint32)
    for r in range(0, LINES, 4):
        a_X, b_X = out_HX[min(top + r, last)], out_HX[min(top + r + 1, last)]
        c_X, d_X = out_HX[min(top + r + 2, last)], out_HX[min(top + r + 3, last)]
        for x in range(len(a_X)):
            four = word[x * (LINES // 4) + r // 4]
            a_X[x] = np.uint8(four)
            b_X[x] = np.uint8(four >> np.uint32(8))
            c_X[x] = np.uint8(four >> np.uint32(16))
            d_X[x] = np.uint8(four >> np.uint32(24))


@kernel("void(u1[:, :, ::1], i8, i8, i8, i4[:, ::1], i4[::1], u1[:, ::1])")
def _weigh_columns(
    image_HWC: np.ndarray,
    top: int,
    left: int,
    width: int,
    weight_AK: np.ndarray,
    first_A: np.ndarray,
    out_HX: np.ndarray,
) -> None:
    """`ImagingResampleHorizontal_8bpc`: transpose a block of lines, weigh, transpose back."""
    block_SX = np.empty((width, 3 * LINES), np.uint8)
    out_AX = np.empty((len(first_A), 3 * LINES), np.uint8)
    image_HX = image_HWC.reshape(image_HWC.shape[0], 3 * image_HWC.shape[1])
    for y in range(0, len(out_HX), LINES):
        _lines_to_columns(image_HX, top + y, top + len(out_HX) - 1, 3 * left, block_SX)
        _weigh_lines(block_SX, 0, 0, weight_AK, first_A, out_AX)
        _columns_to_lines(out_AX, y, out_HX)
