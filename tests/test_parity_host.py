"""The host executor against Pillow and timm: every value of every image is the same, from the file to the batch.

RandAugment is tested in both of its ways: compiled loops, and Pillow. The resize alone: tests/test_host_resize.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, NAME_TO_OP

from rsbdali.data.index import ImageIndex
from rsbdali.pipelines.host import augment_pillow
from rsbdali.pipelines.host.augment import equals_pillow, find_augment
from rsbdali.pipelines.host.decode import WindowDecoder
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, FILL_RGB, GEOMETRIC, NUM_OPS, Op, level_to_arg
from rsbdali.recipe import Recipe

# timm's names in the order of `Op`; for a pair like Posterize/PosterizeIncreasing the op is the same function
TIMM_NAMES = _RAND_INCREASING_TRANSFORMS
FILTERS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
WAYS = ["compiled", "pillow"]


def augmented(
    image_HWC: np.ndarray, op_L: Sequence[int], arg_L: Sequence[float], interp_L: Sequence[int], way: str = "compiled"
) -> np.ndarray:
    """A copy of the image with the ops applied."""
    result_HWC = image_HWC.copy()
    augment = find_augment() if way == "compiled" else augment_pillow.augment
    augment(result_HWC, op_L, arg_L, interp_L)
    return result_HWC


def test_the_compiled_way_is_what_is_found() -> None:
    """Else the tests of it would compare Pillow with itself."""
    assert find_augment() is not augment_pillow.augment


def test_a_pillow_that_computes_otherwise_is_noticed() -> None:
    def off_by_one(image_HWC: np.ndarray, *layers: Sequence[float]) -> None:
        find_augment()(image_HWC, *layers)
        image_HWC[0, 0, 0] ^= 1

    assert equals_pillow(find_augment(), Op.ROTATE, 17.3, BICUBIC)
    assert not equals_pillow(off_by_one, Op.ROTATE, 17.3, BICUBIC)


def _timm_op(image: Image.Image, op: int, arg: float, interp: int) -> Image.Image:
    # timm hands over ints where its level function makes them
    args = () if op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT) else (arg,)
    if op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD):
        args = (int(arg),)
    return NAME_TO_OP[TIMM_NAMES[op]](image, *args, resample=FILTERS[interp], fillcolor=FILL_RGB)


def _timm_chain(image: Image.Image, plan: BatchPlan, row: int) -> Image.Image:
    for op, arg, interp in zip(plan.op_NL[row], plan.arg_NL[row], plan.op_interp_NL[row], strict=True):
        if op != Op.NONE:
            image = _timm_op(image, int(op), float(arg), int(interp))
    return image


def _images(make_photo: Callable[..., Image.Image]) -> list[np.ndarray]:
    """24 pictures with a photograph's statistics, and what pictures seldom are: flat, noise, two-valued, oblong."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(make_photo(*size, seed)) for seed, size in enumerate([(96, 96), (64, 90), (121, 57)] * 8)]
    flat = [np.full((40, 40, 3), v, np.uint8) for v in (0, 127, 255)]
    noise_HWC = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    two_HWC = (rng.integers(0, 2, (48, 64, 3)) * 255).astype(np.uint8)
    narrow_HWC = (100 + rng.integers(0, 5, (64, 48, 3))).astype(np.uint8)  # AutoContrast stretches this one far
    ramp_HWC = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(2, axis=0)
    return [*photos, *flat, noise_HWC, two_HWC, narrow_HWC, ramp_HWC, np.zeros((1, 1, 3), np.uint8)]


def _arguments(op: int, levels: np.ndarray) -> list[float]:
    """All arguments of an op over the range, both signs, both of timm's directions, without repetition."""
    args: set[float] = set()
    for increasing in (True, False):
        for negate in (True, False):
            op_N, negate_N = np.full(len(levels), op), np.full(len(levels), negate)
            args.update(level_to_arg(op_N, levels, negate_N, increasing=increasing).tolist())
    return sorted(args - {0.0} if op == Op.POSTERIZE else args)  # see test_posterize_to_no_bits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", range(NUM_OPS), ids=TIMM_NAMES)
def test_parity_of_every_op_is_exact(op: int, way: str, make_photo: Callable[..., Image.Image]) -> None:
    levels = np.concatenate([np.linspace(0, 10, 9), [3.3333, 6.0, 6.283]])
    for k, image_HWC in enumerate(_images(make_photo)):
        arguments = _arguments(op, levels)
        for arg in arguments if k % 4 == 0 or k >= 24 else arguments[k % 3 :: 3]:
            for interp in (BILINEAR, BICUBIC) if op in GEOMETRIC else (BILINEAR,):
                expected_HWC = np.asarray(_timm_op(Image.fromarray(image_HWC), op, arg, interp))
                result_HWC = augmented(image_HWC, [op], [arg], [interp], way)
                np.testing.assert_array_equal(result_HWC, expected_HWC, err_msg=f"image {k}, {arg=}, {interp=}")


@pytest.mark.parametrize("op", [Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD])
def test_parity_of_whole_number_arguments_is_exact_for_all_of_them(op: Op) -> None:
    ramp_HWC = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    last = {Op.POSTERIZE: 4, Op.SOLARIZE: 256, Op.SOLARIZE_ADD: 128}[op]
    for arg in range(1 if op == Op.POSTERIZE else 0, last + 1):
        expected_HWC = np.asarray(_timm_op(Image.fromarray(ramp_HWC), op, arg, BILINEAR))
        np.testing.assert_array_equal(augmented(ramp_HWC, [op], [arg], [0]), expected_HWC, err_msg=f"{arg=}")


@pytest.mark.parametrize("way", WAYS)
def test_posterize_to_no_bits_is_black(way: str) -> None:
    """Level 10 keeps no bit. Pillow 13 refuses that, and timm with it; Pillow 11 gives black."""
    image_HWC = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert not augmented(image_HWC, [Op.POSTERIZE], [0.0], [0], way).any()


@settings(max_examples=60)
@given(
    op=st.sampled_from(sorted(GEOMETRIC | {Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS, Op.AUTO_CONTRAST})),
    level=st.floats(0, 10),
    negate=st.booleans(),
    interp=st.sampled_from([BILINEAR, BICUBIC]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_parity_holds_for_any_argument_and_size(
    op: Op, level: float, negate: bool, interp: int, height: int, width: int, seed: int
) -> None:
    image_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    arg = float(level_to_arg(np.array([op]), np.array([level]), np.array([negate]), increasing=True)[0])
    expected_HWC = np.asarray(_timm_op(Image.fromarray(image_HWC), op, arg, interp))
    np.testing.assert_array_equal(augmented(image_HWC, [op], [arg], [interp]), expected_HWC)


@pytest.mark.parametrize("interp", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("op", [Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.SHEAR_X, Op.SHEAR_Y])
def test_parity_where_values_are_whole_numbers(op: Op, interp: int) -> None:
    """Shares that are simple fractions, or all but: many a value lies on or beside a whole number, which decides."""
    image_HWC = np.random.default_rng(3).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image_HWC[:32] = image_HWC[:32] // 64 * 85  # few levels, 0 and 255 among them
    for fraction in (0, 1 / 2, 1 / 3, 3 / 8, 0.37, 1 / 255, 254 / 255, 128 / 253):
        for nudge in (0, 1e-15, -1e-15, 1e-12, -1e-12, 1e-10, 1e-8, -1e-6, 1e-5, -3e-5):
            pixels = (5 + fraction + nudge) * (-1 if nudge > 0 else 1)
            arg = pixels / 96 if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) else pixels / 47.5
            expected_HWC = np.asarray(_timm_op(Image.fromarray(image_HWC), op, arg, interp))
            np.testing.assert_array_equal(augmented(image_HWC, [op], [arg], [interp]), expected_HWC, err_msg=f"{arg=}")


def test_parity_of_two_layers_is_exact(make_photo: Callable[..., Image.Image]) -> None:
    recipe = Recipe.load("a3", {"global_batch_size": "256"})
    plan = Planner(np.full(256, 96), np.full(256, 96), recipe).batch(0, 0)
    assert (plan.op_NL != Op.NONE).all(axis=1).sum() > 30  # both layers applied
    for row in range(len(plan)):
        image = make_photo(96, 80, row % 7)
        layers = (array[row].tolist() for array in (plan.op_NL, plan.arg_NL, plan.op_interp_NL))
        result_HWC = augmented(np.asarray(image), *layers)
        np.testing.assert_array_equal(result_HWC, np.asarray(_timm_chain(image, plan, row)), err_msg=f"{row=}")


@pytest.mark.parametrize("kind", ["plain", "gray", "progressive", "exif", "restart", "s411", "png"])
def test_parity_of_decoding_windows_is_exact(
    kind: str, tmp_path: Path, write_image: Callable[..., Path], make_photo: Callable[..., Image.Image]
) -> None:
    rng = np.random.default_rng(2)
    paths, windows = [], []
    for i in range(16):
        width, height = (int(side) for side in rng.integers(20, 300, 2))
        paths.append(write_image(tmp_path / f"{i}.JPEG", kind, width, height, i))
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        windows.append((int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w))
    decoded = WindowDecoder(16).decode([np.fromfile(path, np.uint8) for path in paths], np.array(windows, np.int32))
    for path, (y, x, h, w), window_HWC in zip(paths, windows, decoded, strict=True):
        with Image.open(path) as image:
            expected_HWC = np.asarray(image.convert("RGB").crop((x, y, x + w, y + h)))
        np.testing.assert_array_equal(window_HWC, expected_HWC)


def test_decoded_windows_stay_valid_while_held(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    encoded = [np.fromfile(write_image(tmp_path / f"{i}.JPEG", seed=i), np.uint8) for i in range(8)]
    window_M4 = np.tile(np.array([[5, 5, 80, 100]], np.int32), (4, 1))
    decoder = WindowDecoder(4)
    first = decoder.decode(encoded[:4], window_M4)
    copies = [window_HWC.copy() for window_HWC in first]
    for _ in range(10):
        decoder.decode(encoded[4:], window_M4)
    del decoder
    for window_HWC, copy_HWC in zip(first, copies, strict=True):
        np.testing.assert_array_equal(window_HWC, copy_HWC)


@pytest.mark.parametrize("name", ["a1", "a2", "a3"])
def test_parity_of_the_whole_transform_is_exact(name: str, image_tree: Callable[..., Path]) -> None:
    """From the JPEG file to the uint8 batch before mixing: every byte is what Pillow and timm make by the same plan."""
    source = ImageIndex.scan(image_tree(classes=4, per_class=16, odd=("gray", "cmyk", "exif", "png", "progressive")))
    recipe = Recipe.load(name, {"img_size": "64", "global_batch_size": "64", "mix_groups": "1"})
    planner = Planner(source.width_N, source.height_N, recipe)
    plans = [planner.batch(epoch, 0) for epoch in range(2)]
    executor = HostExecutor(source, recipe, rows=64, device=torch.device("cpu"), num_threads=2)
    for plan in plans:
        executor.submit(plan)
    for plan in plans:
        images_NHWC = executor.collect().images_NHWC.numpy()
        for row in range(len(plan)):
            y, x, h, w = plan.crop_N4[row].tolist()
            with Image.open(source.path(int(plan.sample_N[row]))) as file:
                image = file.convert("RGB").crop((x, y, x + w, y + h))
            image = image.resize((64, 64), FILTERS[int(plan.interp_N[row])])
            if plan.flip_N[row]:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            expected_HWC = np.asarray(_timm_chain(image, plan, row))
            np.testing.assert_array_equal(images_NHWC[row], expected_HWC, err_msg=f"{row=}")
    executor.close()
