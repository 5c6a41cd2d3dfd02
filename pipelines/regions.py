"""What is decoded of an image: a small JPEG of the restart intervals under a window, or all of it."""

import logging
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat
from types import ModuleType
from typing import NamedTuple

import numpy as np

from rsbdali.data.header import Format
from rsbdali.data.image_parser import parse
from rsbdali.data.sources.base import ByteRange
from rsbdali.errors import NumbaError, UnreadableImage
from rsbdali.pipelines.executor import ImageSource
from rsbdali.pipelines.host.compiled import kernels

log = logging.getLogger(__name__)


@cache
def find_splice() -> ModuleType | None:
    """The compiled loops that make a small JPEG; None where Numba does not work: images are read whole there."""
    try:
        return kernels("rsbdali.pipelines.host.splice_numba")
    except NumbaError as error:
        log.warning("images are read whole, which gives the same pixels: %s", error)
        return None


class _Region(NamedTuple):
    """What is read of an image for a window, and the fields of `splice_numba`, which makes a small JPEG of it."""

    length_K: np.ndarray
    field_F: np.ndarray
    parts: tuple[ByteRange, ByteRange]


def _region(index: ImageSource, i: int, window_4: np.ndarray) -> _Region | None:
    """The region of image i under a window (y, x, h, w); None where the image is read as a whole."""
    intervals = index.intervals_of(i)
    loops = None if intervals is None else find_splice()
    if intervals is None or loops is None:
        return None
    field_F = np.empty(loops.FIELDS, np.int64)
    field_F[:4] = window_4
    field_F[4:8] = index.height_N[i], index.width_N[i], *intervals.sampling
    loops.locate(intervals.length_K, field_F)
    fields = field_F.tolist()
    if fields[loops.LINES] * fields[loops.COUNT] == len(intervals.length_K) - 1:
        return None  # all of it: nothing to splice
    header = ByteRange(0, int(intervals.length_K[0]))
    return _Region(intervals.length_K, field_F, (header, ByteRange(fields[loops.START], fields[loops.BYTES])))


def fetch_ahead(index: ImageSource, sample_M: np.ndarray, window_M4: np.ndarray) -> None:
    """Have a source that is far away start on what a `RegionReader` will read; arguments as of `RegionReader.read`."""
    regions = (_region(index, i, window_4) for i, window_4 in zip(sample_M.tolist(), window_M4, strict=True))
    index.fetch_ahead(sample_M, (() if region is None else region.parts for region in regions))


class RegionReader:
    """Reads images for one thread, those that are seekable in part. Its memory is used again by the next call."""

    def __init__(self) -> None:
        self._raw_B, self._small_B, self._used = np.empty(0, np.uint8), np.empty(0, np.uint8), 0

    def read(
        self, index: ImageSource, samples: Sequence[int], window_M4: np.ndarray | None
    ) -> tuple[list[np.ndarray | str], np.ndarray | None]:
        """Read encoded images that DALI may see and that hold the windows.

        Args:
            index: the images.
            samples: rows of the index.
            window_M4: int32 (y, x, h, w) in pixels of the image; None for whole images.

        Returns:
            M arrays uint8 (length,), valid until the next call, or the reason why an image cannot be had; int32 (M, 4),
            the windows in their pixels.

        Raises:
            SourceError: the source does not answer.
        """
        self._used, inside_M4 = 0, None if window_M4 is None else window_M4.copy()
        windows: Iterable[np.ndarray | None] = repeat(None) if inside_M4 is None else inside_M4
        return [self._read(index, i, window_4) for i, window_4 in zip(samples, windows, strict=False)], inside_M4

    def _read(self, index: ImageSource, i: int, window_4: np.ndarray | None) -> np.ndarray | str:
        """The region under a window, which is moved accordingly, or the whole image."""
        try:
            small = None if window_4 is None else self._read_region(index, i, window_4)
            return index.read_bytes(i) if small is None else small
        except UnreadableImage as error:
            return str(error)

    def _read_region(self, index: ImageSource, i: int, window_4: np.ndarray) -> np.ndarray | None:
        loops, region = find_splice(), _region(index, i, window_4)
        if loops is None or region is None:
            return None
        fields = region.field_F.tolist()
        raw_B = self._raw(sum(part.nbytes for part in region.parts))
        index.read_parts(i, region.parts, raw_B)
        small_B = self._small(len(raw_B))
        length = loops.splice(raw_B, region.length_K, region.field_F, small_B)
        if not length or parse(small_B[:length]) != (Format.JPEG, fields[loops.WIDTH], fields[loops.HEIGHT]):
            return None  # the file has changed: read as a whole, it is checked as any other
        self._used += length
        window_4[:2] -= fields[loops.Y], fields[loops.X]
        return small_B[:length]

    def _raw(self, count: int) -> np.ndarray:
        if len(self._raw_B) < count:
            self._raw_B = np.empty(2 * count, np.uint8)
        return self._raw_B[:count]

    def _small(self, count: int) -> np.ndarray:
        """Memory behind what this call has used; what was handed out of memory that is too small keeps it alive."""
        if len(self._small_B) < self._used + count:
            self._small_B, self._used = np.empty(2 * (self._used + count), np.uint8), 0
        return self._small_B[self._used : self._used + count]
