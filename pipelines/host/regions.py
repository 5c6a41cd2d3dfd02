"""What the host executor decodes of an image: a small JPEG of the restart intervals under a window, or all of it."""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from rsbdali.data.header import Format
from rsbdali.data.image_parser import parse
from rsbdali.data.intervals import RawRegion
from rsbdali.errors import UnreadableImage
from rsbdali.pipelines.executor import ImageSource
from rsbdali.pipelines.host.compiled import kernels

Splice = Callable[[RawRegion], np.ndarray | None]
log = logging.getLogger(__name__)


@cache
def find_splice() -> Splice | None:
    """The compiled loop that makes a small JPEG; None where Numba does not work: images are read whole there."""
    try:
        module = kernels("rsbdali.pipelines.host.splice_numba")
    except Exception as error:  # whatever keeps Numba from working here; the pixels are the same without it
        reason = str(error).strip().partition("\n")[0]
        log.warning("images are read whole: Numba does not work here (%s: %s)", type(error).__name__, reason)
        return None
    splice: Splice = module.splice
    return splice


def read_windows(
    index: ImageSource, samples: Sequence[int], window_M4: np.ndarray
) -> tuple[list[np.ndarray | str], np.ndarray]:
    """Encoded images that DALI may see and that hold the windows.

    Args:
        index: the images.
        samples: rows of the index.
        window_M4: int32 (y, x, h, w) in pixels of the image.

    Returns:
        M arrays uint8 (length,), or the reason why an image cannot be had; int32 (M, 4), the windows in their pixels.

    Raises:
        SourceError: the source does not answer.
    """
    inside_M4 = window_M4.copy()
    found = [_read(index, i, inside_M4[k]) for k, i in enumerate(samples)]
    return found, inside_M4


def _read(index: ImageSource, i: int, window_4: np.ndarray) -> np.ndarray | str:
    """The region under a window, which is moved accordingly, or the whole image."""
    try:
        small = _read_region(index, i, window_4)
        return index.read_bytes(i) if small is None else small
    except UnreadableImage as error:
        return str(error)


def _read_region(index: ImageSource, i: int, window_4: np.ndarray) -> np.ndarray | None:
    splice = find_splice()
    raw = index.read_region(i, tuple(window_4.tolist())) if splice is not None else None
    if splice is None or raw is None:
        return None
    small, part = splice(raw), raw.region
    parsed = parse(small) if small is not None else None
    if parsed is None or parsed != (Format.JPEG, part.width, part.height):
        return None  # the file has changed: read as a whole, it is judged as any other
    window_4[0] -= part.y
    window_4[1] -= part.x
    return small
