"""A small JPEG out of the restart intervals of a large one, by one compiled loop (see `rsbdali.data.intervals`)."""

import numpy as np

from rsbdali.data.intervals import RawRegion
from rsbdali.pipelines.host.compiled import inner, kernel


def splice(raw: RawRegion) -> np.ndarray | None:
    """The JPEG of a region: uint8, shape (length,).

    Returns:
        None where the bytes are not what the intervals were found in.
    """
    encoded_B, length_K, part = raw
    out_B = np.empty(len(encoded_B), np.uint8)
    length = _splice(
        encoded_B, length_K, part.line, part.lines, part.first, part.count, part.per_line, part.height, part.width, out_B
    )
    return out_B[:length] if length else None


@inner("i8(u1[::1], i8)")
def _find_frame(encoded_B: np.ndarray, length: int) -> int:
    """Where the frame header begins, 0 where there is none."""
    at = 2
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


@kernel("i8(u1[::1], u2[::1], i8, i8, i8, i8, i8, i8, i8, u1[::1])")
def _splice(
    encoded_B: np.ndarray,
    length_K: np.ndarray,
    line: int,
    lines: int,
    first: int,
    count: int,
    per_line: int,
    height: int,
    width: int,
    out_B: np.ndarray,
) -> int:
    """Header with another size, then the chosen intervals, numbered anew; returns the length, 0 for other bytes."""
    at = np.int64(length_K[0])
    frame = _find_frame(encoded_B, at)
    if frame == 0:
        return 0
    _copy(encoded_B, 0, out_B, 0, at)
    out_B[frame + 5], out_B[frame + 6] = height >> 8, height & 255
    out_B[frame + 7], out_B[frame + 8] = width >> 8, width & 255
    end = at
    number = 0
    for k in range(line * per_line, (line + lines) * per_line, per_line):
        for c in range(first):
            at += length_K[1 + k + c]
        start, begin = at, end
        for c in range(first, first + count):
            at += length_K[1 + k + c]
            end = begin + at - start
            last = 0xD9 if 1 + k + c == len(length_K) - 1 else 0xD0 + (k + c) % 8
            if encoded_B[at - 2] != 0xFF or encoded_B[at - 1] != last:
                return 0
        _copy(encoded_B, start, out_B, begin, at - start)
        mark = begin
        for c in range(first, first + count):
            mark += length_K[1 + k + c]
            out_B[mark - 1] = 0xD0 + number % 8
            number += 1
        for c in range(first + count, per_line):
            at += length_K[1 + k + c]
    out_B[end - 1] = 0xD9
    return end
