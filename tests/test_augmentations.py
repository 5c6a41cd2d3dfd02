"""The augmentations of timm's `create_transform`, and TrivialAugment: tables, arguments, pixels, draws against theirs.

| augmentation | oracle | bound |
|---|---|---|
| AutoAugment, 3-Augment, sets of RandAugment: tables, weights, arguments | timm.data.auto_augment | exact |
| their ops, blur included | timm's functions on Pillow | exact |
| TrivialAugment: the whole space | torchvision's `_apply_op` | exact |
| color jitter with hue, grayscale, blur, upside-down flip | torchvision's functions on Pillow | exact |
| keep-ratio crops, squash, border | timm's transforms | exact (DALI: as its resize) |
| draws | frequencies and distributions of timm's and torchvision's | χ², KS |

Kernels of the same ops: tests/test_randaugment_kernels.py.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_aa
from timm.data import transforms as timm_transforms
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as F

from helpers.common import CPU
from rsbdali.data.index import ImageIndex
from rsbdali.distributed.world import World
from rsbdali.errors import RecipeError
from rsbdali.loader import decode_mode
from rsbdali.loader.eval import EvalLoader
from rsbdali.pipelines.eval import EvalExecutor
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.plan.augmentation import Layers, cpu_only, draw_layers, fill_color, parse_policy
from rsbdali.plan.autoaugment import TABLES
from rsbdali.plan.draws import Stream, generator
from rsbdali.plan.kinds import OP_OF_KIND, WEIGHTS, Kind, kind_to_arg, transform_set
from rsbdali.plan.planner import Planner
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, Op, RandAugmentPolicy
from rsbdali.plan.trivialaugment import ARG_KB2, BINS, OP_K
from rsbdali.recipe import Recipe

FILTERS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}


def timm_name(kind: Kind) -> str:
    """`POSTERIZE_INCREASING` as timm writes it."""
    return "".join(word.capitalize() for word in kind.name.split("_"))


KINDS = {timm_name(kind): kind for kind in Kind if kind != Kind.NONE}


def augmented(image_HWC: np.ndarray, op: int, arg: float, interp: int = 0, fill: Any = (0, 0, 0)) -> np.ndarray:
    result_HWC = image_HWC.copy()
    find_augment()(result_HWC, [op], [arg], [interp], fill)
    return result_HWC


def drawn(rows: int, **values: Any) -> Layers:
    recipe = Recipe.from_dict({"img_size": 32, **values})
    return draw_layers(recipe, parse_policy(recipe.aa), rows, lambda stream: generator(3, stream, 0, 0))


# ---------------------------------------------------------------- tables and arguments


@pytest.mark.parametrize("name", TABLES)
def test_autoaugment_tables_are_timms(name: str) -> None:
    theirs = [[(op.name, op.prob, op.magnitude) for op in sub] for sub in timm_aa.auto_augment_policy(name)]
    assert [[(timm_name(kind), prob, level) for kind, prob, level in sub] for sub in TABLES[name]] == theirs


@pytest.mark.parametrize(
    "aa", ["rand-m9", "rand-inc1", "rand-tweights", "rand-n1-t3a", "rand-inc1-t3a", "rand-m7-n1-p1-t3aw"]
)
def test_randaugment_sets_are_timms(aa: str) -> None:
    theirs, policy = timm_aa.rand_augment_transform(aa, {}), parse_policy(aa)
    assert isinstance(policy, RandAugmentPolicy)
    kinds, weights = transform_set(policy)
    assert [timm_name(kind) for kind in kinds] == [op.name for op in theirs.ops]
    if weights is None:
        assert theirs.choice_weights is None
    else:
        np.testing.assert_array_equal(weights / weights.sum(), theirs.choice_weights)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_arguments_of_every_kind_are_timms_to_the_bit(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    op, level_fn = Op(OP_OF_KIND[kind]), timm_aa.LEVEL_TO_ARG[timm_name(kind)]
    for negate in (False, True):
        monkeypatch.setattr(timm_aa.random, "random", lambda negate=negate: 0.75 if negate else 0.25)
        for level in (0, 0.3, 3.3333, 5, 6.283, 7, 10):
            ours = kind_to_arg(np.array([kind]), np.array([level]), np.array([negate]), np.array([0.3]))[0]
            (expected,) = level_fn(level, {}) if level_fn else (0.0,)
            if kind == Kind.DESATURATE:  # timm's function turns it into Color's factor
                expected = min(1.0, max(0.0, 1.0 - expected))
            if kind == Kind.GAUSSIAN_BLUR_RAND:  # and draws a radius
                expected = 0.1 + (2.0 * expected - 0.1) * 0.3
            assert ours == expected, (level, negate)
    assert op >= 0


def test_trivialaugment_space_is_torchvisions(make_photo: Callable[..., Image.Image]) -> None:
    """Every op, magnitude and sign, on a picture: the matrices' last bits included."""
    space = autoaugment.TrivialAugmentWide()._augmentation_space(BINS)
    image = make_photo(67, 50, 1)
    image_HWC = np.asarray(image)
    for k, (name, (magnitudes, signed)) in enumerate(space.items()):
        for b in range(0, BINS, 6) if magnitudes.ndim else (7,):
            for sign in (0, 1) if signed else (0,):
                magnitude = float(magnitudes[b] if magnitudes.ndim else magnitudes) * (-1 if sign else 1)
                for interp, mode in ((BILINEAR, InterpolationMode.BILINEAR), (BICUBIC, InterpolationMode.BICUBIC)):
                    expected = autoaugment._apply_op(image, name, magnitude, interpolation=mode, fill=None)
                    op, arg = int(OP_K[k]), float(ARG_KB2[k, b, sign])
                    np.testing.assert_array_equal(
                        augmented(image_HWC, op, arg, interp), np.asarray(expected), err_msg=f"{name} {magnitude}"
                    )


# ---------------------------------------------------------------- ops


ORACLES: dict[str, tuple[Op, Sequence[float], Callable[[Image.Image, float], Image.Image]]] = {
    "flip upside down": (Op.FLIP_Y, [0], lambda image, _: F.vflip(image)),
    "grayscale": (Op.COLOR, [0], lambda image, _: F.rgb_to_grayscale(image, 3)),
    "desaturate": (Op.COLOR, [0, 0.3, 0.5], lambda image, arg: timm_aa.desaturate(image, 1 - arg)),
    "brightness": (Op.BRIGHTNESS, [0, 0.61, 1.4, 3], F.adjust_brightness),
    "contrast": (Op.CONTRAST, [0, 0.61, 1.4, 3], F.adjust_contrast),
    "saturation": (Op.COLOR, [0, 0.61, 1.4, 3], F.adjust_saturation),
    "hue": (Op.HUE, [-0.5, -0.11, -0.001, 0, 0.003, 0.2, 0.5], F.adjust_hue),
    "3-Augment's blur": (Op.GAUSSIAN_BLUR, [0.1, 0.77, 2], lambda image, arg: timm_aa.gaussian_blur(image, arg)),
    "blur": (Op.GAUSSIAN_FILTER, [0.1, 0.77, 2], lambda image, arg: F.gaussian_blur(image, 23, arg)),
    "translation by pixels": (
        Op.TRANSLATE_X_ABS,
        [-7, 0, 3],
        lambda image, arg: timm_aa.translate_x_abs(image, arg, fillcolor=(0, 0, 0), resample=FILTERS[BILINEAR]),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_parity_of_each_op_is_exact(name: str, make_photo: Callable[..., Image.Image]) -> None:
    op, args, oracle = ORACLES[name]
    for size in ((96, 64), (31, 47)):
        image = make_photo(*size, 3)
        for arg in args:
            expected_HWC = np.asarray(oracle(image, arg))
            np.testing.assert_array_equal(augmented(np.asarray(image), op, arg), expected_HWC, err_msg=f"{arg=}")


EVERYTHING = {
    "vflip": 0.5,
    "aa": "3a-mstd0.5",
    "color_jitter": [0.4, 0.3, 0.2, 0.1],
    "color_jitter_prob": 0.8,
    "grayscale_prob": 0.4,
    "gaussian_blur_prob": 0.5,
}


def test_layers_come_in_timms_order() -> None:
    op_NL = drawn(300, **EVERYTHING).op_NL
    per_layer = [set(op_N.tolist()) - {Op.NONE} for op_N in op_NL.T]
    jitter = {Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE}
    policy = {Op.SOLARIZE, Op.COLOR, Op.GAUSSIAN_BLUR}
    assert per_layer == [{Op.FLIP_Y}, policy, *[jitter] * 4, {Op.COLOR}, {Op.GAUSSIAN_FILTER}]
    assert drawn(5).op_NL.tolist() == [[Op.NONE]] * 5
    assert drawn(5, color_jitter=[0.4, 0, 0.2]).op_NL.shape == (5, 2)  # what is off costs no layer


def test_one_augmentation_more_leaves_the_others_as_they_were() -> None:
    fewer = drawn(50, aa="original", grayscale_prob=0.3)
    more = drawn(50, aa="original", grayscale_prob=0.3, vflip=0.4, gaussian_blur_prob=0.5)
    for a, b in zip(fewer, more, strict=True):
        np.testing.assert_array_equal(a, b[:, 1:-1])


def _by_oracles(image: Image.Image, layers: tuple[list[Any], ...], fill: tuple[int, ...]) -> Image.Image:
    """A row's layers by timm's and torchvision's own functions."""
    functions = {op: oracle for op, _, oracle in ORACLES.values() if op != Op.COLOR} | {Op.COLOR: F.adjust_saturation}
    names = dict(enumerate(timm_aa._RAND_INCREASING_TRANSFORMS))
    for op, arg, interp in zip(*layers, strict=True):
        if op in functions:
            image = functions[op](image, arg)
        elif op != Op.NONE:
            whole = int(arg) if op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD) else arg
            args = () if op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT) else (whole,)
            image = timm_aa.NAME_TO_OP[names[op]](image, *args, resample=FILTERS[interp], fillcolor=fill)
    return image


@pytest.mark.parametrize(
    "values",
    [EVERYTHING, *({"aa": aa} for aa in ("original-mstd0.5", "v0r", "rand-m9-n3-mstd0.5-inc1-tweights"))],
    ids=["everything", "original", "v0r", "weights"],
)
def test_parity_of_the_host_executor_is_exact(values: dict[str, Any], image_tree: Callable[..., Path]) -> None:
    """From the file to the uint8 batch, by the plan's numbers; warps fill with the given mean."""
    index = ImageIndex.scan(image_tree(classes=2, per_class=8))
    mean = [0.9, 0.5, 0.1]
    recipe = Recipe.from_dict({"img_size": 40, "global_batch_size": 16, "mix_groups": 1, "mean": mean, **values})
    plan = Planner(index.width_N, index.height_N, recipe).group(0, 0, 0)
    executor = HostExecutor(index, recipe, rows=16, device=CPU, num_threads=1)
    executor.submit(plan)
    images_NHWC = executor.collect().images_NHWC.numpy()
    executor.close()
    for row, sample in enumerate(plan.sample_N.tolist()):
        y, x, h, w = plan.crop_N4[row].tolist()
        mode = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)[plan.interp_N[row]]
        with Image.open(index.path(sample)) as file:
            image = F.resized_crop(file.convert("RGB"), y, x, h, w, [40, 40], mode)
        image = F.hflip(image) if plan.flip_N[row] else image
        layers = tuple(array[row].tolist() for array in (plan.op_NL, plan.arg_NL, plan.op_interp_NL))
        expected_HWC = np.asarray(_by_oracles(image, layers, (230, 128, 26)))
        np.testing.assert_array_equal(images_NHWC[row], expected_HWC, err_msg=f"{row=} {layers}")


# ---------------------------------------------------------------- crops


def test_parity_of_keep_ratio_crops_is_exact(image_tree: Callable[..., Path], monkeypatch: Any) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=8))
    values = {"img_size": [48, 40], "global_batch_size": 16, "mix_groups": 1, "train_crop_mode": "rkrc"}
    recipe = Recipe.from_dict({**values, "scale": [0.5, 1.0], "ratio": [0.5, 2.0], "hflip": 0.5})
    planner = Planner(index.width_N, index.height_N, recipe)
    plan = planner.group(0, 0, 0)
    executor = HostExecutor(index, recipe, rows=16, device=CPU, num_threads=1)
    executor.submit(plan)
    images_NHWC = executor.collect().images_NHWC.numpy()
    executor.close()
    u_4N = generator(recipe.seed, Stream.CROP, 0, 0).random((4, 16))
    crop = timm_transforms.CenterCropOrPad((48, 40), padding_mode="reflect")
    for row, sample in enumerate(plan.sample_N.tolist()):
        resize = timm_transforms.ResizeKeepRatio(
            (48, 40),
            interpolation="bicubic" if plan.interp_N[row] else "bilinear",
            random_scale_prob=0.5,
            random_scale_range=recipe.scale,
            random_scale_area=True,
            random_aspect_prob=0.5,
            random_aspect_range=recipe.ratio,
        )
        numbers = iter(_called(u_4N[:, row]))
        fake = SimpleNamespace(
            random=lambda numbers=numbers: next(numbers), uniform=lambda a, b, n=numbers: a + (b - a) * next(n)
        )
        monkeypatch.setattr(timm_transforms, "random", fake)
        with Image.open(index.path(sample)) as file:
            image = crop(resize(file.convert("RGB")))
        image = F.hflip(image) if plan.flip_N[row] else image
        np.testing.assert_array_equal(images_NHWC[row], np.asarray(image), err_msg=f"{row=}")
    assert (plan.offset_N2 < 0).any(), "some rows are padded"


def _called(u_4: np.ndarray) -> list[float]:
    """The numbers that timm asks for: a second one only where the first says so."""
    coins = [[coin, value] if coin < 0.5 else [coin] for coin, value in u_4.reshape(2, 2).tolist()]
    return [*coins[0], *coins[1]]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [32, [40, 28]])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_parity_of_evaluation_crops_is_exact(
    crop_mode: str, size: Any, crop_pct: float, image_tree: Callable[..., Path]
) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=4))
    recipe = Recipe.from_dict({"test_img_size": size, "crop_pct": crop_pct, "crop_mode": crop_mode})
    size = size if isinstance(size, int) else tuple(size)
    theirs = transforms_imagenet_eval(
        size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bicubic", use_prefetcher=True
    )
    loader = EvalLoader(index, recipe, device="cpu", batch_size=8, num_threads=1, dtype=torch.uint8)
    images = torch.cat([batch.images for batch in loader])
    loader.close()
    graph = EvalExecutor(index, recipe, rows=8, device=CPU, num_threads=1)
    graph.submit(np.arange(8))
    by_dali = graph.collect().images_NHWC.permute(0, 3, 1, 2)
    graph.close()
    for i in range(8):
        with Image.open(index.path(i)) as file:
            expected = theirs(file.convert("RGB"))
        assert torch.equal(images[i], expected), i
        # DALI's resize rounds otherwise: PARITY.md
        assert (by_dali[i].int() - expected.int()).abs().float().mean() < 1.5, i


# ---------------------------------------------------------------- draws


def chi2(observed: np.ndarray, expected: np.ndarray) -> float:
    """p of counts against expected shares."""
    return float(stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue)


def test_subpolicies_are_equally_frequent_and_applied_by_their_probabilities() -> None:
    rows = 30000
    layers = drawn(rows, aa="v0")
    expected: dict[tuple[int, int], float] = {}
    for first, second in TABLES["v0"]:
        for a, p in ((OP_OF_KIND[first[0]], first[1]), (Op.NONE, 1 - first[1])):
            for b, q in ((OP_OF_KIND[second[0]], second[1]), (Op.NONE, 1 - second[1])):
                expected[int(a), int(b)] = expected.get((int(a), int(b)), 0) + p * q / 25
    pairs = [tuple(pair) for pair in layers.op_NL.tolist()]
    likely = {pair: share for pair, share in expected.items() if share > 1e-3}
    assert set(pairs) <= {pair for pair, share in expected.items() if share > 0}
    assert chi2(np.array([pairs.count(pair) for pair in likely]), np.array(list(likely.values()))) > 1e-3


def test_weighted_sets_are_drawn_as_numpy_draws_without_replacement() -> None:
    rows, weights = 20000, np.array(list(WEIGHTS["3aw"].values()), float)
    policy = parse_policy("rand-n2-p1-t3aw")
    assert isinstance(policy, RandAugmentPolicy)
    layers = drawn(rows, aa="rand-m5-n2-p1-inc1-t3aw")
    ours = np.array([[np.sum(layers.op_NL[:, k] == op) for op in range(int(Op.HUE))] for k in range(2)])
    random_state = np.random.RandomState(0)
    theirs_N2 = np.array(
        [random_state.choice(len(weights), 2, replace=False, p=weights / weights.sum()) for _ in range(rows)]
    )
    ops = OP_OF_KIND[np.array(list(WEIGHTS["3aw"]))]
    theirs = np.array([[np.sum(ops[theirs_N2[:, k]] == op) for op in range(int(Op.HUE))] for k in range(2)])
    seen = theirs[0] > 0
    for k in range(2):
        assert stats.chi2_contingency(np.stack([ours[k][seen], theirs[k][seen]])).pvalue > 1e-3
    # no kind twice: Desaturate and ColorIncreasing are both Color, all others one op each
    twice_N = layers.op_NL[:, 0] == layers.op_NL[:, 1]
    assert set(layers.op_NL[twice_N, 0].tolist()) <= {Op.COLOR}


def test_jitter_is_drawn_as_torchvision_draws_it() -> None:
    rows = 12000
    op_NL, arg_NL, _ = drawn(rows, color_jitter=[0.4, 1.2, 0.1, 0.3], color_jitter_prob=0.5)
    on_N = (op_NL != Op.NONE).all(axis=1)
    assert ((op_NL == Op.NONE).all(axis=1) | on_N).all()
    assert abs(on_N.mean() - 0.5) < 0.02
    orders = [tuple(ops) for ops in op_NL[on_N].tolist()]
    counts = [orders.count(order) for order in permutations((Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE))]
    assert chi2(np.array(counts), np.ones(24)) > 1e-3
    bounds = {Op.BRIGHTNESS: (0.6, 1.4), Op.CONTRAST: (0, 2.2), Op.COLOR: (0.9, 1.1), Op.HUE: (-0.3, 0.3)}
    for op, (low, high) in bounds.items():
        assert stats.kstest(arg_NL[op_NL == op], stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("key", "op"), [("vflip", Op.FLIP_Y), ("grayscale_prob", Op.COLOR)])
def test_shares_are_the_probability(key: str, op: Op) -> None:
    assert abs((drawn(20000, **{key: 0.2}).op_NL == op).mean() - 0.2) < 0.01
    assert (drawn(50, **{key: 1.0}).op_NL == op).all()


def test_trivialaugment_is_uniform_over_ops_bins_and_signs() -> None:
    op_N1, arg_N1, _ = drawn(28000, aa="trivial")
    counts = [int((op_N1 == op).sum()) for op in OP_K]
    assert chi2(np.array(counts), np.ones(14)) > 1e-3
    rotated = arg_N1[op_N1 == Op.ROTATE]
    assert stats.kstest(rotated, stats.uniform(-135, 270).cdf).statistic < 0.05  # in steps
    blurs = drawn(4000, gaussian_blur_prob=1.0)
    assert stats.kstest(blurs.arg_NL[:, 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("aa", "message"),
    [
        ("augmix-m5-w4", "AugMix blends three chains"),
        ("3aw", "rand-m9-n1-p1-inc1-t3aw"),
        ("v1", "expected rand-…, v0, v0r, original, originalr, 3a, trivial or none"),
        ("original-m5", "section 'm5' is not mstdS"),
        ("trivial-m3", "expected rand-"),
        ("rand-w0", "section 'w0' is not one of"),
    ],
)
def test_other_policies_are_refused_by_name(aa: str, message: str) -> None:
    with pytest.raises(RecipeError, match="aa=") as refused:
        parse_policy(aa)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"aa": "3a"}, "aa=3a"),
        ({"aa": "rand-n1-t3aw"}, "aa=rand-n1-t3aw"),
        ({"color_jitter": [0.4, 0.4, 0.4, 0.1]}, "color_jitter=[0.4, 0.4, 0.4, 0.1] (its hue)"),
        ({"gaussian_blur_prob": 0.1}, "gaussian_blur_prob=0.1"),
        ({"train_crop_mode": "rkrc"}, "train_crop_mode=rkrc"),
    ],
)
def test_what_has_no_kernel_is_refused_unless_the_cpu_makes_it(
    values: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_mode, "missing_compiler", lambda: None)
    recipe, index, gpu = Recipe.from_dict(values), cast(ImageIndex, SimpleNamespace()), torch.device("cuda")
    for decode, device in (("graph", CPU), ("dali-exact", CPU), ("gpu", gpu), ("gpu-roi", gpu)):
        with pytest.raises(RecipeError, match="is made on the CPU only: use decode=cpu") as refused:
            decode_mode.create_executor(decode, index, recipe, rows=1, device=device, num_threads=1)
        assert str(refused.value).startswith(named)
    assert decode_mode.choose_decode("auto", index, recipe, device=gpu, num_threads=1, world=World()) == "cpu"


def test_what_has_kernels_needs_no_cpu() -> None:
    for values in ({"aa": "original"}, {"aa": "trivial"}, {"color_jitter": 0.4, "grayscale_prob": 0.1, "vflip": 0.5}):
        assert cpu_only(Recipe.from_dict(values)) is None


def test_jitter_is_off_beside_a_policy_other_than_3_augment_as_in_timm() -> None:
    assert drawn(9, color_jitter=0.4, aa="rand-m9-n1").op_NL.shape == (9, 1)
    assert drawn(9, color_jitter=0.4, aa="3a").op_NL.shape == (9, 4)
    assert drawn(9, color_jitter=0.4).op_NL.shape == (9, 3)


def test_fill_is_the_mean_and_black_for_trivialaugment() -> None:
    assert fill_color(Recipe()) == (124, 116, 104)
    assert fill_color(Recipe(mean=(1.0, 0.5, 0.0))) == (255, 128, 0)
    assert fill_color(Recipe(aa="trivial")) == (0, 0, 0)


def test_blur_of_tiny_images_and_too_much_hue_are_refused() -> None:
    with pytest.raises(RecipeError, match="gaussian_blur_prob needs an img_size of at least 12"):
        drawn(1, img_size=11, gaussian_blur_prob=1.0)
    with pytest.raises(RecipeError, match=r"the fourth, of the hue, is at most 0\.5"):
        Recipe.from_dict({"color_jitter": [0.1, 0.1, 0.1, 0.6]})
