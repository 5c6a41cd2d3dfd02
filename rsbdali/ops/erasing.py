"""Random erasing of a mixed and normalized batch: the boxes that the plan drew become zeros or normal noise.

Source of the semantics: `timm.data.random_erasing.RandomErasing` as timm's prefetcher calls it. The noise is a function
of (key, box, pixel): `noise.py`.

On a GPU it is one Triton kernel beside that of the mix (`erasing_kernel.py`), which touches the boxes only.
"""

import numpy as np
import torch

from rsbdali.ops.backend import use_kernels
from rsbdali.ops.noise import noise


def erase(images_NCHW: torch.Tensor, box_NK4: np.ndarray, key_N: np.ndarray, mode: str) -> torch.Tensor:
    """Erase in place.

    Args:
        images_NCHW: float, normalized, shape (N, 3, H, W), channels_last, on any device.
        box_NK4: int32 (y0, y1, x0, x1), half-open, in pixels; empty for none. Later ones cover earlier ones.
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
