"""Random erasing: which boxes of an image are replaced once it is mixed and normalized, drawn as timm draws them.

Sources: Random Erasing (Zhong et al. 2017, arXiv 1708.04896); `timm.data.random_erasing.RandomErasing` with the
defaults that its prefetcher leaves: areas of 2 % to a third of the image, height / width of 0.3 to 1 / 0.3.

Shapes: N rows, K boxes a row, T tries of a box.
"""

import math

import numpy as np

MODES = ("const", "rand", "pixel")  # `remode`
TRIES = 10
AREA = 0.02, 1 / 3
LOG_ASPECT = math.log(0.3), math.log(1 / 0.3)


def draw_erasing(
    rng: np.random.Generator, rows: int, size: tuple[int, int], prob: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes to erase, and a key for the noise that goes there.

    With several boxes (`recount`) their number is uniform in 1..count for each image and each has its share of the
    area; a later one covers an earlier one. A box that fits in none of ten tries is left out.

    Args:
        rng: source of the numbers.
        rows: N.
        size: (H, W) in pixels.
        prob: share of the images that are erased at all.
        count: K, most boxes of an image.

    Returns:
        box_NK4 int32 (y0, y1, x0, x1), half-open, all zero for none; key_N int64, of the noise (`ops.erasing`).
    """
    height, width = size
    u_4NKT = rng.random((4, rows, count, TRIES))
    applied_N, boxes_N = rng.random(rows) <= prob, rng.integers(1, count + 1, size=rows)
    key_N = rng.integers(-(2**63), 2**63, size=rows, dtype=np.int64)
    area_NKT = (AREA[0] + (AREA[1] - AREA[0]) * u_4NKT[0]) * (height * width) / boxes_N[:, None, None]
    aspect_NKT = np.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * u_4NKT[1])
    h_NKT, w_NKT = np.rint(np.sqrt(area_NKT * aspect_NKT)), np.rint(np.sqrt(area_NKT / aspect_NKT))
    fits_NKT = (h_NKT < height) & (w_NKT < width)
    first_NK1 = fits_NKT.argmax(axis=2)[..., None]
    h_NK, w_NK, y_NK, x_NK = (
        np.take_along_axis(array_NKT, first_NK1, axis=2)[..., 0] for array_NKT in (h_NKT, w_NKT, *u_4NKT[2:])
    )
    y_NK, x_NK = np.floor(y_NK * (height - h_NK + 1)), np.floor(x_NK * (width - w_NK + 1))
    box_NK4 = np.stack([y_NK, y_NK + h_NK, x_NK, x_NK + w_NK], axis=2).astype(np.int32)
    kept_NK = applied_N[:, None] & (np.arange(count) < boxes_N[:, None]) & fits_NKT.any(axis=2)
    box_NK4[~kept_NK | (h_NK == 0) | (w_NK == 0)] = 0
    return box_NK4, key_N
