"""The draws of a batch plan, each by its source's algorithm, as arrays: crops, filters, RandAugment ops, mixes.

Numbers come from Philox, a counter-based generator keyed by (seed, purpose) with the counter set from (epoch, step).
Shape suffixes: N rows, T tries of a crop, L RandAugment layers, K independent mixes, 4 = (y, x, h, w) for crops and
(y0, y1, x0, x1) for boxes.
"""

from enum import IntEnum

import numpy as np

from rsbdali.plan.autoaugment import AutoAugmentPolicy
from rsbdali.plan.kinds import OP_OF_KIND, Kind, kind_to_arg, transform_set
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, LEVEL_MAX, RandAugmentPolicy
from rsbdali.recipe import Recipe

CROP_TRIES = 10


class Stream(IntEnum):
    """One independent random stream per purpose, so that changing `aa`, say, leaves the crops as they were."""

    CROP = 1
    FLIP = 2
    INTERPOLATION = 3
    RANDAUGMENT = 4
    MIX = 5
    REPLACEMENT = 6
    ERASING = 7
    VFLIP = 8
    COLOR_JITTER = 9
    GRAYSCALE = 10
    GAUSSIAN_BLUR = 11
    KEEP_RATIO = 12
    SAMPLE = 11  # of an epoch's images by weight
    TRANSFORM = 12  # seed of a user's transform


def generator(seed: int, stream: Stream, epoch: int, step: int, extra: int = 0) -> np.random.Generator:
    """A Philox generator for one purpose at one step; `extra` separates draws within the step."""
    # the first counter word runs while numbers are drawn, the other three are ours
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, extra, step, epoch]))


def draw_crops(
    rng: np.random.Generator,
    width_N: np.ndarray,
    height_N: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Random resized crops by timm's algorithm (`RandomResizedCropAndInterpolation.get_params`).

    Ten tries of an area uniform in scale × the image's and a log-uniform aspect ratio; the first that fits wins, else
    the largest centerd crop within the ratio bounds.

    Args:
        rng: source of 4 × 10 uniforms per row.
        width_N: source widths in pixels.
        height_N: source heights in pixels.
        scale: bounds of the area share.
        ratio: bounds of width / height.

    Returns:
        int32, shape (N, 4): y, x, h, w in source pixels.
    """
    n = len(width_N)
    u_4NT = rng.random((4, n, CROP_TRIES))
    width_N1, height_N1 = width_N[:, None].astype(np.float64), height_N[:, None].astype(np.float64)
    area_NT = (scale[0] + (scale[1] - scale[0]) * u_4NT[0]) * (width_N1 * height_N1)
    low, high = np.log(ratio)
    aspect_NT = np.exp(low + (high - low) * u_4NT[1])
    w_NT = np.maximum(1, np.rint(np.sqrt(area_NT * aspect_NT)))  # timm would crop to nothing in a 1-pixel image
    h_NT = np.maximum(1, np.rint(np.sqrt(area_NT / aspect_NT)))
    fits_NT = (w_NT <= width_N1) & (h_NT <= height_N1)
    row_N, try_N = np.arange(n), fits_NT.argmax(axis=1)
    w_N, h_N = w_NT[row_N, try_N], h_NT[row_N, try_N]
    y_N = np.floor(u_4NT[2, row_N, try_N] * (height_N - h_N + 1))
    x_N = np.floor(u_4NT[3, row_N, try_N] * (width_N - w_N + 1))
    crop_N4 = np.stack([y_N, x_N, h_N, w_N], axis=1).astype(np.int32)
    failed_N = ~fits_NT.any(axis=1)
    if failed_N.any():
        crop_N4[failed_N] = _centre_crops(width_N[failed_N], height_N[failed_N], ratio)
    return crop_N4


def _centre_crops(width_N: np.ndarray, height_N: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    in_ratio_N = width_N / height_N
    h_N = np.where(in_ratio_N < ratio[0], np.rint(width_N / ratio[0]), height_N).astype(np.int32)
    w_N = np.where(in_ratio_N > ratio[1], np.rint(height_N * ratio[1]), width_N).astype(np.int32)
    return np.stack([(height_N - h_N) // 2, (width_N - w_N) // 2, h_N, w_N], axis=1)


def draw_interpolation(rng: np.random.Generator, shape: tuple[int, ...], interpolation: str) -> np.ndarray:
    """Filter codes, uint8: BILINEAR or BICUBIC, or a fair draw of the two for 'random' (timm's train default)."""
    if interpolation == "random":
        return (rng.random(shape) < 0.5).astype(np.uint8)
    return np.full(shape, BICUBIC if interpolation == "bicubic" else BILINEAR, dtype=np.uint8)


def draw_randaugment(
    rng: np.random.Generator, n: int, policy: RandAugmentPolicy, interpolation: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ops, arguments and filters of n images (timm's `RandAugment`, `AugmentOp`).

    Returns:
        op_NL int8, arg_NL float64, op_interp_NL uint8.
    """
    shape = (n, policy.num_layers)
    kind_NL = _draw_kinds(rng, shape, policy)
    applied_NL = rng.random(shape) <= policy.prob
    if np.isinf(policy.magnitude_std):
        level_NL = rng.random(shape) * policy.magnitude
    else:
        level_NL = policy.magnitude + policy.magnitude_std * rng.standard_normal(shape)
    level_NL = np.clip(level_NL, 0.0, policy.magnitude_max)
    arg_NL = kind_to_arg(kind_NL, level_NL, rng.random(shape) > 0.5, np.zeros(shape))
    interp_NL = draw_interpolation(rng, shape, interpolation)
    return OP_OF_KIND[np.where(applied_NL, kind_NL, Kind.NONE)], np.where(applied_NL, arg_NL, 0.0), interp_NL


def _draw_kinds(rng: np.random.Generator, shape: tuple[int, int], policy: RandAugmentPolicy) -> np.ndarray:
    """With replacement where all kinds weigh the same, else without (timm's `RandAugment.__call__`)."""
    kinds, weights = transform_set(policy)
    if weights is None:
        return np.array(kinds, np.int8)[rng.integers(len(kinds), size=shape, dtype=np.int8)]
    # the smallest of exponential numbers divided by the weights: drawn one after the other, as NumPy's choice does
    arrival_NK = rng.standard_exponential((shape[0], len(kinds))) / weights
    return np.array(kinds, np.int8)[arrival_NK.argsort(axis=1)[:, : shape[1]]]


def draw_autoaugment(
    rng: np.random.Generator, n: int, policy: AutoAugmentPolicy, interpolation: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ops, arguments and filters of n images by one sub-policy each (timm's `AutoAugment`); as `draw_randaugment`."""
    kind_SL, prob_SL, level_SL = policy.arrays()
    chosen_N = rng.integers(len(kind_SL), size=n)
    kind_NL, shape = kind_SL[chosen_N], (n, policy.num_layers)
    applied_NL = rng.random(shape) <= prob_SL[chosen_N]
    level_NL = level_SL[chosen_N] + policy.magnitude_std * rng.standard_normal(shape)
    level_NL = np.clip(level_NL, 0.0, LEVEL_MAX)
    arg_NL = kind_to_arg(kind_NL, level_NL, rng.random(shape) > 0.5, rng.random(shape))
    interp_NL = draw_interpolation(rng, shape, interpolation)
    return OP_OF_KIND[np.where(applied_NL, kind_NL, Kind.NONE)], np.where(applied_NL, arg_NL, 0.0), interp_NL


def draw_boxes(rng: np.random.Generator, lam_K: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """CutMix boxes for K λs, and λ corrected by the area left after clipping (timm's `cutmix_bbox_and_lam`).

    Returns:
        box_K4 int32 (y0, y1, x0, x1) and lam_K float64.
    """
    height, width = size
    share_K = np.sqrt(1.0 - lam_K)
    cut_h_K, cut_w_K = (height * share_K).astype(np.int64), (width * share_K).astype(np.int64)
    cy_K, cx_K = rng.integers(height, size=len(lam_K)), rng.integers(width, size=len(lam_K))
    y0_K, y1_K = np.clip(cy_K - cut_h_K // 2, 0, height), np.clip(cy_K + (cut_h_K + 1) // 2, 0, height)
    x0_K, x1_K = np.clip(cx_K - cut_w_K // 2, 0, width), np.clip(cx_K + (cut_w_K + 1) // 2, 0, width)
    lam_K = 1.0 - (y1_K - y0_K) * (x1_K - x0_K) / float(height * width)
    box_K4 = np.stack([y0_K, y1_K, x0_K, x1_K], axis=1).astype(np.int32)
    box_K4[lam_K == 1.0] = 0  # an empty box is no box
    return box_K4, lam_K


def draw_mix(rng: np.random.Generator, count: int, recipe: Recipe, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """λ and CutMix box of `count` independent mixes, as timm's `Mixup._params_per_elem` draws them.

    Returns:
        lam_K float32, box_K4 int32; λ = 1 and no box where nothing is mixed.
    """
    lam_K, box_K4 = np.ones(count), np.zeros((count, 4), np.int32)
    off = recipe.mixup_off_epoch
    if (recipe.mixup <= 0 and recipe.cutmix <= 0) or (off and epoch >= off):
        return lam_K.astype(np.float32), box_K4
    if recipe.mixup > 0 and recipe.cutmix > 0:
        cut_K = rng.random(count) < recipe.mixup_switch_prob
    else:
        cut_K = np.full(count, recipe.cutmix > 0)
    mixup_K = rng.beta(recipe.mixup, recipe.mixup, count) if recipe.mixup > 0 else lam_K
    cutmix_K = rng.beta(recipe.cutmix, recipe.cutmix, count) if recipe.cutmix > 0 else lam_K
    box_K4, boxed_lam_K = draw_boxes(rng, cutmix_K, recipe.train_size)
    on_K = rng.random(count) < recipe.mixup_prob
    lam_K = np.where(on_K, np.where(cut_K, boxed_lam_K, mixup_K), 1.0)
    box_K4[~(on_K & cut_K)] = 0
    return lam_K.astype(np.float32), box_K4


def mix_rows(recipe: Recipe, groups: int, rows: int, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """λ and box for every row of the global batch (position p belongs to group p mod G), in timm's three modes."""
    rng = generator(recipe.seed, Stream.MIX, epoch, step)
    local_N, group_N = np.divmod(np.arange(rows), groups)
    group_rows = rows // groups
    if recipe.mixup_mode == "elem":
        pick_N = np.arange(rows)
    elif recipe.mixup_mode == "pair":  # a row and its mirror share one draw
        pick_N = np.minimum(local_N, group_rows - 1 - local_N) * groups + group_N
    else:
        pick_N = group_N
    lam_K, box_K4 = draw_mix(rng, int(pick_N.max()) + 1, recipe, epoch)
    return lam_K[pick_N], box_K4[pick_N]
