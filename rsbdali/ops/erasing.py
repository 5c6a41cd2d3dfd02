"""Random erasing of a mixed and normalized batch: the boxes that the plan drew become zeros or normal noise.

Source of the semantics: `timm.data.random_erasing.RandomErasing` as timm's prefetcher calls it. The noise is a function
of (key, box, pixel), so that it is the same whoever makes it: Philox4x32 with 7 rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"), its four words turned into normals by Box and Muller.

On a GPU it is one Triton kernel beside that of the mix (`erasing_kernel.py`), which touches the boxes only.
"""

import numpy as np
import torch

from rsbdali.ops.backend import use_kernels

ROUNDS = 7
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
MODES = ("const", "rand", "pixel")


def erase(images_NCHW: torch.Tensor, box_NK4: np.ndarray, key_N: np.ndarray, mode: str) -> torch.Tensor:
    """Erase in place.

    Args:
        images_NCHW: float, normalized, shape (N, 3, H, W), channels_last, on any device.
        box_NK4: int32 (y0, y1, x0, x1), half-open, in pixels; empty for none. Later ones lie over earlier ones.
        key_N: int64, key of each row's noise.
        mode: const: zeros, the mean color; rand: one normal color a box; pixel: one a pixel.

    Returns:
        The same tensor. Noise of the kernel is within 2e-6 × (1 + |value|) of the CPU's, before rounding to the dtype.
    """
    if use_kernels(images_NCHW.device):
        from rsbdali.ops.erasing_kernel import erase_fused  # Triton takes a while to import, and a CPU needs none

        return erase_fused(images_NCHW, box_NK4, key_N, mode)
    for row, box in np.argwhere((box_NK4[..., 1] > box_NK4[..., 0]) & (box_NK4[..., 3] > box_NK4[..., 2])).tolist():
        y0, y1, x0, x1 = box_NK4[row, box].tolist()
        part_3HW = images_NCHW[row, :, y0:y1, x0:x1]
        if mode == "const":
            part_3HW.zero_()
        else:
            pixel_HW = _pixels(y0, y1, x0, x1, images_NCHW.shape[3]) if mode == "pixel" else np.zeros((1, 1), np.int64)
            part_3HW.copy_(torch.from_numpy(noise(int(key_N[row]), box, pixel_HW)))
    return images_NCHW


def _pixels(y0: int, y1: int, x0: int, x1: int, width: int) -> np.ndarray:
    """Running numbers of a box's pixels in the image: int64, shape (h, w)."""
    pixels: np.ndarray = np.arange(y0, y1)[:, None] * width + np.arange(x0, x1)
    return pixels


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
