"""Resize, crop and flip of one image on the CPU, equal to Pillow's to the bit: compiled loops, or Pillow itself.

Pillow's versions differ in which of the two passes comes first, and the rounding between them shows it. So the loops
are tried against the Pillow that is installed, once a process; if no known order gives its pixels, Pillow resizes.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image

from rsbdali.errors import NumbaError
from rsbdali.pipelines.host.compiled import kernels
from rsbdali.plan.randaugment import BICUBIC, BILINEAR

RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
assert (BILINEAR, BICUBIC) == (0, 1)
# source and target (h, w) to try: down and up, each axis alone, and tall images, where the order of passes changes
TRIALS = (
    ((61, 47), (16, 16)),
    ((47, 150), (20, 31)),
    ((9, 13), (24, 20)),
    ((90, 20), (16, 16)),
    ((90, 12), (16, 16)),
    ((40, 31), (16, 20)),
    ((39, 31), (16, 20)),
    ((38, 31), (16, 20)),
    ((30, 30), (30, 12)),
    ((200, 7), (11, 40)),
)
log = logging.getLogger(__name__)

# whether columns come first, by source (H, W) and target (h, w)
ColumnsFirst = Callable[[int, int, int, int], bool]
PASS_ORDERS: tuple[ColumnsFirst, ...] = (
    lambda H, W, h, w: h < H and H - h > 2 * (W - w),  # Pillow 13.0
    lambda H, W, h, w: False,  # Pillow 11.0 to 12.3
)


class Resize(Protocol):
    """Resizes a box of an image and cuts a part out of the result."""

    def __call__(
        self,
        window_HWC: np.ndarray,
        box: tuple[int, int, int, int],
        out_HWC: np.ndarray,
        interp: int,
        *,
        mirror: bool = False,
        size: tuple[int, int] | None = None,
        offset: tuple[int, int] = (0, 0),
    ) -> None:
        """Resize one image.

        Args:
            window_HWC: uint8, an image or a part of one; left as it is.
            box: (y, x, h, w) in the window: what is resized. Nothing outside is read.
            out_HWC: receives the result; uint8, contiguous, writable.
            interp: `policy.BILINEAR` or `policy.BICUBIC`, antialiased.
            mirror: whether to flip the result left to right.
            size: (h, w) that the box is resized to; default `out_HWC`'s.
            offset: (y, x) in the resized image from which `out_HWC` is cut.
        """
        ...


@cache
def find_resize() -> Resize:
    """The fastest way that equals the installed Pillow. The first call of a process compiles or loads it."""
    try:
        module = kernels("rsbdali.pipelines.host.resize_numba")
    except NumbaError as error:
        log.warning("Pillow resizes, in several times the CPU time: %s", error)
        return resize_pillow
    for columns_first in PASS_ORDERS:
        compiled = _compiled_resize(module.resize, columns_first)
        if all(equals_pillow(compiled, *trial, interp) for trial in TRIALS for interp in (BILINEAR, BICUBIC)):
            return compiled
    log.warning("Pillow resizes, in several times the CPU time: this version computes otherwise than those known here")
    return resize_pillow


def equals_pillow(resize: Resize, source: tuple[int, int], target: tuple[int, int], interp: int) -> bool:
    """Whether a resize of noise from one (h, w) to another is Pillow's to the bit."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    ours_HWC, theirs_HWC = np.empty((2, *target, 3), np.uint8)
    resize(image_HWC, (0, 0, *source), ours_HWC, interp)
    resize_pillow(image_HWC, (0, 0, *source), theirs_HWC, interp)
    return np.array_equal(ours_HWC, theirs_HWC)


def _compiled_resize(run: Callable[..., None], columns_first: ColumnsFirst) -> Resize:
    """`resize_numba.resize` behind the door that its loops need: one type of argument, contiguous and writable."""

    def resize(
        window_HWC: np.ndarray,
        box: tuple[int, int, int, int],
        out_HWC: np.ndarray,
        interp: int,
        *,
        mirror: bool = False,
        size: tuple[int, int] | None = None,
        offset: tuple[int, int] = (0, 0),
    ) -> None:
        target = size or out_HWC.shape[:2]
        window_HWC = np.require(window_HWC, np.uint8, ("C", "W"))
        order = columns_first(box[2], box[3], *target)
        run(window_HWC, box, target, offset, interp, mirror, order, out_HWC)

    return resize


def resize_pillow(
    window_HWC: np.ndarray,
    box: tuple[int, int, int, int],
    out_HWC: np.ndarray,
    interp: int,
    *,
    mirror: bool = False,
    size: tuple[int, int] | None = None,
    offset: tuple[int, int] = (0, 0),
) -> None:
    """By Pillow: the reference; see `Resize`."""
    (y, x, h, w), (height, width) = box, size or out_HWC.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(window_HWC[y : y + h, x : x + w]))
    resized_HWC = np.asarray(image.resize((width, height), RESAMPLING[interp]))
    part_HWC = resized_HWC[offset[0] : offset[0] + out_HWC.shape[0], offset[1] : offset[1] + out_HWC.shape[1]]
    np.copyto(out_HWC, part_HWC[:, ::-1] if mirror else part_HWC)
