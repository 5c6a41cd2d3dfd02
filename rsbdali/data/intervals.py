"""Restart intervals of JPEGs: which of them hold a window, and where in the file they are.

A restart marker (ITU T.81, B.2.4.4) every few MCUs lets a decoder begin there. So the header and the intervals under a
window, with the markers numbered anew and the size in the header changed, are a small JPEG of its own, whose pixels are
the window's to the bit: one pixel more on each side is kept for the decoder's interpolation of chroma.

    image            interval: `interval` MCUs of a line       the small JPEG
    ┌────┬────┬────┬────┐
    │    │    │    │    │                                        ┌────┬────┐
    ├────┼────┼────┼────┤   a line of MCUs is a whole            │ ┌──┼──┐ │
    │    │ ┌──┼──┐ │    │   number of intervals                  ├─┼──┼──┼─┤
    ├────┼─┼──┼──┼─┼────┤                                        │ └──┼──┘ │
    │    │ └──┼──┘ │    │                                        └────┴────┘
    └────┴────┴────┴────┘

The positions of the intervals are kept beside the images, never in them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 8
MARKER_BYTES = 2
MOST_BYTES = 0xFFFF  # of an interval, and of a header


class Intervals(NamedTuple):
    """The restart intervals of an image.

    Attributes:
        sampling: blocks of luma in an MCU, across and down.
        length_K: uint16, bytes of the header, then of each interval with the marker behind it.
    """

    sampling: tuple[int, int]
    length_K: np.ndarray


def find_intervals(encoded: bytes) -> Intervals | None:
    """The intervals of a JPEG.

    Returns:
        None where regions cannot be taken out of it: more than one scan, no restart markers, intervals that do not
        divide a line of MCUs or are too long.
    """
    layout = _layout(encoded)
    if layout is None:
        return None
    sampling, count, start = layout
    scan_B = np.frombuffer(encoded, np.uint8)[start:]
    at = np.flatnonzero(scan_B[:-1] == 0xFF)
    at = at[(scan_B[at + 1] != 0) & (scan_B[at + 1] != 0xFF)][:count]  # neither stuffed nor fill bytes
    markers = [*(0xD0 + np.arange(count - 1) % 8), 0xD9]
    length_K = np.diff(at + MARKER_BYTES, prepend=0)
    if not np.array_equal(scan_B[at + 1], markers) or max(start, int(length_K.max())) > MOST_BYTES:
        return None
    return Intervals(sampling, np.concatenate([[start], length_K]).astype(np.uint16))


class Segment(NamedTuple):
    """A marker segment of a JPEG: the marker's second byte, what is in it, and where it ends."""

    marker: int
    body: bytes
    end: int


def segments(encoded: bytes) -> Iterator[Segment]:
    """The segments of a JPEG up to its first scan's header; fewer where they are damaged."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker, end = encoded[at + 1], at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if end > len(encoded) or end < at + 4:
            return
        yield Segment(marker, encoded[at + 4 : end], end)
        if marker == 0xDA:
            return
        at = end


class Grid(NamedTuple):
    """Blocks of luma in an MCU (across, down), and MCUs of an image across and down."""

    sampling: tuple[int, int]
    columns: int
    lines: int


def frame_grid(frame: bytes) -> Grid | None:
    """The MCUs of an image by its frame header; None for others than 8 bits of one or three components."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = [divmod(factor, 16) for factor in frame[7::3]]
    sampling = max(across for across, _ in factors), max(down for _, down in factors)
    if min(min(factors)) < 1 or not height or not width or (len(factors) == 1 and sampling != (1, 1)):
        return None
    return Grid(sampling, -(-width // (BLOCK * sampling[0])), -(-height // (BLOCK * sampling[1])))


def _layout(encoded: bytes) -> tuple[tuple[int, int], int, int] | None:
    """Sampling, number of intervals, and where the scan begins; None where regions cannot be taken."""
    grid, components, interval = None, 0, 0
    for marker, body, end in segments(encoded):
        if marker in (0xC0, 0xC1):
            grid, components = frame_grid(body), body[5] if len(body) > 5 else 0
        elif marker == 0xDD:
            interval = int.from_bytes(body, "big")
        elif marker == 0xDA:
            if grid is None or not interval or grid.columns % interval or body[0] != components:
                return None
            return grid.sampling, grid.columns // interval * grid.lines, end
    return None
