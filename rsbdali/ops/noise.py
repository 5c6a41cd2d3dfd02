"""Normal noise as a function of numbers: what random erasing puts into a box is the same whoever makes it.

Philox4x32 with 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose four words Box and
Muller's transform turns into normals.
"""

import numpy as np

ROUNDS = 7
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def noise(key: int, box: int, pixel_HW: np.ndarray) -> np.ndarray:
    """Standard normal colors: float32, shape (3, H, W).

    Args:
        key: of the row, 64 bits.
        box: its number in the row.
        pixel_HW: int, running number of each pixel.
    """
    word_4HW = philox(key, pixel_HW, box)
    first_HW, second_HW = (_radius(word_4HW[k]) for k in (0, 2))
    angle_HW, other_HW = (_uniform(word_4HW[k]) * np.float32(2 * np.pi) for k in (1, 3))
    return np.stack([first_HW * np.cos(angle_HW), first_HW * np.sin(angle_HW), second_HW * np.cos(other_HW)])


def philox(key: int, counter_HW: np.ndarray, counter_1: int) -> list[np.ndarray]:
    """Philox4x32 of the counters (c, counter_1, 0, 0): four arrays of 32-bit words, as uint64."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c0 = counter_HW.astype(np.uint64)
    c1, c2, c3 = np.full_like(c0, counter_1), np.zeros_like(c0), np.zeros_like(c0)
    for _ in range(ROUNDS):
        product_0, product_2 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c2 = product_2 >> HALF ^ c1 ^ np.uint64(k0), product_0 >> HALF ^ c3 ^ np.uint64(k1)
        c1, c3 = product_2 & LOW, product_0 & LOW
        k0, k1 = k0 + KEY_STEPS[0] & 0xFFFFFFFF, k1 + KEY_STEPS[1] & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def _uniform(word_HW: np.ndarray) -> np.ndarray:
    """The upper 24 bits as float32 in (0, 1]."""
    return ((word_HW >> np.uint64(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-24)


def _radius(word_HW: np.ndarray) -> np.ndarray:
    radius: np.ndarray = np.sqrt(np.float32(-2) * np.log(_uniform(word_HW)))
    return radius
