"""Plans: the same for every world size, within bounds, and by timm's algorithms."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.transforms import RandomResizedCropAndInterpolation

from rsbdali.errors import RecipeError
from rsbdali.plan.draws import Stream, draw_boxes, draw_crops
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.recipe import Recipe

ARRAYS = [name for name in BatchPlan.__dataclass_fields__ if "_N" in name]


def make_planner(world_size: int = 1, n: int = 1000, **overrides: object) -> Planner:
    rng = np.random.default_rng(0)
    width_N, height_N = rng.integers(1, 700, (2, n)).astype(np.int32)
    recipe = Recipe.load("a3", {"global_batch_size": 64, **overrides})
    return Planner(width_N, height_N, recipe, world_size)


@pytest.mark.parametrize(
    "overrides", [{}, {"aug_repeats": 3}, {"aug_repeats": 3, "aug_repeats_mode": "decode_once"}, {"mixup_mode": "pair"}]
)
def test_same_plan_whatever_the_world_size(overrides: dict[str, object]) -> None:
    planners = {w: make_planner(w, **overrides) for w in (1, 2, 3, 4)}
    for epoch, step in ((0, 0), (3, 7)):
        for group in range(4):
            plans = [p.group(epoch, step, group) for p in planners.values()]
            for name in ARRAYS:
                for other in plans[1:]:
                    np.testing.assert_array_equal(getattr(plans[0], name), getattr(other, name))


def test_plans_do_not_depend_on_history() -> None:
    forward, jump = make_planner(), make_planner()
    for step in range(5):
        expected = forward.batch(1, step)
    np.testing.assert_array_equal(jump.batch(1, 4).crop_N4, expected.crop_N4)


def test_steps_and_seeds_differ() -> None:
    planner = make_planner()
    other = make_planner(seed=1)
    crops = [planner.batch(0, 0), planner.batch(0, 1), planner.batch(1, 0), other.batch(0, 0)]
    assert len({c.crop_N4.tobytes() for c in crops}) == 4


def test_changing_the_ops_leaves_crops_and_mix_alone() -> None:
    one, two = make_planner().batch(0, 0), make_planner(aa="rand-m9-n3-mstd1.0").batch(0, 0)
    for name in ("sample_N", "crop_N4", "flip_N", "interp_N", "lam_N", "box_N4"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_every_image_once_an_epoch() -> None:
    planner = make_planner(n=640)
    seen = np.concatenate([planner.batch(2, s).sample_N for s in range(planner.steps_per_epoch)])
    assert sorted(seen) == list(range(640))


@given(epoch=st.integers(0, 500), step=st.integers(0, 14), world_size=st.sampled_from([1, 2, 4]))
def test_bounds_and_partners(epoch: int, step: int, world_size: int) -> None:
    planner = make_planner(world_size)
    batch = planner.batch(epoch, step)
    y, x, h, w = batch.crop_N4.T
    height_N, width_N = planner.height_N[batch.sample_N], planner.width_N[batch.sample_N]
    assert (h > 0).all()
    assert (w > 0).all()
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + h <= height_N).all()
    assert (x + w <= width_N).all()
    assert ((batch.lam_N >= 0) & (batch.lam_N <= 1)).all()
    group = planner.group(epoch, step, 1)
    assert group.partner_N.tolist() == list(range(15, -1, -1))
    assert len(set(group.lam_N.tolist())) == 1  # one λ a group, as timm draws one a GPU
    assert group.position_N.tolist() == list(range(1, 64, 4))


@pytest.mark.parametrize(("mode", "distinct"), [("batch", 4), ("pair", 32), ("elem", 64)])
def test_mixup_modes(mode: str, distinct: int) -> None:
    planner = make_planner(mixup_mode=mode, cutmix=0.0, mixup=1.0)
    assert len(set(planner.batch(0, 0).lam_N.tolist())) == distinct
    group = planner.group(0, 0, 2)
    if mode == "pair":
        np.testing.assert_array_equal(group.lam_N, group.lam_N[group.partner_N])


def test_mixup_off_epoch() -> None:
    planner = make_planner(mixup_off_epoch=5)
    assert (planner.batch(4, 0).lam_N < 1).any()
    assert (planner.batch(5, 0).lam_N == 1).all()
    assert (planner.batch(5, 0).box_N4 == 0).all()


def _replay(monkeypatch: pytest.MonkeyPatch, uniforms: np.ndarray) -> None:
    """Let timm's `random` module hand out ours: uniform(a, b) and randint(a, b) from a queue of (area, ratio, y, x)."""
    queue = iter(uniforms)
    state: dict[str, np.ndarray] = {}

    def uniform(low: float, high: float) -> float:
        if "try" not in state or state["used"] == 2:
            state["try"], state["used"] = next(queue), 0
        state["used"] += 1
        return low + (high - low) * float(state["try"][state["used"] - 1])

    def randint(low: int, high: int) -> int:
        state["int"] = state.get("int", 1) + 1
        return low + math.floor(float(state["try"][2 + state["int"] % 2]) * (high - low + 1))

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(random, "randint", randint)


def test_parity_crops_equal_timms_get_params_given_the_same_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(500, 375), (37, 640), (640, 37), (8, 8), (200, 50), (333, 500), (64, 47)] * 30
    width_N, height_N = (np.array(side) for side in zip(*sizes, strict=True))
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = draw_crops(np.random.default_rng(5), width_N, height_N, scale, ratio)
    u_4NT = np.random.default_rng(5).random((4, len(sizes), 10))
    for row, size in enumerate(sizes):
        _replay(monkeypatch, u_4NT[:, row].T)
        expected = RandomResizedCropAndInterpolation.get_params(Image.new("RGB", size), scale, ratio)
        assert tuple(ours[row]) == expected


def test_parity_boxes_equal_timms_given_the_same_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    lam_K = np.random.default_rng(1).random(200)
    box_K4, fixed_K = draw_boxes(np.random.default_rng(2), lam_K, (160, 128))
    rng = np.random.default_rng(2)
    cy_K, cx_K = rng.integers(160, size=200), rng.integers(128, size=200)
    for k, lam in enumerate(lam_K):
        centres = iter((cy_K[k], cx_K[k]))
        monkeypatch.setattr(np.random, "randint", lambda *_, centres=centres, **__: next(centres))
        (y0, y1, x0, x1), expected = cutmix_bbox_and_lam((3, 160, 128), lam)
        assert fixed_K[k] == expected
        assert box_K4[k].tolist() == ([y0, y1, x0, x1] if expected < 1 else [0, 0, 0, 0])


def test_spare_is_the_same_again_and_touches_one_row() -> None:
    planner = make_planner()
    plan = planner.group(0, 3, 2)
    one, again, other = (
        planner.replacement(plan, 5, 0),
        planner.replacement(plan, 5, 0),
        planner.replacement(plan, 5, 1),
    )
    assert one.sample_N[5] == again.sample_N[5]
    assert one.sample_N[5] != other.sample_N[5]
    keep = np.arange(16) != 5
    np.testing.assert_array_equal(one.crop_N4[keep], plan.crop_N4[keep])
    assert one.crop_N4[5, 0] + one.crop_N4[5, 2] <= planner.height_N[one.sample_N[5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 10}, "larger than an epoch of 10 images"),
        ({"global_batch_size": 66}, "no multiple of the 4 mix groups"),
    ],
)
def test_what_cannot_be_planned(options: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_planner(**options)


def test_more_ranks_than_groups() -> None:
    planner = make_planner(world_size=8)
    assert (planner.groups, planner.group_rows) == (8, 8)


def test_streams_are_distinct() -> None:
    values = [int(s) for s in Stream]
    assert len(set(values)) == len(values)
