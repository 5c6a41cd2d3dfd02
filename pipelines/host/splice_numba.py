"""A small JPEG out of the restart intervals of a large one, by compiled loops (see `rsbdali.data.intervals`).

    locate: which intervals, which bytes ──> these are read ──> splice: header with another size, markers counted anew

What both need to know of an image and a window are the fields named here, of one int64 array, `field_F`.
Shapes: B bytes, K lengths as in `Intervals.length_K`, F fields.
"""

from typing import Any

import numpy as np

from rsbdali.pipelines.host.compiled import inner, kernel

WINDOW_Y, WINDOW_X, WINDOW_HEIGHT, WINDOW_WIDTH = 0, 1, 2, 3  # given, in pixels
IMAGE_HEIGHT, IMAGE_WIDTH, ACROSS, DOWN = 4, 5, 6, 7  # given; blocks of luma in an MCU
Y, X, HEIGHT, WIDTH = 8, 9, 10, 11  # of the small JPEG in the image, pixels
LINE, LINES, FIRST, COUNT, PER_LINE = 12, 13, 14, 15, 16  # lines of MCUs, intervals of each, intervals in a line
START, BYTES = 17, 18  # where the lines are in the file
FIELDS = 19
LEAST_WIDTH = 5  # libjpeg-turbo interpolates no chroma in images of up to 4 pixels


@kernel("void(u2[::1], i8[::1])")
def locate(length_K: np.ndarray, field_F: np.ndarray) -> None:
    """The intervals under a window and a pixel around it, which interpolating chroma needs.

    Args:
        length_K: of the image.
        field_F: int64 (FIELDS,), the given ones filled in; receives the others.
    """
    mcu_height, mcu_width = 8 * field_F[DOWN], 8 * field_F[ACROSS]
    height, width = field_F[IMAGE_HEIGHT], field_F[IMAGE_WIDTH]
    lines = (height + mcu_height - 1) // mcu_height
    per_line = (len(length_K) - 1) // lines
    interval_width = (width + mcu_width - 1) // mcu_width // per_line * mcu_width
    bottom, right = field_F[WINDOW_Y] + field_F[WINDOW_HEIGHT], field_F[WINDOW_X] + field_F[WINDOW_WIDTH]
    line, end_line = max(0, field_F[WINDOW_Y] - 1) // mcu_height, min(lines, bottom // mcu_height + 1)
    first, end = max(0, field_F[WINDOW_X] - 1) // interval_width, min(per_line, right // interval_width + 1)
    if first > 0 and min(width, end * interval_width) - first * interval_width < LEAST_WIDTH:
        first -= 1
    field_F[Y], field_F[X] = line * mcu_height, first * interval_width
    field_F[HEIGHT] = min(height, end_line * mcu_height) - field_F[Y]
    field_F[WIDTH] = min(width, end * interval_width) - field_F[X]
    field_F[LINE], field_F[LINES], field_F[PER_LINE] = line, end_line - line, per_line
    field_F[FIRST], field_F[COUNT] = first, end - first
    field_F[START], field_F[BYTES] = 0, 0
    for k in range(1 + line * per_line):
        field_F[START] += length_K[k]
    for k in range(1 + line * per_line, 1 + end_line * per_line):
        field_F[BYTES] += length_K[k]


@inner("i8(u1[::1], i8)")
def _find_frame(encoded_B: np.ndarray, length: int) -> Any:
    """Where the frame header begins, 0 where there is none."""
    at: Any = 2
    while at + 9 <= length and encoded_B[at] == 0xFF:
        if encoded_B[at + 1] == 0xC0 or encoded_B[at + 1] == 0xC1:
            return at
        at += 2 + np.int64(encoded_B[at + 2]) * 256 + np.int64(encoded_B[at + 3])
    return 0


@inner("void(u1[::1], u8, u1[::1], u8, u8)")
def _copy(from_B: np.ndarray, start: int, to_B: np.ndarray, begin: int, count: int) -> None:
    """Copy some bytes; by unsigned numbers, which cannot count from the end, so that it becomes a memcpy."""
    for b in range(count):
        to_B[begin + b] = from_B[start + b]


@kernel("i8(u1[::1], u2[::1], i8[::1], u1[::1])")
def splice(encoded_B: np.ndarray, length_K: np.ndarray, field_F: np.ndarray, out_B: np.ndarray) -> Any:
    """Make the small JPEG.

    Args:
        encoded_B: the header, and behind it the lines of intervals.
        length_K: of the image.
        field_F: from `locate`.
        out_B: receives it, at least as long as `encoded_B`.

    Returns:
        Its length; 0 where the bytes are not those that the lengths were found in.
    """
    at: Any = np.int64(length_K[0])
    frame = _find_frame(encoded_B, at)
    if frame == 0:
        return 0
    _copy(encoded_B, 0, out_B, 0, at)
    out_B[frame + 5], out_B[frame + 6] = field_F[HEIGHT] >> 8, field_F[HEIGHT] & 255
    out_B[frame + 7], out_B[frame + 8] = field_F[WIDTH] >> 8, field_F[WIDTH] & 255
    first, end, per_line = field_F[FIRST], field_F[FIRST] + field_F[COUNT], field_F[PER_LINE]
    to, number = at, 0
    for line in range(field_F[LINE], field_F[LINE] + field_F[LINES]):
        interval = line * per_line
        for k in range(interval, interval + first):
            at += length_K[1 + k]
        start, begin = at, to
        for k in range(interval + first, interval + end):
            at += length_K[1 + k]
            marker = 0xD9 if k == len(length_K) - 2 else 0xD0 + (k & 7)
            if encoded_B[at - 2] != 0xFF or encoded_B[at - 1] != marker:
                return 0
        _copy(encoded_B, start, out_B, begin, at - start)
        for k in range(interval + first, interval + end):
            to += length_K[1 + k]
            out_B[to - 1] = 0xD0 + (number & 7)
            number += 1
        for k in range(interval + end, interval + per_line):
            at += length_K[1 + k]
    out_B[to - 1] = 0xD9
    return to
