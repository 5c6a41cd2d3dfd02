"""RandAugment as timm means it: the op table and the map from level to argument.

Sources: RandAugment (Cubuk et al. 2019, arXiv 1909.13719); `timm.data.auto_augment` (`rand_augment_transform`,
`LEVEL_TO_ARG`). Nothing here touches a pixel: `draws.py` draws ids and arguments, `pipelines/` carries them out.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from rsbdali.bounded import shown
from rsbdali.errors import RecipeError

BILINEAR, BICUBIC = 0, 1  # codes of resize and warp filters
LEVEL_MAX = 10.0
MOST = 100  # of n, each a pass over every image, and of m and mmax: a typing error must not look like a run that hangs
FILL_RGB = (124, 116, 104)  # timm: the ImageNet mean in 8 bits, min(255, round(255 * mean))


class Op(IntEnum):
    """RandAugment's 15 ops in timm's order, and those of other transforms; NONE is a layer that does nothing.

    The argument of those behind the 15: none (flip), pixels, the blur's radius and the filter's sigma in pixels, and a
    turn of the hue as a share of the circle.
    """

    NONE = -1
    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    COLOR = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14
    FLIP_Y = 15  # upside down
    TRANSLATE_X_ABS = 16
    TRANSLATE_Y_ABS = 17
    GAUSSIAN_BLUR = 18  # Pillow's, three box blurs
    GAUSSIAN_FILTER = 19  # torchvision's, 23 taps an axis
    HUE = 20


NUM_OPS = 15
GEOMETRIC = frozenset({Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y})
WARPS = GEOMETRIC | {Op.FLIP_Y, Op.TRANSLATE_X_ABS, Op.TRANSLATE_Y_ABS}
HOST_OPS = frozenset({Op.GAUSSIAN_BLUR, Op.GAUSSIAN_FILTER, Op.HUE})  # of which there is no kernel

# timm's `t`: other sets of ops than all 15. Those with weights are drawn without replacement, so n has a limit
TRANSFORM_SETS = ("", "weights", "3a", "3aw")
MOST_LAYERS = {"weights": 15, "3aw": 14}


@dataclass(frozen=True, kw_only=True)
class RandAugmentPolicy:
    """A parsed `aa` string such as `rand-m6-mstd0.5-inc1`.

    Attributes:
        magnitude: mean level M, in 0..10 (`m`).
        num_layers: ops drawn per image, with replacement (`n`).
        prob: probability that a drawn op is applied (`p`).
        magnitude_std: standard deviation of the level; inf means uniform in 0..M (`mstd`, above 100).
        magnitude_max: upper bound of the level (`mmax`).
        increasing: severity grows with the level for every op (`inc`).
        transforms: the set of ops (`t`): '' is all 15, see `kinds.transform_set`.
    """

    magnitude: float = LEVEL_MAX
    num_layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = LEVEL_MAX
    increasing: bool = False
    transforms: str = ""

    @classmethod
    def parse(cls, aa: str | None) -> "RandAugmentPolicy | None":
        """Read timm's config string; None, '' and 'none' mean no RandAugment.

        Raises:
            RecipeError: another policy than `rand`, an unknown section, or a value out of range.
        """
        if aa is None or aa in ("", "none"):
            return None
        head, *sections = aa.split("-")
        if head != "rand":
            raise RecipeError(f"aa={shown(aa)}: expected RandAugment here, for example rand-m6-mstd0.5-inc1, or none")
        values: dict[str, float] = {}
        transforms = ""
        for section in sections:
            if section[:1] == "t":
                transforms = _transform_set(aa, section[1:])
                continue
            match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|\d*\.\d+|inf)", section)
            if match is None:
                raise RecipeError(
                    f"aa={shown(aa)}: section {shown(section)} is not one of mN, nN, pP, mstdS, mmaxN, inc0|1, tSET"
                )
            values[match[1]] = float(match[2])
            if values[match[1]] > MOST and match[1] != "mstd":  # timm: above 100 means infinity there
                raise RecipeError(f"aa={shown(aa)}: section {shown(section)} is over {MOST}")
        std = values.get("mstd", 0.0)
        policy = cls(
            magnitude=int(values.get("m", LEVEL_MAX)),
            num_layers=int(values.get("n", 2)),
            prob=values.get("p", 0.5),
            magnitude_std=np.inf if std > 100 else std,
            magnitude_max=int(values.get("mmax", LEVEL_MAX)) or LEVEL_MAX,
            increasing=bool(int(values.get("inc", 0))),
            transforms=transforms,
        )
        if not 0 <= policy.prob <= 1 or policy.num_layers < 1:
            raise RecipeError(f"aa={shown(aa)}: p must be in 0..1 and n at least 1")
        if policy.num_layers > MOST_LAYERS.get(transforms, MOST):
            most = MOST_LAYERS[transforms]
            raise RecipeError(f"aa={shown(aa)}: t{transforms} draws without replacement, so n is at most {most}")
        return policy


def _transform_set(aa: str, name: str) -> str:
    """Timm takes an unknown name for all ops."""
    if name not in TRANSFORM_SETS[1:]:
        raise RecipeError(f"aa={shown(aa)}: section {shown('t' + name)} is not one of tweights, t3a, t3aw")
    return name


def level_to_arg(op_N: np.ndarray, level_N: np.ndarray, negate_N: np.ndarray, *, increasing: bool) -> np.ndarray:
    """Turn levels into op arguments, by timm's formulas to the last bit (`LEVEL_TO_ARG`).

    Args:
        op_N: int, values of `Op`.
        level_N: float64, already clipped to 0..magnitude_max.
        negate_N: bool, whether a signed op takes the minus sign.
        increasing: timm's `inc`.

    Returns:
        float64 of the same shape: degrees (rotate), bits kept (posterize), threshold (solarize), addend (solarize
        add), enhancement factor, shear, or translation as a share of the side; 0 for ops without an argument.
    """
    share_N = level_N / LEVEL_MAX
    sign_N = np.where(negate_N, -1.0, 1.0)
    posterize_N = np.trunc(share_N * 4)
    solarize_N = np.minimum(256, np.trunc(share_N * 256))
    if increasing:
        posterize_N, solarize_N = 4 - posterize_N, 256 - solarize_N
        enhance_N = np.maximum(0.1, 1.0 + sign_N * (share_N * 0.9))
    else:
        enhance_N = share_N * 1.8 + 0.1
    shear_N, translate_N = sign_N * (share_N * 0.3), sign_N * (share_N * 0.45)
    by_op = {
        Op.ROTATE: sign_N * (share_N * 30.0),
        Op.POSTERIZE: posterize_N,
        Op.SOLARIZE: solarize_N,
        Op.SOLARIZE_ADD: np.minimum(128, np.trunc(share_N * 110)),
        **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), enhance_N),
        **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), shear_N),
        **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), translate_N),
    }
    arg_N = np.zeros(level_N.shape)
    for op, value_N in by_op.items():
        np.copyto(arg_N, value_N, where=op_N == op)
    return arg_N
