"""RandAugment's kernels and its Pillow reference against timm, bit for bit, without a GPU.

The kernels run in Triton's interpreter, in a process of their own (`triton_tools`), one block an image; and they are
compiled for each GPU. All comparisons are exact.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, NAME_TO_OP

from helpers import triton_tools
from rsbdali.ops import randaugment_kernel
from rsbdali.ops.randaugment import randaugment
from rsbdali.ops.randaugment_reference import randaugment_reference
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, FILL_RGB, NUM_OPS, WARPS, Op, level_to_arg
from rsbdali.recipe import Recipe

SIZES = [(1, 1), (1, 7), (9, 1), (2, 2), (17, 23), (32, 32)]  # (H, W)
FILTERS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
TIMM_NAMES = [*_RAND_INCREASING_TRANSFORMS, "", "TranslateX", "TranslateY"]
WITHOUT_ARGUMENT = (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT)
# beyond what any recipe asks for, too
ARGUMENTS: dict[Op, list[float]] = {
    Op.ROTATE: [0, 30, -17.3, 90, -180, 270, 45, -1e-20],
    Op.POSTERIZE: [1, 2, 3, 4, 5, 6, 7, 8, 11],
    Op.SOLARIZE: [0, 1, 100, 128.9, 255, 256, -1, 1e12],
    Op.SOLARIZE_ADD: [0, 1, 66, 110, 127, 128, 255, 300, -40, -300],
    Op.SHEAR_X: [0, 0.3, -0.18333, 3.7, 1e9],
    Op.SHEAR_Y: [0, -0.3, 0.07, -2.5, -1e9],
    Op.TRANSLATE_X: [0, 0.45, -0.2713, 1, -1e300],
    Op.TRANSLATE_Y: [0, -0.45, 0.125, 0.9, 1e300],
    Op.TRANSLATE_X_ABS: [0, 3, -7, 31, 2.5],
    Op.TRANSLATE_Y_ABS: [0, -3, 7, -31, 0.125],
    **{op: [0] for op in (*WITHOUT_ARGUMENT, Op.FLIP_Y)},
    **{op: [0, 0.1, 0.6437, 1, 1.3, 1.9, 40, -1.5] for op in (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)},
}
few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],  # explaining a failure traces the interpreter line by line
)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # flip_N, op_NL, arg_NL, op_interp_NL


def timm_chain(
    image_HWC: np.ndarray, flip: bool, layers: Iterable[tuple[int, float, int]], fill: tuple[int, ...]
) -> np.ndarray:
    """What timm makes of one image: the oracle."""
    image = Image.fromarray(image_HWC)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for op, arg, interp in layers:
        if op == Op.NONE:
            continue
        if op == Op.POSTERIZE and arg < 1:  # Pillow 11 and 12 give black, 13 refuses
            image = Image.new("RGB", image.size)
            continue
        # timm hands over ints where its level function makes them
        arg = int(arg) if op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD) else float(arg)
        if op == Op.FLIP_Y:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            continue
        args = () if op in WITHOUT_ARGUMENT else (arg,)
        image = NAME_TO_OP[TIMM_NAMES[op]](image, *args, resample=FILTERS[interp], fillcolor=fill)
    return np.asarray(image)


def random_images(rows: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, in every fourth row of few levels, in another smooth, in another of two levels a channel or one."""
    rng = np.random.default_rng(seed)
    images_NHWC = rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
    images_NHWC[1::4] = 90 + images_NHWC[1::4] % 40
    ramp_HW1 = (np.arange(height)[:, None] * 3 + np.arange(width) * 2)[..., None]
    images_NHWC[2::4] = ramp_HW1 + np.array([0, 60, 90])
    images_NHWC[3::4] = np.where(images_NHWC[3::4] < 100, [7, 250, 31], [7, 251, 200])
    return images_NHWC


@contextmanager
def blocks(apply_block: int, table_block: int) -> Iterator[None]:
    """Other block sizes: the interpreter takes its time by the program, however large its block."""
    before = randaugment_kernel.APPLY_BLOCK, randaugment_kernel.TABLE_BLOCK
    randaugment_kernel.APPLY_BLOCK, randaugment_kernel.TABLE_BLOCK = apply_block, table_block
    try:
        yield
    finally:
        randaugment_kernel.APPLY_BLOCK, randaugment_kernel.TABLE_BLOCK = before


def assert_exact(images_NHWC: np.ndarray, rows: Rows, fill: tuple[int, ...] = FILL_RGB, block: int = 0) -> None:
    """`randaugment` (in the interpreter: the kernels) against timm, row by row. `block` 0: one block an image."""
    block = block or max(16, 1 << (images_NHWC[0, ..., 0].size - 1).bit_length())
    given_NHWC = torch.from_numpy(images_NHWC.copy())
    with blocks(block, block):
        out_NHWC = randaugment(given_NHWC, *rows, fill=fill).numpy()
    np.testing.assert_array_equal(given_NHWC.numpy(), images_NHWC)  # the argument is left alone
    for row, (image_HWC, flip, *layers) in enumerate(zip(images_NHWC, *rows, strict=True)):
        what = f"{row=} {flip=} {fill=} {image_HWC.shape} {[array.tolist() for array in layers]}"
        expected_HWC = timm_chain(image_HWC, bool(flip), zip(*layers, strict=True), fill)
        np.testing.assert_array_equal(out_NHWC[row], expected_HWC, err_msg=what)


def every_op(op: Op) -> Rows:
    """One layer: an op with all its arguments, both filters, flipped and not."""
    interps = (BILINEAR, BICUBIC) if op in WARPS else (BILINEAR,)
    cases = [(flip, arg, interp) for arg in ARGUMENTS[op] for interp in interps for flip in (False, True)]
    if op not in WARPS:  # an image of each kind
        cases = [case for case in cases for _ in range(2 if len(cases) > 2 else 4)]
    flip_N, arg_N, interp_N = (np.array(column) for column in zip(*cases, strict=True))
    return flip_N, np.full((len(cases), 1), op), arg_N[:, None].astype(float), interp_N[:, None]


def random_rows(rows: int, layers: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    shape = (rows, layers)
    op_NL = rng.integers(-1, 15, shape).astype(np.int8)
    arg_NL = level_to_arg(op_NL, rng.uniform(0, 10, shape), rng.random(shape) < 0.5, increasing=bool(seed % 2))
    return rng.random(rows) < 0.5, op_NL, arg_NL, rng.integers(0, 2, shape, dtype=np.uint8)


def planned(recipe: str, rows: int) -> BatchPlan:
    sizes = np.full(4096, 300, np.int32)
    return Planner(sizes, sizes, Recipe.load(recipe)).batch(0, 0).rows(slice(rows))


def plan_rows(plan: BatchPlan) -> Rows:
    return plan.flip_N, plan.op_NL, plan.arg_NL, plan.op_interp_NL


def check_every_op() -> None:
    for op in ARGUMENTS:
        rows = every_op(op)
        assert_exact(random_images(len(rows[0]), 17, 23), rows)


def check_every_size() -> None:
    """Each op with four of its arguments; sharpness and taps of warps have edges, one-pixel images nothing else."""
    for height, width in SIZES:
        op_NL = np.repeat(list(ARGUMENTS), 4)[:, None]
        args = [ARGUMENTS[op][k % len(ARGUMENTS[op])] for op in ARGUMENTS for k in range(1, 5)]
        k_N = np.arange(len(op_NL))
        rows = (k_N % 4 < 2, op_NL, np.array(args, float)[:, None], (k_N % 2)[:, None])
        assert_exact(random_images(len(op_NL), height, width), rows)


def check_order_of_operations() -> None:
    """Shifts by tenths of a pixel: many values are whole numbers but for rounding errors, whose order then shows."""
    moves = [(op, share) for op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) for share in (0.01, -0.03, 0.085)]
    moves += [(op, shear) for op in (Op.SHEAR_X, Op.SHEAR_Y) for shear in (0.2, -0.1)]
    op_N, arg_N = (np.repeat(column, 2) for column in zip(*moves, strict=True))
    noise_NHWC = np.random.default_rng(0).integers(0, 256, (len(op_N), 20, 20, 3), dtype=np.uint8)
    rows = (np.zeros(len(op_N), bool), op_N[:, None], arg_N[:, None], np.arange(len(op_N))[:, None] % 2)
    assert_exact(noise_NHWC, rows)


def check_posterize_to_no_bits_is_black() -> None:
    rows = (np.zeros(3, bool), np.full((3, 1), Op.POSTERIZE), np.array([[0.0], [-2.0], [0.9]]), np.zeros((3, 1), int))
    assert_exact(random_images(3, 4, 5), rows)


def check_layers_and_fills() -> None:
    fills = [(0, 0, 0), (255, 1, 16), (128, 128, 128), FILL_RGB]
    for layers, fill in enumerate(fills):
        for seed in (1, 2):
            assert_exact(random_images(8, 13, 10, seed), random_rows(8, layers, seed), fill)


def check_blocks() -> None:
    """Several blocks an image, the last of them not full, whichever loop goes over them."""
    rows = random_rows(20, 2, 5)
    rows[1][:15, 0] = np.arange(15)
    assert_exact(random_images(20, 11, 13), rows, block=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, Rows, tuple[int, ...]]:
    rows, layers = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    cell = st.tuples(st.sampled_from(list(Op)[: 1 + NUM_OPS]), st.floats(0, 10), st.booleans(), st.booleans())
    cells = draw(st.lists(cell, min_size=rows * layers, max_size=rows * layers))
    columns = np.array(cells, float).reshape(rows, layers, 4)
    op, level, negate, cubic = columns.transpose(2, 0, 1)
    arg_NL = level_to_arg(op, level, negate.astype(bool), increasing=draw(st.booleans()))
    flip_N = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    images_NHWC = random_images(rows + 1, height, width, draw(st.integers(0, 99)))[draw(st.integers(0, 1)) :][:rows]
    fill = draw(st.tuples(*[st.integers(0, 255)] * 3))
    return images_NHWC, (flip_N, op.astype(np.int8), arg_NL, cubic.astype(np.uint8)), fill


@few
@given(batches())
def check_random_batches(batch: tuple[np.ndarray, Rows, tuple[int, ...]]) -> None:
    assert_exact(*batch)


def check_planned_rows_three_ways() -> None:
    """64 rows at 160 px of A3's plan and 128 at 32 px of A1's (512 did as well, in 50 s): kernels, host ops, Pillow."""
    for recipe, rows, side in (("a3", 64, 160), ("a1", 128, 32)):
        plan = planned(recipe, rows)
        assert (len(plan), plan.op_NL.shape[1]) == (rows, 2)
        assert set(plan.op_NL.ravel().tolist()) == set(range(-1, NUM_OPS))
        images_NHWC = random_images(rows, side, side, seed=rows)
        assert_exact(images_NHWC, plan_rows(plan))
        for row in range(rows):
            flipped_HWC = images_NHWC[row, :, ::-1] if plan.flip_N[row] else images_NHWC[row]
            fields = (getattr(plan, name)[row].tolist() for name in ("op_NL", "arg_NL", "op_interp_NL"))
            host_HWC = np.array(flipped_HWC, order="C")
            find_augment()(host_HWC, *fields)
            one = [array[row : row + 1] for array in plan_rows(plan)]
            pillow_1HWC = randaugment_reference(torch.from_numpy(images_NHWC[row : row + 1]), *one, fill=FILL_RGB)
            np.testing.assert_array_equal(host_HWC, pillow_1HWC[0].numpy(), err_msg=f"{recipe} {row=}")


def check_memory_and_rows_of_any_kind() -> None:
    images_NHWC = torch.from_numpy(random_images(5, 6, 7))
    rows = random_rows(4, 2, 3)
    tensors = [torch.from_numpy(array) for array in rows]
    expected_NHWC = randaugment_reference(images_NHWC[1:], *rows, fill=FILL_RGB)
    assert torch.equal(randaugment(images_NHWC[1:], *tensors, fill=FILL_RGB), expected_NHWC)
    nothing = randaugment(images_NHWC[:0], *(array[:0] for array in rows), fill=FILL_RGB)
    assert nothing.shape == (0, 6, 7, 3)
    copied = randaugment(images_NHWC, np.zeros(5, bool), *[np.zeros((5, 0))] * 3, fill=FILL_RGB)
    assert torch.equal(copied, images_NHWC)
    assert copied.data_ptr() != images_NHWC.data_ptr()


def check_launches() -> None:
    """Two a layer; one where no image needs a table, be it only the flip."""
    launches: list[str] = []
    images_NHWC = torch.from_numpy(random_images(2, 4, 4))
    for kernel, name in ((randaugment_kernel.tables_kernel, "tables"), (randaugment_kernel.apply_kernel, "apply")):
        kernel.add_pre_run_hook(lambda *args, name=name, **kwargs: launches.append(name))
    for ops, expected in (
        ([], ["apply"]),
        ([Op.NONE], ["apply"]),
        ([Op.ROTATE, Op.INVERT], ["apply", "tables", "apply"]),
        ([Op.EQUALIZE, Op.CONTRAST, Op.COLOR], ["tables", "apply", "tables", "apply", "apply"]),
    ):
        launches.clear()
        op_NL = np.array([[Op.NONE] * len(ops), ops]).reshape(2, len(ops))
        randaugment(images_NHWC, np.array([True, False]), op_NL, np.ones(op_NL.shape), op_NL * 0, fill=FILL_RGB)
        assert launches == expected


CHECKS: list[Callable[[], None]] = [
    check_every_op,
    check_every_size,
    check_order_of_operations,
    check_posterize_to_no_bits_is_black,
    check_layers_and_fills,
    check_blocks,
    check_random_batches,
    check_planned_rows_three_ways,
    check_memory_and_rows_of_any_kind,
    check_launches,
]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    found: dict[str, str] = triton_tools.interpret(__file__)
    return found


@pytest.mark.parametrize("check", triton_tools.names_of(CHECKS, counting=[check_launches]))
def test_randaugment_kernels_interpreted(check: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[check], interpreted[check]


@pytest.mark.parametrize("op", list(ARGUMENTS), ids=lambda op: op.name)
def test_parity_of_the_randaugment_reference(op: Op) -> None:
    for height, width in SIZES:
        rows = every_op(op)
        assert_exact(random_images(len(rows[0]), height, width), rows)


@given(batches())
@settings(max_examples=50, deadline=None)
def test_parity_of_the_randaugment_reference_for_random_batches(
    batch: tuple[np.ndarray, Rows, tuple[int, ...]],
) -> None:
    assert_exact(*batch)


def test_packed_rows_are_one_array_of_64_bytes_a_row() -> None:
    rows = random_rows(6, 2)
    rows[1][:] = Op.CONTRAST
    rows[2][:] = np.arange(12).reshape(6, 2) / 7
    packed_LNR = randaugment_kernel.pack(*rows, (8, 9))
    assert packed_LNR.shape == (2, 6, 8)
    assert packed_LNR.nbytes == 2 * 6 * 64
    np.testing.assert_array_equal(packed_LNR[..., 2].view(np.float64), rows[2].T)
    assert (packed_LNR[1, :, 1] & 1 == 0).all(), "only the first layer flips"
    np.testing.assert_array_equal(packed_LNR[0, :, 1] & 1, rows[0])


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("size", [(160, 160), (17, 1)])
def test_randaugment_kernels_compile(capability: int, size: tuple[int, int]) -> None:
    constants = {"HEIGHT": size[0], "WIDTH": size[1]}
    tables = triton_tools.compiled(
        randaugment_kernel.tables_kernel,
        capability,
        {"images": "*u8", "tables": "*u8", "rows": "*i64"},
        {**constants, "BLOCK": randaugment_kernel.TABLE_BLOCK},
        aligned=("images", "tables", "rows"),
        **randaugment_kernel.EXACT,
    )
    pointers = {"images": "*u8", "out": "*u8", "tables": "*u8", "rows": "*i64"}
    apply = triton_tools.compiled(
        randaugment_kernel.apply_kernel,
        capability,
        {**pointers, **dict.fromkeys(("fill0", "fill1", "fill2"), "i32")},
        {**constants, "BLOCK": randaugment_kernel.APPLY_BLOCK},
        aligned=pointers,
        **randaugment_kernel.EXACT,
    )
    for stages in (tables, apply):
        assert stages["cubin"]
        # Pillow rounds after each multiplication; the assembler is told likewise by the same option
        assert "fma.rn" not in stages["ptx"]
        assert "mul" in stages["ptx"]
    assert "div.rn.f64" in tables["ptx"]  # AutoContrast's scale, rounded to the nearest


def assert_equal_on_the_gpu(device: int, images_NHWC: np.ndarray, rows: Rows) -> None:
    on_cpu_NHWC = torch.from_numpy(images_NHWC)
    out_NHWC = randaugment(on_cpu_NHWC.to(f"cuda:{device}"), *rows, fill=FILL_RGB)
    assert torch.equal(out_NHWC.cpu(), randaugment_reference(on_cpu_NHWC, *rows, fill=FILL_RGB))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", range(max(1, torch.cuda.device_count())))
def test_parity_randaugment_kernels_on_the_gpu(device: int) -> None:
    for recipe, rows, side in (("a3", 512, 160), ("a1", 128, 32)):
        assert_equal_on_the_gpu(device, random_images(rows, side, side), plan_rows(planned(recipe, rows)))
    for op in ARGUMENTS:
        for height, width in SIZES:
            of_op = every_op(op)
            assert_equal_on_the_gpu(device, random_images(len(of_op[0]), height, width), of_op)


if __name__ == "__main__":
    triton_tools.report(CHECKS)
