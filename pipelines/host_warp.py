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
    share_HX = _shares(shift_L, offset_L, image_HWC.shape[axis], axis)
    mix = _bicubic if interp == BICUBIC else _bilinear
    out_HX = mix(taps, share_HX, axis)
    _fill_outside(out_HX, shift_L, image_HWC.shape[axis], axis)
    return out_HX.reshape(height, width, 3)


def _shifted(image_HWC: np.ndarray, offset_L: np.ndarray, axis: int) -> np.ndarray:
    """Each line moved by its whole offset, with one pixel more before it and two behind; edges are repeated.

    Returns:
        int16 (differences will fit), shape (H, X + 9) for axis 1, (H + 3, X) for axis 0.
    """
    length = image_HWC.shape[axis]
    before, after = max(0, 1 - int(offset_L.min())), max(0, 2 + int(offset_L.max()))
    padded = np.empty(_longer(image_HWC, axis, before + after), np.int16)
    # along the line first, then the lines, whatever the order in memory
    image_PLC, padded_PLC = np.moveaxis(image_HWC, axis, 0), np.moveaxis(padded, axis, 0)
    padded_PLC[before : before + length] = image_PLC
    padded_PLC[:before] = image_PLC[0]
    padded_PLC[before + length :] = image_PLC[-1]
    if len(offset_L) == 1:  # all lines alike: no copy
        start = before + int(offset_L[0]) - 1
        moved = padded[:, start : start + length + 3] if axis == 1 else padded[start : start + length + 3]
        return moved.reshape(len(moved), -1)
    out = np.empty(_longer(image_HWC, axis, 3), np.int16)
    out_PLC = np.moveaxis(out, axis, 0)
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


def _shares(shift_L: np.ndarray, offset_L: np.ndarray, length: int, axis: int) -> np.ndarray:
    """How far each pixel reads beyond its first tap, 0..1: float64, broadcastable to (H, X)."""
    centre_P = np.arange(length) + 0.5
    if axis == 1:
        arrays = centre_P.repeat(3)[None, :], shift_L[:, None], offset_L[:, None]
    else:
        repeats = 3 if len(shift_L) > 1 else 1
        arrays = centre_P[:, None], shift_L.repeat(repeats)[None, :], offset_L.repeat(repeats)[None, :]
    # the sum rounds as Pillow's does, the differences are exact; torch broadcasts faster than NumPy here
    centre, shift, offset = (torch.from_numpy(array) for array in arrays)
    return (centre + shift).sub_(centre).sub_(offset).numpy()


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
    whole_HX = value_HX.astype(np.int16)
    np.maximum(whole_HX, 0, out=whole_HX)
    return np.minimum(whole_HX, 255, out=whole_HX).astype(np.uint8)


def _fill_outside(out_HX: np.ndarray, shift_L: np.ndarray, length: int, axis: int) -> None:
    """Paint the pixels that were read from outside the image."""
    fill_X = np.array(FILL_RGB * (out_HX.shape[1] // 3), np.uint8)
    centre_P1 = (np.arange(length) + 0.5)[:, None]
    for at_start, reach in ((True, -shift_L.min()), (False, shift_L.max())):
        if reach <= 0:
            continue
        pixels = min(length, int(reach) + 2)
        source_PL = (centre_P1[:pixels] if at_start else centre_P1[length - pixels :]) + shift_L
        count_L = (source_PL < 0 if at_start else source_PL >= length).sum(axis=0)
        for lines, count in _runs(count_L):
            outside = slice(0, count) if at_start else slice(length - count, length)
            rows, columns = (lines, outside) if axis == 1 else (outside, lines)
            values = slice(3 * columns.start, None if columns.stop is None else 3 * columns.stop)
            out_HX[rows, values] = fill_X[values]
