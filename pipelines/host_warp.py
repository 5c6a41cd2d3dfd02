"""Pillow's affine warp for shears and translations, bit for bit, by NumPy in a quarter of the time.

These warps move each line (a row, or a column) along itself by a shift of its own, so a pixel mixes 2 (bilinear) or 4
(bicubic) neighbours of its line, where Pillow's general code reads 4 or 16. Every step is done in float64 and in
Pillow's order, so that the truncation at the end meets the same number. Source: Pillow's `Geometry.c`
(`affine_transform`, `BILINEAR`, `BICUBIC`): output pixel i reads the line at i + ½ + shift; outside is the fill colour.

Shapes: P pixels along a line, L lines, H rows, W columns, X = 3 × W interleaved values of a row.
"""

from collections.abc import Iterator

import numpy as np
import torch

from rsbdali.policy import BICUBIC, FILL_RGB

BLOCK = 32  # rows at a time: temporaries stay in the cache, and too small to be given back and faulted in again
NEAR_WHOLE = 1e-9  # a shift this near a whole number may round to either side of it along one line


def shift_lines(image_HWC: np.ndarray, shift_L: np.ndarray, axis: int, interp: int) -> np.ndarray | None:
    """Move each line of an image along itself.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous.
        shift_L: float64, pixels, monotone: one for each line, or a single one for all.
        axis: 1 moves rows sideways, 0 moves columns up and down.
        interp: `plan.BILINEAR` or `plan.BICUBIC`.

    Returns:
        uint8, shape (H, W, 3); None where a shift is so near a whole number that only Pillow itself is exact.
    """
    if (np.abs(shift_L - np.rint(shift_L)) < NEAR_WHOLE).any():
        return None
    height, width, _ = image_HWC.shape
    offset_L = np.floor(shift_L)
    taps = _shifted(image_HWC, offset_L.astype(np.int64), axis)
    centre, shift, offset = _grid(shift_L, offset_L, image_HWC.shape[axis], axis)
    out_HX = np.empty((height, width * 3), np.uint8)
    mix = _bicubic if interp == BICUBIC else _bilinear
    for y in range(0, height, BLOCK):
        last = min(y + BLOCK, height)
        rows = slice(y, last) if axis == 0 or len(shift_L) > 1 else slice(0, 1)
        # the sum rounds as Pillow's does, the differences are exact
        if axis == 1:
            share_HX = (centre + shift[rows]).sub_(centre).sub_(offset[rows])
        else:
            share_HX = (centre[rows] + shift).sub_(centre[rows]).sub_(offset)
        out_HX[y:last] = mix(taps[y : last + 3] if axis == 0 else taps[y:last], share_HX.numpy(), axis)
    out_HWC = out_HX.reshape(height, width, 3)
    _fill_outside(out_HWC, shift_L, axis)
    return out_HWC


def _shifted(image_HWC: np.ndarray, offset_L: np.ndarray, axis: int) -> np.ndarray:
    """Each line moved by its whole offset, with one pixel more before it and two behind; edges are repeated.

    Returns:
        int16 (differences will fit), shape (H, X + 9) for axis 1, (H + 3, X) for axis 0.
    """
    length = image_HWC.shape[axis]
    before, after = max(0, 1 - int(offset_L.min())), max(0, 2 + int(offset_L.max()))
    padded = np.empty(_longer(image_HWC, axis, before + after), np.int16)
    out = np.empty(_longer(image_HWC, axis, 3), np.int16)
    # along the line first, then the lines, whatever the order in memory
    image_PLC, padded_PLC, out_PLC = (np.moveaxis(array, axis, 0) for array in (image_HWC, padded, out))
    padded_PLC[before : before + length] = image_PLC
    padded_PLC[:before] = image_PLC[0]
    padded_PLC[before + length :] = image_PLC[-1]
    for lines, offset in _runs(offset_L):
        start = before + offset - 1
        out_PLC[:, lines] = padded_PLC[start : start + length + 3, lines]
    return out.reshape(len(out), -1)


def _longer(image_HWC: np.ndarray, axis: int, pixels: int) -> tuple[int, int, int]:
    height, width, channels = image_HWC.shape
    return (height, width + pixels, channels) if axis == 1 else (height + pixels, width, channels)


def _runs(value_L: np.ndarray) -> Iterator[tuple[slice, int]]:
    """Neighbouring lines with the same value, and the value; a single value counts for all lines."""
    starts = [0, *(np.flatnonzero(np.diff(value_L)) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        yield slice(start, stop), int(value_L[start])


def _grid(shift_L: np.ndarray, offset_L: np.ndarray, length: int, axis: int) -> list[torch.Tensor]:
    """Centres of a line's pixels, shifts and whole offsets of the lines, shaped so that their sums have shape (H, X).

    Torch tensors, whose broadcasting is faster than NumPy's here.
    """
    centre_P = np.arange(length) + 0.5
    if axis == 1:
        arrays = centre_P.repeat(3)[None, :], shift_L[:, None], offset_L[:, None]
    else:
        repeats = 3 if len(shift_L) > 1 else 1
        arrays = centre_P[:, None], shift_L.repeat(repeats)[None, :], offset_L.repeat(repeats)[None, :]
    return [torch.from_numpy(array) for array in arrays]


def _tap(taps: np.ndarray, k: int, missing: int, axis: int) -> np.ndarray:
    """The k-th of `missing` + 1 neighbours of every pixel."""
    if axis == 0:
        return taps[k : len(taps) - missing + k]
    return taps[:, 3 * k : taps.shape[1] - 3 * (missing - k)]


def _bilinear(taps: np.ndarray, share_HX: np.ndarray, axis: int) -> np.ndarray:
    first_HX, second_HX = _tap(taps, 1, 3, axis), _tap(taps, 2, 3, axis)
    value_HX = (second_HX - first_HX).astype(np.float64)
    value_HX *= share_HX
    value_HX += first_HX
    return value_HX.astype(np.uint8)


def _bicubic(taps: np.ndarray, share_HX: np.ndarray, axis: int) -> np.ndarray:
    # whole numbers as long as possible: Pillow's p1..p4 from the steps between neighbours
    step = _tap(taps, 1, 1, axis) - _tap(taps, 0, 1, axis)
    step1_HX, step2_HX, step3_HX = (_tap(step, k, 2, axis) for k in range(3))
    p4_HX = step1_HX + step3_HX
    p3_HX = -(p4_HX + step1_HX)
    value_HX = p4_HX.astype(np.float64)
    for term_HX in (p3_HX, step1_HX + step2_HX, _tap(taps, 1, 3, axis)):
        value_HX *= share_HX
        value_HX += term_HX
    return np.clip(value_HX, 0, 255, out=value_HX).astype(np.uint8)


def _fill_outside(out_HWC: np.ndarray, shift_L: np.ndarray, axis: int) -> None:
    """Paint the pixels that were read from outside the image."""
    out_PLC = np.moveaxis(out_HWC, axis, 0)
    length = len(out_PLC)
    centre_P1 = (np.arange(length) + 0.5)[:, None]
    for at_start in (True, False):
        reach = np.ceil(max(0.0, -shift_L.min() if at_start else shift_L.max()))
        pixels = min(length, int(reach) + 1)
        region_PL = (centre_P1[:pixels] if at_start else centre_P1[length - pixels :]) + shift_L
        count_L = (region_PL < 0 if at_start else region_PL >= length).sum(axis=0)
        for lines, count in _runs(count_L):
            if count:
                out_PLC[slice(count) if at_start else slice(length - count, None), lines] = FILL_RGB
