"""Pillow's affine warp for shears and translations, bit for bit, by NumPy and torch in less than half the time.

These warps move each line (a row, or a column) along itself by a shift of its own, so a pixel mixes 2 (bilinear) or 4
(bicubic) neighbours of its line, where Pillow's general code reads 4 or 16. Pillow computes in float64 and truncates.
Here float32 does it, and a value that its error could have put on the wrong side of a whole number is computed again
in float64 and Pillow's order. Source: Pillow's `Geometry.c` (`affine_transform`, `BILINEAR`, `BICUBIC`): output pixel
i reads the line at i + ½ + shift; outside is the fill colour.

Shapes: P pixels along a line, L lines, H rows, W columns, X = 3 × W interleaved values of a row, D doubtful values.
"""

from collections.abc import Iterator
from functools import cache
from typing import TypeVar

import numpy as np
import torch

from rsbdali.plan.randaugment import BICUBIC, FILL_RGB

Array = TypeVar("Array", np.ndarray, torch.Tensor)

NEAR_WHOLE = 1e-9  # a shift this near a whole number may round to either side of it along one line
BILINEAR_ERROR = 4e-5  # of float32, at most: four roundings of numbers below 256
BICUBIC_ERROR = 2e-4  # likewise: six roundings of numbers below 512


def shift_lines(image_HWC: np.ndarray, shift_L: np.ndarray, axis: int, interp: int) -> np.ndarray | None:
    """Move each line of an image along itself.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous.
        shift_L: float64, pixels, monotone: one for each line, or a single one for all.
        axis: 1 moves rows sideways, 0 moves columns up and down.
        interp: `policy.BILINEAR` or `policy.BICUBIC`.

    Returns:
        uint8, shape (H, W, 3); None where a shift is so near a whole number that only Pillow itself is exact.
    """
    if (np.abs(shift_L - np.rint(shift_L)) < NEAR_WHOLE).any():
        return None
    offset_L = np.floor(shift_L)
    lines = _shifted(image_HWC, offset_L.astype(np.int64), axis)
    share_L = shift_L - offset_L
    if axis == 0 and len(share_L) > 1:
        share_L = share_L.repeat(3)
    share = share_L[:, None] if axis == 1 else share_L[None, :]
    out_HX, doubtful_D = (_bicubic if interp == BICUBIC else _bilinear)(lines, share, axis)
    if len(doubtful_D):
        _correct(out_HX, doubtful_D, lines, shift_L, axis, interp)
    _fill_outside(out_HX, shift_L, image_HWC.shape[axis], axis)
    return out_HX.reshape(image_HWC.shape)


def _shifted(image_HWC: np.ndarray, offset_L: np.ndarray, axis: int) -> np.ndarray:
    """Each line moved by its whole offset, with one pixel more before it and two behind.

    Edges are repeated as far as an output pixel reads that is not painted over later.

    Returns:
        uint8, shape (H, X + 9) for axis 1, (H + 3, X) for axis 0.
    """
    height, width, _ = image_HWC.shape
    length = image_HWC.shape[axis]
    before, after = max(2, 1 - int(offset_L.min())), max(2, 2 + int(offset_L.max()))
    image_HX = image_HWC.reshape(height, -1)
    if axis == 1:
        padded = np.zeros((height, 3 * (before + width + after)), np.uint8)
        padded[:, 3 * before : 3 * (before + width)] = image_HX
        for k in (1, 2):
            padded[:, 3 * (before - k) : 3 * (before - k + 1)] = image_HX[:, :3]
            padded[:, 3 * (before + width + k - 1) : 3 * (before + width + k)] = image_HX[:, -3:]
    else:
        padded = np.zeros((before + height + after, 3 * width), np.uint8)
        padded[before : before + height] = image_HX
        padded[before - 2 : before], padded[before + height : before + height + 2] = image_HX[0], image_HX[-1]
    starts_L = before - 1 + offset_L
    if len(offset_L) == 1:  # all lines alike: no copy
        return _along(padded, int(starts_L[0]), length + 3, axis)
    out = np.empty((height, 3 * (width + 3)) if axis == 1 else (height + 3, 3 * width), np.uint8)
    for first, last, start in _runs(starts_L):
        if axis == 1:
            out[first:last] = padded[first:last, 3 * start : 3 * (start + length + 3)]
        else:
            out[:, 3 * first : 3 * last] = padded[start : start + length + 3, 3 * first : 3 * last]
    return out


def _along(lines: Array, start: int, count: int, axis: int) -> Array:
    """`count` pixels of every line from pixel `start`."""
    return lines[:, 3 * start : 3 * (start + count)] if axis == 1 else lines[start : start + count]


def _taps(lines: Array, count: int, axis: int) -> list[Array]:
    """The `count` neighbours of each pixel, one array each."""
    length = (lines.shape[1] // 3 if axis == 1 else lines.shape[0]) - count + 1
    return [_along(lines, k, length, axis) for k in range(count)]


def _runs(value_L: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Neighbouring lines with the same value: first, behind the last, value."""
    starts = [0, *(np.flatnonzero(np.diff(value_L)) + 1).tolist()]
    yield from zip(starts, [*starts[1:], len(value_L)], value_L[starts].tolist(), strict=True)


def _bilinear(lines: np.ndarray, share: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The moved lines, and the flat indices of values in doubt: whole lines, by their share alone."""
    _, first_HX, second_HX, _ = _taps(torch.from_numpy(lines).float(), 4, axis)
    value_HX = torch.lerp(first_HX, second_HX, torch.from_numpy(share.astype(np.float32)))
    out_HX = value_HX.numpy().astype(np.uint8)  # NumPy truncates to uint8 six times as fast as torch
    doubtful = np.searchsorted(_doubtful_shares(), share) % 2 == 1
    if doubtful.any():
        return out_HX, np.flatnonzero(np.broadcast_to(doubtful, out_HX.shape))
    return out_HX, np.empty(0, np.int64)


@cache
def _doubtful_shares() -> np.ndarray:
    """The share's intervals, start and stop in turn, where a difference of two bytes times it is nearly whole.

    They surround the fractions n / m with m up to 255. Neighbouring fractions lie too far apart for them to overlap.
    """
    fractions: dict[float, float] = {}
    for m in range(255, 0, -1):  # the last one written has the least denominator
        fractions.update((n / m, BILINEAR_ERROR / m) for n in range(m + 1))
    centre, reach = np.array(sorted(fractions.items())).T
    return np.stack([centre - reach, centre + reach], axis=1).ravel()


def _bicubic(lines: np.ndarray, share: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The moved lines, and the flat indices of values in doubt: near a whole number, the neighbours not all equal."""
    value = torch.from_numpy(lines).float()
    _, value_HX, _, _ = _taps(value, 4, axis)
    before, after = _taps(value, 2, axis)
    # Pillow's polynomial, by the steps between neighbours
    weights = (share * (1 - share) ** 2, share, share * share * (share - 1))
    for step_HX, weight in zip(_taps(after - before, 3, axis), weights, strict=True):
        value_HX = torch.addcmul(value_HX, step_HX, torch.from_numpy(weight.astype(np.float32)))
    out_HX = value_HX.add_(BICUBIC_ERROR).clamp_(0, 255).numpy().astype(np.uint8)
    doubtful_HX = value_HX.sub_(2 * BICUBIC_ERROR).numpy().astype(np.uint8) != out_HX
    uneven = np.not_equal(*_taps(lines, 2, axis))
    uneven1_HX, uneven2_HX, uneven3_HX = _taps(uneven, 3, axis)
    doubtful_HX &= uneven1_HX | uneven2_HX | uneven3_HX
    return out_HX, np.flatnonzero(doubtful_HX)


def _correct(
    out_HX: np.ndarray, doubtful_D: np.ndarray, lines: np.ndarray, shift_L: np.ndarray, axis: int, interp: int
) -> None:
    """Compute some of the values by Pillow's own float64 arithmetic."""
    row_D, value_D = np.divmod(doubtful_D, out_HX.shape[1])
    line_D, pixel_D = (row_D, value_D // 3) if axis == 1 else (value_D // 3, row_D)
    shift_D = shift_L[line_D] if len(shift_L) > 1 else shift_L
    centre_D = pixel_D + 0.5
    share_D = (centre_D + shift_D) - centre_D - np.floor(shift_D)  # the sum rounds, the differences are exact
    v1_D, v2_D, v3_D, v4_D = (tap_HX[row_D, value_D].astype(np.float64) for tap_HX in _taps(lines, 4, axis))
    if interp == BICUBIC:
        p2_D, p3_D, p4_D = v3_D - v1_D, 2 * (v1_D - v2_D) + v3_D - v4_D, v2_D - v1_D - v3_D + v4_D
        exact_D = np.clip(v2_D + share_D * (p2_D + share_D * (p3_D + share_D * p4_D)), 0, 255)
    else:
        exact_D = v2_D + (v3_D - v2_D) * share_D
    out_HX[row_D, value_D] = exact_D.astype(np.uint8)


def _fill_outside(out_HX: np.ndarray, shift_L: np.ndarray, length: int, axis: int) -> None:
    """Paint the pixels that were read from outside the image."""
    centre_P1 = (np.arange(length) + 0.5)[:, None]
    for at_start, reach in ((True, -shift_L.min()), (False, shift_L.max())):
        if reach <= 0:
            continue
        pixels = min(length, int(reach) + 2)
        first = 0 if at_start else length - pixels
        source_PL = centre_P1[first : first + pixels] + shift_L
        outside_PL = source_PL < 0 if at_start else source_PL >= length
        strip = _along(out_HX, first, pixels, axis)
        fill = np.array(FILL_RGB * (strip.shape[1] // 3), np.uint8)
        if axis == 1:
            np.copyto(strip, fill, where=outside_PL.repeat(3, axis=0).T)
        else:
            np.copyto(strip, fill, where=outside_PL.repeat(3 if len(shift_L) > 1 else 1, axis=1))
