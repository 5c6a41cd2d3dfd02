"""Our draws against timm's own draws: frequencies by chi-square, continuous values by Kolmogorov-Smirnov.

Seeds are fixed, so a run is deterministic; P_MIN is far below what chance gives at these seeds and far above what a
wrong magnitude gives (`test_a_wrong_magnitude_is_caught` plants one).
"""

import random
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from timm.data import auto_augment as timm_aa
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.transforms import RandomResizedCropAndInterpolation

from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import BICUBIC, GEOMETRIC, NUM_OPS, Op
from rsbdali.recipe import Recipe

P_MIN = 1e-3
DRAWS = 20_000
SIGNED = {*GEOMETRIC, Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS}


def same_distribution(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(ks_2samp(ours, theirs).pvalue)


def same_frequencies(ours: np.ndarray, theirs: np.ndarray) -> float:
    values = np.union1d(ours, theirs)
    table = [[np.sum(draws == v) for v in values] for draws in (ours, theirs)]
    return float(chi2_contingency(table).pvalue)


def our_plans(**overrides: object) -> BatchPlan:
    """One plan of DRAWS rows, every row a mix group of its own."""
    recipe = Recipe.load("a3", {"global_batch_size": DRAWS, "mix_groups": DRAWS, "seed": 3, **overrides})
    width_N, height_N = np.full(DRAWS, 500, np.int32), np.full(DRAWS, 375, np.int32)
    return Planner(width_N, height_N, recipe).batch(0, 0)


def timm_randaugment(aa: str) -> dict[str, np.ndarray]:
    """What timm draws for DRAWS images: op ids (-1 not applied) per layer, arguments per op, and filters."""
    random.seed(0)
    np.random.seed(0)  # timm draws its ops from NumPy's global state
    transform = timm_aa.rand_augment_transform(aa, {"img_mean": (124, 116, 104)})
    seen: list[tuple[int, float]] = []
    filters: list[int] = []
    for op_id, op in enumerate(transform.ops):

        def record(img: Image.Image, *args: float, op_id: int = op_id, **kwargs: object) -> Image.Image:
            seen.append((op_id, args[0] if args else 0.0))
            filters.append(timm_aa._interpolation(kwargs))
            return img

        op.aug_fn = record
    image, applied = Image.new("RGB", (1, 1)), []
    for _ in range(DRAWS):
        before = len(seen)
        transform(image)
        applied.append(len(seen) - before)
    args: dict[int, list[float]] = defaultdict(list)
    for op_id, arg in seen:
        args[op_id].append(arg)
    return {
        "ops": np.array([op for op, _ in seen]),
        "applied": np.array(applied),
        "bicubic": np.array(filters) == Image.Resampling.BICUBIC,
        **{f"arg{op}": np.array(values) for op, values in args.items()},
    }


def argument_p_values(plan: BatchPlan, theirs: dict[str, np.ndarray]) -> dict[Op, float]:
    """p of equal argument distributions, per op that has an argument."""
    with_argument = [Op(op) for op in range(NUM_OPS) if op not in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT)]
    p_values = {}
    for op in with_argument:
        ours, expected = plan.arg_NL[plan.op_NL == op], theirs[f"arg{int(op)}"]
        # magnitudes only: the two signs apart (`test_parity_signs`), the test has more power on one hump than on two
        middle = 1.0 if op in (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS) else 0.0
        ours, expected = np.abs(ours - middle), np.abs(expected - middle)
        whole = op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)
        p_values[op] = same_frequencies(ours, expected) if whole else same_distribution(ours, expected)
    return p_values


@pytest.mark.parametrize("aa", ["rand-m6-mstd0.5-inc1", "rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd101-p0.7"])
def test_parity_randaugment(aa: str) -> None:
    plan, theirs = our_plans(aa=aa), timm_randaugment(aa)
    applied_NL = plan.op_NL >= 0
    assert same_frequencies(plan.op_NL[applied_NL], theirs["ops"]) > P_MIN
    assert same_frequencies(applied_NL.sum(axis=1), theirs["applied"]) > P_MIN
    assert same_frequencies(plan.op_interp_NL[applied_NL] == BICUBIC, theirs["bicubic"]) > P_MIN
    for op, p in argument_p_values(plan, theirs).items():
        assert p > P_MIN, op


def test_parity_signs() -> None:
    plan = our_plans()
    theirs = timm_randaugment("rand-m6-mstd0.5-inc1")
    for op in SIGNED:
        middle = 0.0 if op in GEOMETRIC else 1.0
        ours = plan.arg_NL[plan.op_NL == op] > middle
        assert same_frequencies(ours, theirs[f"arg{int(op)}"] > middle) > P_MIN, op


def test_a_wrong_magnitude_is_caught() -> None:
    """Planted: our draws at m7 against timm's at m6 must fail for every op whose argument moves with the level."""
    p_values = argument_p_values(our_plans(aa="rand-m7-mstd0.5-inc1"), timm_randaugment("rand-m6-mstd0.5-inc1"))
    assert all(p < P_MIN for p in p_values.values()), p_values


def test_a_wrong_spread_is_caught() -> None:
    p_values = argument_p_values(our_plans(aa="rand-m6-mstd0.7-inc1"), timm_randaugment("rand-m6-mstd0.5-inc1"))
    assert p_values[Op.ROTATE] < P_MIN
    assert p_values[Op.SHEAR_X] < P_MIN


def test_parity_crops() -> None:
    random.seed(1)
    image, recipe = Image.new("RGB", (500, 375)), Recipe.load("a3")
    theirs = np.array(
        [RandomResizedCropAndInterpolation.get_params(image, recipe.scale, recipe.ratio) for _ in range(DRAWS)]
    )
    ours = our_plans().crop_N4
    for one, other in ((ours, theirs), (ours[:5000], theirs[5000:])):
        assert same_distribution(one[:, 2] * one[:, 3], other[:, 2] * other[:, 3]) > P_MIN
        assert same_distribution(one[:, 3] / one[:, 2], other[:, 3] / other[:, 2]) > P_MIN
        for column in range(4):
            assert same_distribution(one[:, column], other[:, column]) > P_MIN


def test_parity_flips_and_filters() -> None:
    random.seed(2)
    plan = our_plans()
    coins = np.array([random.random() < 0.5 for _ in range(DRAWS)])
    assert same_frequencies(plan.flip_N, coins) > P_MIN
    assert same_frequencies(plan.interp_N == BICUBIC, coins) > P_MIN
    assert our_plans(hflip=1.0).flip_N.all()


@pytest.mark.parametrize("alphas", [(0.1, 1.0), (0.2, 1.0), (0.2, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("prob", [1.0, 0.6])
def test_parity_mix(alphas: tuple[float, float], prob: float) -> None:
    np.random.seed(4)  # timm's Mixup draws from NumPy's global state
    mixup, cutmix = alphas
    timm_mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, prob=prob, switch_prob=0.5)
    lams, areas, centres = [], [], []
    for _ in range(DRAWS):
        lam, cut = timm_mix._params_per_batch()
        if cut:
            (y0, y1, x0, x1), lam = cutmix_bbox_and_lam((3, 160, 160), lam)
            if lam < 1:
                areas.append((y1 - y0) * (x1 - x0))
                centres.append((y0 + y1) / 2)
        lams.append(lam)
    plan = our_plans(mixup=mixup, cutmix=cutmix, mixup_prob=prob)
    y0, y1, x0, x1 = plan.box_N4.T
    boxed = y1 > y0
    assert same_distribution(plan.lam_N, np.array(lams, np.float32)) > P_MIN
    assert same_frequencies(boxed, np.arange(DRAWS) < len(areas)) > P_MIN
    if cutmix:
        assert same_distribution(((y1 - y0) * (x1 - x0))[boxed], np.array(areas)) > P_MIN
        assert same_distribution(((y0 + y1) / 2)[boxed], np.array(centres)) > P_MIN
    else:
        assert not boxed.any()
