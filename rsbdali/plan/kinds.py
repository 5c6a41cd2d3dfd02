"""timm's names of ops: an op together with the way in which a level becomes its argument.

`PosterizeIncreasing` is Posterize with another map of the level, `Desaturate` is Color with a factor below 1. So a
policy draws kinds and levels, and what is planned are ops (`Op`) and arguments. Source: `timm.data.auto_augment`
(`LEVEL_TO_ARG`, `NAME_TO_OP`, `rand_augment_choices`).
"""

from enum import IntEnum

import numpy as np

from rsbdali.plan.randaugment import LEVEL_MAX, MOST_LAYERS, NUM_OPS, Op, RandAugmentPolicy, level_to_arg


class Kind(IntEnum):
    """The first 15 have the numbers of their ops."""

    NONE = Op.NONE
    AUTO_CONTRAST = Op.AUTO_CONTRAST
    EQUALIZE = Op.EQUALIZE
    INVERT = Op.INVERT
    ROTATE = Op.ROTATE
    POSTERIZE = Op.POSTERIZE
    SOLARIZE = Op.SOLARIZE
    SOLARIZE_ADD = Op.SOLARIZE_ADD
    COLOR = Op.COLOR
    CONTRAST = Op.CONTRAST
    BRIGHTNESS = Op.BRIGHTNESS
    SHARPNESS = Op.SHARPNESS
    SHEAR_X = Op.SHEAR_X
    SHEAR_Y = Op.SHEAR_Y
    TRANSLATE_X_REL = Op.TRANSLATE_X
    TRANSLATE_Y_REL = Op.TRANSLATE_Y
    POSTERIZE_INCREASING = 15
    POSTERIZE_ORIGINAL = 16
    SOLARIZE_INCREASING = 17
    COLOR_INCREASING = 18
    CONTRAST_INCREASING = 19
    BRIGHTNESS_INCREASING = 20
    SHARPNESS_INCREASING = 21
    DESATURATE = 22
    GAUSSIAN_BLUR = 23
    GAUSSIAN_BLUR_RAND = 24


ALL = tuple(Kind(op) for op in range(NUM_OPS))
INCREASING = {
    Kind.POSTERIZE: Kind.POSTERIZE_INCREASING,
    Kind.SOLARIZE: Kind.SOLARIZE_INCREASING,
    Kind.COLOR: Kind.COLOR_INCREASING,
    Kind.CONTRAST: Kind.CONTRAST_INCREASING,
    Kind.BRIGHTNESS: Kind.BRIGHTNESS_INCREASING,
    Kind.SHARPNESS: Kind.SHARPNESS_INCREASING,
}
BLURS = frozenset({Kind.GAUSSIAN_BLUR, Kind.GAUSSIAN_BLUR_RAND})

_OTHERS = {
    **{increasing: Op(kind) for kind, increasing in INCREASING.items()},
    Kind.POSTERIZE_ORIGINAL: Op.POSTERIZE,
    Kind.DESATURATE: Op.COLOR,
    Kind.GAUSSIAN_BLUR: Op.GAUSSIAN_BLUR,
    Kind.GAUSSIAN_BLUR_RAND: Op.GAUSSIAN_BLUR,
}
# by kind; the last is what NONE, -1, finds
OP_OF_KIND = np.array([*ALL, *(_OTHERS[Kind(kind)] for kind in range(NUM_OPS, len(Kind) - 1)), Op.NONE], np.int8)

WEIGHTS: dict[str, dict[Kind, float]] = {
    "weights": {
        Kind.ROTATE: 3,
        Kind.SHEAR_X: 2,
        Kind.SHEAR_Y: 2,
        Kind.TRANSLATE_X_REL: 1,
        Kind.TRANSLATE_Y_REL: 1,
        Kind.COLOR_INCREASING: 0.25,
        Kind.SHARPNESS_INCREASING: 0.25,
        Kind.AUTO_CONTRAST: 0.25,
        Kind.SOLARIZE_INCREASING: 0.05,
        Kind.SOLARIZE_ADD: 0.05,
        Kind.CONTRAST_INCREASING: 0.05,
        Kind.BRIGHTNESS_INCREASING: 0.05,
        Kind.EQUALIZE: 0.05,
        Kind.POSTERIZE_INCREASING: 0.05,
        Kind.INVERT: 0.05,
    },
    "3aw": {
        Kind.SOLARIZE_INCREASING: 6,
        Kind.DESATURATE: 6,
        Kind.GAUSSIAN_BLUR: 6,
        Kind.ROTATE: 3,
        Kind.SHEAR_X: 2,
        Kind.SHEAR_Y: 2,
        Kind.POSTERIZE_INCREASING: 1,
        Kind.AUTO_CONTRAST: 1,
        Kind.COLOR_INCREASING: 1,
        Kind.SHARPNESS_INCREASING: 1,
        Kind.CONTRAST_INCREASING: 1,
        Kind.BRIGHTNESS_INCREASING: 1,
        Kind.EQUALIZE: 1,
        Kind.INVERT: 1,
    },
}
assert {name: len(weights) for name, weights in WEIGHTS.items()} == MOST_LAYERS


def transform_set(policy: RandAugmentPolicy) -> tuple[tuple[Kind, ...], np.ndarray | None]:
    """The kinds that RandAugment draws from, and their weights: float64, shape (K,), or None where all weigh the same.

    Source: timm's `rand_augment_choices`. `inc` counts for the set of all ops only.
    """
    if policy.transforms in WEIGHTS:
        weights = WEIGHTS[policy.transforms]
        return tuple(weights), np.array(list(weights.values()))
    if policy.transforms == "3a":
        return (Kind.SOLARIZE_INCREASING, Kind.DESATURATE, Kind.GAUSSIAN_BLUR), None
    return tuple(INCREASING.get(kind, kind) for kind in ALL) if policy.increasing else ALL, None


def kind_to_arg(kind_N: np.ndarray, level_N: np.ndarray, negate_N: np.ndarray, uniform_N: np.ndarray) -> np.ndarray:
    """Turn levels into op arguments, by timm's formulas to the last bit.

    Args:
        kind_N: int, values of `Kind`.
        level_N: float64, already clipped to 0..magnitude_max.
        negate_N: bool, whether a signed op takes the minus sign.
        uniform_N: float64 in 0..1, what `GAUSSIAN_BLUR_RAND` draws its radius by.

    Returns:
        float64 of the same shape: as `level_to_arg`; the radius in pixels for blurs, 0.1 to 2.
    """
    op_N, share_N = OP_OF_KIND[kind_N], level_N / LEVEL_MAX
    increasing_N = np.isin(kind_N, list(INCREASING.values()))
    arg_N = np.where(
        increasing_N,
        level_to_arg(op_N, level_N, negate_N, increasing=True),
        level_to_arg(op_N, level_N, negate_N, increasing=False),
    )
    desaturated_N = np.clip(0.5 + (1.0 - 0.5) * share_N, 0.5, 1.0)
    others = {
        Kind.POSTERIZE_ORIGINAL: np.trunc(share_N * 4) + 4,
        Kind.DESATURATE: np.clip(1.0 - desaturated_N, 0.0, 1.0),
        Kind.GAUSSIAN_BLUR: np.clip(0.1 + (2.0 - 0.1) * share_N, 0.1, 2.0),
        Kind.GAUSSIAN_BLUR_RAND: 0.1 + (2.0 * np.clip(share_N, 0.0, 1.0) - 0.1) * uniform_N,
    }
    for kind, value_N in others.items():
        np.copyto(arg_N, value_N, where=kind_N == kind)
    return arg_N
