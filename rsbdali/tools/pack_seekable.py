"""What `rsbdali pack --seekable` does to an image: restart markers, without loss, and the intervals between them."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rsbdali.data.interval_table import read_intervals
from rsbdali.data.intervals import BLOCK, Intervals, find_intervals
from rsbdali.data.rgb_copy import REFUSALS
from rsbdali.data.sources.storage import Blob
from rsbdali.tools.restart_markers import add_restart_markers

INTERVAL_WIDTH = 32  # pixels; 64 and 128 gain less (bench.seekable)


class Seekable(NamedTuple):
    """An image that was written again, or not.

    Attributes:
        encoded: its bytes.
        intervals: of a JPEG with restart markers; None where the bytes are as they were.
        whole_lines: whether they are whole lines of MCUs.
    """

    encoded: bytes
    intervals: Intervals | None = None
    whole_lines: bool = False


def make_seekable(encoded: bytes) -> Seekable:
    """An image with restart markers, or as it is where that is not possible without loss.

    Both are decoded and compared, each pixel.
    """
    written = add_restart_markers(encoded, INTERVAL_WIDTH)
    found = None if written is None else check_seekable(encoded, written)
    return Seekable(encoded) if found is None else found


def check_seekable(original: bytes, written: bytes) -> Seekable | None:
    """The image that was written of an original: its intervals; None where it has none, or other pixels."""
    intervals = find_intervals(written)
    if intervals is None or (height := _height_if_equal(original, written)) is None:
        return Seekable(written) if original == written else None
    lines = -(-height // (BLOCK * intervals.sampling[1]))
    return Seekable(written, intervals, len(intervals.length_K) - 1 == lines)


def _height_if_equal(first: bytes, second: bytes) -> int | None:
    try:
        with Image.open(BytesIO(first)) as one, Image.open(BytesIO(second)) as other:
            equal = one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))
            return other.height if equal else None
    except REFUSALS:  # damaged: left as it is
        return None


def fits_intervals(path: Path, count: int, blob: Blob) -> bool:
    """Whether a file of intervals is what the images of a shard have."""
    if not count:
        return True
    found = read_intervals(str(path))
    if found is None:
        return False
    column_K5, length_L = found
    start = 0
    for at, nbytes, across, down, end in column_K5.tolist():
        intervals = find_intervals(blob.pread(nbytes, at))
        if intervals is None or intervals.sampling != (across, down):
            return False
        if not np.array_equal(intervals.length_K, length_L[start:end]):
            return False
        start = end
    return len(column_K5) == count
