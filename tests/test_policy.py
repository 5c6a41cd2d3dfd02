"""The RandAugment policy against timm's own formulas."""

import random

import numpy as np
import pytest
from timm.data import auto_augment as timm_aa

from rsbdali.errors import RecipeError
from rsbdali.plan.randaugment import NUM_OPS, Op, RandAugmentPolicy, level_to_arg

NAMES = {True: timm_aa._RAND_INCREASING_TRANSFORMS, False: timm_aa._RAND_TRANSFORMS}


@pytest.mark.parametrize("increasing", [True, False])
def test_parity_level_to_arg_is_timms_to_the_bit(increasing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.concatenate([np.linspace(0, 10, 1001), [2.5, 5.0, 7.5, 10.0]])
    for op, name in enumerate(NAMES[increasing]):
        function = timm_aa.LEVEL_TO_ARG[name]
        for negate, coin in ((True, 0.9), (False, 0.1)):
            monkeypatch.setattr(random, "random", lambda coin=coin: coin)
            expected = [function(level, {})[0] if function else 0.0 for level in levels]
            ours = level_to_arg(np.full(levels.shape, op), levels, np.full(levels.shape, negate), increasing=increasing)
            assert ours.tolist() == [float(e) for e in expected], (name, negate)


def test_op_names_are_in_timms_order() -> None:
    ours = [op.name.replace("_", "") for op in Op if 0 <= op < NUM_OPS]
    theirs = [n.removesuffix("Increasing").removesuffix("Rel").upper() for n in NAMES[True]]
    assert ours == theirs
    assert len(ours) == NUM_OPS


@pytest.mark.parametrize("aa", ["rand-m6-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-m7-p0.8-mmax9", "rand-mstd101"])
def test_parity_parse(aa: str) -> None:
    policy, theirs = RandAugmentPolicy.parse(aa), timm_aa.rand_augment_transform(aa, {})
    assert policy is not None
    op = theirs.ops[4]
    assert policy.num_layers == theirs.num_layers
    assert policy.magnitude == op.magnitude
    assert policy.prob == op.prob
    assert policy.magnitude_std == op.magnitude_std
    assert policy.magnitude_max == (op.magnitude_max or 10)
    assert policy.increasing == (op.name == "PosterizeIncreasing")


@pytest.mark.parametrize("aa", [None, "", "none"])
def test_no_policy(aa: str | None) -> None:
    assert RandAugmentPolicy.parse(aa) is None


@pytest.mark.parametrize(
    "aa",
    [
        "original-mstd0.5",
        "rand-x3",
        "rand-m6-tother",
        "rand-n16-tweights",
        "rand-p1.5",
        "rand-n0",
        "rand-m6-n5000",
        "rand-minf",
        "rand-m101",
        "rand-mmaxinf",
        "rand-m" + "9" * 500,
    ],
)
def test_what_is_not_understood_is_refused(aa: str) -> None:
    with pytest.raises(RecipeError, match="aa="):
        RandAugmentPolicy.parse(aa)


def test_a_hundred_layers_are_the_most() -> None:
    policy = RandAugmentPolicy.parse("rand-m6-n100-mstdinf")
    assert policy is not None
    assert (policy.num_layers, policy.magnitude_std) == (100, float("inf"))
    with pytest.raises(RecipeError, match="aa='rand-m6-n101': section 'n101' is over 100"):
        RandAugmentPolicy.parse("rand-m6-n101")
