"""Resizes that keep an image's aspect ratio, and crops from their middle.

Sources: `timm.data.transforms` (`ResizeKeepRatio`, `CenterCropOrPad`), with the settings of `transforms_imagenet_train`
for `train_crop_mode: rkrc` and of `transforms_imagenet_eval` for `crop_mode: border`.
"""

import numpy as np

from rsbdali.recipe import Recipe

SCALE_PROB = ASPECT_PROB = 0.5


def draw_keep_ratio(
    rng: np.random.Generator, width_N: np.ndarray, height_N: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and crops of `train_crop_mode: rkrc`.

    The image is resized so that it covers the training size, on half the images made larger by a share of area from
    `scale`, and on half of them stretched by an aspect ratio from `ratio`. The middle is cut out; where the result is
    smaller than the training size, it is mirrored at its edges.

    Args:
        rng: source of four uniforms a row.
        width_N: source widths in pixels.
        height_N: source heights in pixels.
        recipe: gives `train_size`, `scale` and `ratio`.

    Returns:
        resized_N2 int32 (h, w), offset_N2 int32 (y, x) of the crop in it, below 0 where there is less than needed.
    """
    u_4N = rng.random((4, len(width_N)))
    low, high = recipe.scale
    scale_N = np.where(u_4N[0] < SCALE_PROB, 1.0 / np.sqrt(low + (high - low) * u_4N[1]), 1.0)
    low, high = np.log(recipe.ratio)
    aspect_N = np.where(u_4N[2] < ASPECT_PROB, np.sqrt(np.exp(low + (high - low) * u_4N[3])), 1.0)
    factor_N2 = np.stack([scale_N / aspect_N, scale_N * aspect_N], axis=1)
    resized_N2 = keep_ratio(width_N, height_N, recipe.train_size, factor_N2)
    return resized_N2, center_offset(resized_N2, recipe.train_size)


def keep_ratio(
    width_N: np.ndarray,
    height_N: np.ndarray,
    target: tuple[int, int],
    factor_N2: np.ndarray | None = None,
    *,
    longest: bool = False,
) -> np.ndarray:
    """Sizes after a resize that covers the target (H, W), with `longest` fits into it: int32 (h, w), shape (N, 2)."""
    sides_N2 = np.stack([height_N, width_N], axis=1).astype(np.float64)
    ratio_N2 = sides_N2 / np.array(target)
    ratio_N1 = ratio_N2.max(axis=1, keepdims=True) if longest else ratio_N2.min(axis=1, keepdims=True)
    sizes_N2 = np.rint((sides_N2 if factor_N2 is None else sides_N2 * factor_N2) / ratio_N1)
    return np.maximum(1, sizes_N2).astype(np.int32)


def center_offset(resized_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where (H, W) in the middle of an image begins: int32 (y, x), negative where the image has to be padded."""
    spare_N2 = resized_N2.astype(np.int64) - np.array(size)
    return np.where(spare_N2 < 0, -(-spare_N2 // 2), np.rint(spare_N2 / 2)).astype(np.int32)
