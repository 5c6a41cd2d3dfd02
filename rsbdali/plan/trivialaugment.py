"""TrivialAugment: one op for each image, its strength uniform.

Sources: TrivialAugment (Müller and Hutter 2021, arXiv 2103.10158), torchvision's `TrivialAugmentWide`, whose floats
these are: magnitudes in float32, shears by way of an angle, translations in whole pixels, black outside the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rsbdali.plan.randaugment import Op

BINS = 31
FILL = (0, 0, 0)


@dataclass(frozen=True)
class TrivialAugmentPolicy:
    """`aa: trivial`; one layer."""

    num_layers: int = 1


def _linspace(start: float, end: float) -> np.ndarray:
    """`torch.linspace` in float32: from both ends to the middle, the second half by a fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    step, index = (last - first) / np.float32(BINS - 1), np.arange(BINS)
    rising = first + step * index.astype(np.float32)
    falling = (np.float64(last) - np.float64(step) * (BINS - 1 - index)).astype(np.float32)
    return np.where(index < BINS // 2, rising, falling).astype(np.float64)


def _shear_x(magnitude: float) -> float:
    return math.tan(math.radians(math.degrees(math.atan(magnitude))))


def _shear_y(magnitude: float) -> float:
    angle = math.radians(math.degrees(math.atan(magnitude)))
    return math.sin(angle) / math.cos(angle)


def _enhance(magnitude: float) -> float:
    return 1.0 + magnitude


WIDE = 0.0, 0.99
# op, range of magnitudes, whether they take a sign, the argument that a magnitude becomes; in torchvision's order
SPACE: tuple[tuple[Op, tuple[float, float], bool, Callable[[float], float]], ...] = (
    (Op.NONE, (0, 0), False, float),
    (Op.SHEAR_X, WIDE, True, _shear_x),
    (Op.SHEAR_Y, WIDE, True, _shear_y),
    (Op.TRANSLATE_X_ABS, (0, 32), True, lambda pixels: -float(int(pixels))),
    (Op.TRANSLATE_Y_ABS, (0, 32), True, lambda pixels: -float(int(pixels))),
    (Op.ROTATE, (0, 135), True, float),
    (Op.BRIGHTNESS, WIDE, True, _enhance),
    (Op.COLOR, WIDE, True, _enhance),
    (Op.CONTRAST, WIDE, True, _enhance),
    (Op.SHARPNESS, WIDE, True, _enhance),
    (Op.POSTERIZE, (0, 6), False, lambda dropped: 8.0 - round(dropped)),
    (Op.SOLARIZE, (255, 0), False, lambda threshold: float(math.ceil(threshold))),  # levels are whole numbers
    (Op.AUTO_CONTRAST, (0, 0), False, float),
    (Op.EQUALIZE, (0, 0), False, float),
)
OP_K = np.array([op for op, *_ in SPACE], np.int8)


def argument_table() -> np.ndarray:
    """Arguments by op of `SPACE`, bin and sign (plus, minus): float64, shape (14, 31, 2)."""
    table_KB2 = np.zeros((len(SPACE), BINS, 2))
    for k, (_, bounds, signed, argument) in enumerate(SPACE):
        for b, magnitude in enumerate(_linspace(*bounds).tolist()):
            table_KB2[k, b] = argument(magnitude), argument(-magnitude if signed else magnitude)
    return table_KB2


ARG_KB2 = argument_table()


def draw_trivialaugment(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ops and arguments of n images: op_N1 int8, arg_N1 float64."""
    chosen_N1, bin_N1, sign_N1 = rng.integers((len(SPACE), BINS, 2), size=(n, 1, 3)).transpose(2, 0, 1)
    return OP_K[chosen_N1], ARG_KB2[chosen_N1, bin_N1, sign_N1]
