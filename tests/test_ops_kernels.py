"""The kernels of mix and BCE without a GPU: interpreted against their plain references, and compiled for each GPU.

The checks run in a process of their own (`triton_tools`), a test here gives each its name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers import triton_tools
from helpers.common import CPU
from rsbdali.errors import DeviceError
from rsbdali.ops import bce_kernel, mix_kernel
from rsbdali.ops.backend import use_kernels
from rsbdali.ops.bce import bce_loss, bce_loss_reference
from rsbdali.ops.mix import mix_bytes, mix_normalize, mix_normalize_reference
from rsbdali.recipe import IMAGENET_MEAN, IMAGENET_STD

MIX_TOLERANCE = 2e-6  # float32: levels are mixed first and normalized by one multiply-add, the reference divides twice
# of the result's type; Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds: a whole unit, not half
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-7, torch.float32: 0.0}
DTYPES = tuple(ROUNDING)
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],  # explaining a failure traces the interpreter line by line
)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_images(rows: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8, generator=generator)


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int) -> tuple[int, int, int, int]:
    kind = draw(st.sampled_from(["none", "none", "full", "some", "no height", "no width"]))
    y0, y1 = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    x0, x1 = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    return {
        "none": (0, 0, 0, 0),
        "full": (0, height, 0, width),
        "some": (y0, y1, x0, x1),
        "no height": (y0, y0, 0, width),
        "no width": (0, height, x0, x0),
    }[kind]


@st.composite
def mixes(draw: st.DrawFn) -> tuple[torch.Tensor, Rows]:
    rows, height = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    width = draw(st.one_of(st.integers(1, 20), st.sampled_from([8, 16, 24, 32, 36])))
    # a batch of its own, or the last rows of another: memory that starts anywhere
    images_NHWC = random_images(rows + 1, height, width, draw(st.integers(0, 99)))[draw(st.integers(0, 1)) :]
    rows = len(images_NHWC)
    partner_N = draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
    lam = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32))
    lam_N = draw(st.lists(lam, min_size=rows, max_size=rows))
    box_N4 = draw(st.lists(boxes(height, width), min_size=rows, max_size=rows))
    return images_NHWC, (np.array(partner_N), np.array(lam_N, np.float32), np.array(box_N4, np.int32))


@few
@given(mixes(), st.sampled_from(DTYPES), st.sampled_from([256, 4096]))
def check_mix(mix: tuple[torch.Tensor, Rows], dtype: torch.dtype, block: int) -> None:
    images_NHWC, rows = mix
    mix_kernel.BLOCK = block  # a small one, so that small images have several
    result = mix_normalize(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD, dtype)
    exact = mix_normalize_reference(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    rtol = 1.02 * ROUNDING[dtype] + MIX_TOLERANCE  # a near tie may round the other way
    torch.testing.assert_close(result.float(), exact, rtol=rtol, atol=MIX_TOLERANCE)


def check_mix_takes_memory_and_rows_of_any_kind() -> None:
    images_NHWC, partner_N = random_images(3, 9, 16), np.array([2, 0, 1])
    rows = (partner_N, np.array([0.25, 1, 1], np.float32), np.array([[0, 0, 0, 0], [2, 7, 3, 9], [0, 0, 0, 0]]))
    out = torch.full((3, 9, 16, 3), torch.nan).permute(0, 3, 1, 2)
    expected = mix_normalize_reference(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    for given_rows in (rows, [torch.from_numpy(array) for array in rows]):
        mix = mix_normalize(images_NHWC, *given_rows, IMAGENET_MEAN, IMAGENET_STD, out=out.fill_(torch.nan))
        assert mix.data_ptr() == out.data_ptr()
        torch.testing.assert_close(mix, expected, rtol=MIX_TOLERANCE, atol=MIX_TOLERANCE)
    nothing = mix_normalize(images_NHWC[:0], *(array[:0] for array in rows), IMAGENET_MEAN, IMAGENET_STD)
    assert nothing.shape == (0, 3, 9, 16)


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """How many bytes the uint8 loads of a kernel really read, one number a load."""
    from triton.runtime.interpreter import InterpreterBuilder

    counts: list[int] = []
    original = InterpreterBuilder.create_masked_load

    def counting(self: object, pointers: SimpleNamespace, mask: SimpleNamespace, *rest: object) -> object:
        if pointers.get_element_ty().primitive_bitwidth == 8:
            counts.append(int(mask.data.sum()))
        return original(self, pointers, mask, *rest)

    InterpreterBuilder.create_masked_load = counting
    try:
        yield counts
    finally:
        InterpreterBuilder.create_masked_load = original


def check_mix_reads_what_the_mix_demands() -> None:
    """No more than `mix_bytes` says, if the box's edges fall between chunks; else eight bytes an edge and line."""
    images_NHWC = random_images(7, 8, 32)
    partner_N = np.array([6, 5, 4, 3, 2, 1, 0])
    lam_N = np.array([0.3, 1, 0, 0.5, 0.5, 0.5, 1], np.float32)
    box_N4 = np.zeros((7, 4), np.int32)
    box_N4[4:6] = (2, 7, 8, 24), (0, 8, 0, 32)
    for dtype in (torch.float16, torch.float32):
        written = dtype.itemsize * 3 * 7 * 8 * 32
        with counted_reads() as counts:
            mix_normalize(images_NHWC, partner_N, lam_N, box_N4, IMAGENET_MEAN, IMAGENET_STD, dtype)
        assert sum(counts) + written == mix_bytes(partner_N, lam_N, box_N4, 8, 32, dtype)
    box_N4[4:6] = (2, 7, 9, 23), (1, 2, 3, 4)
    with counted_reads() as counts:
        mix_normalize(images_NHWC, partner_N, lam_N, box_N4, IMAGENET_MEAN, IMAGENET_STD, torch.float16)
    floor = mix_bytes(partner_N, lam_N, box_N4, 8, 32, torch.float16) - 2 * 3 * 7 * 8 * 32
    assert floor < sum(counts) <= floor + (5 + 1) * 2 * 8


Labels = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def scores(draw: st.DrawFn) -> tuple[torch.Tensor, bool, Labels]:
    """Scores with a row and two columns to be cut off, whether that makes a view or a copy, and labels."""
    rows, classes = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 10, 33, 1025]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    wide_NC = draw(st.sampled_from([1.0, 8.0, 60.0])) * torch.randn(rows + 1, classes + 2, generator=generator)
    if draw(st.booleans()):
        wide_NC = wide_NC.t().contiguous().t()  # classes lie a row apart
    label_N, partner_N = torch.randint(classes, (2, rows), generator=generator)
    lam = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.8]), st.floats(0, 1, width=32))
    lam_N = torch.tensor(draw(st.lists(lam, min_size=rows, max_size=rows)))
    return wide_NC, draw(st.booleans()), (label_N, partner_N, lam_N)


@few
@given(scores(), st.sampled_from(DTYPES), st.sampled_from([0.0, 0.1]), st.sampled_from([None, 0.0, 0.2, 0.5]))
def check_bce(
    drawn: tuple[torch.Tensor, bool, Labels], dtype: torch.dtype, smoothing: float, threshold: float | None
) -> None:
    values_NC, is_view, labels = drawn
    wide_NC, same_NC = (values_NC.to(dtype, copy=True).requires_grad_() for _ in range(2))
    logits_NC = wide_NC[1:, 2:] if is_view else wide_NC[1:, 2:].contiguous()
    loss = bce_loss(logits_NC, *labels, smoothing=smoothing, threshold=threshold)
    expected = bce_loss_reference(same_NC[1:, 2:], *labels, smoothing=smoothing, threshold=threshold)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)  # another formula and order of summing
    (loss * 1024).backward()  # as a GradScaler does
    (expected * 1024).backward()
    assert wide_NC.grad.dtype is dtype
    # rounded to the logits' type twice, and the reference once; σ of float32 is good to 3e-7
    rtol, atol = 3.1 * ROUNDING[dtype] + 1e-5, 3e-7 * 1024 / logits_NC.numel() + torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(wide_NC.grad.float(), same_NC.grad.float(), rtol=rtol, atol=atol)


def check_bce_targets_on_the_edge_of_the_threshold() -> None:
    """With logits of zero the gradient is (½ − y) / (N·C): all targets are read off it, to the last bit of λ."""
    for smoothing in (0.0, 0.1):
        for threshold in (0.2, 0.5, 0.3):
            off = smoothing / 10
            crossing = np.float32((threshold - off) / (1 - smoothing))
            near = (crossing.view(np.int32) + np.arange(-8, 9, dtype=np.int32)).view(np.float32)
            lam_N = torch.from_numpy(np.concatenate([near, 1 - near, [0, 1, 0.5]]).astype(np.float32))
            label_N = torch.arange(len(lam_N)) % 10
            logits_NC, same_NC = (torch.zeros(len(lam_N), 10, requires_grad=True) for _ in range(2))
            for function, leaf in ((bce_loss, logits_NC), (bce_loss_reference, same_NC)):
                function(leaf, label_N, label_N.flip(0), lam_N, smoothing=smoothing, threshold=threshold).backward()
            assert torch.equal(logits_NC.grad > 0, same_NC.grad > 0)


def check_bce_small_things() -> None:
    labels = torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([0.25, 1.0])
    logits_NC = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]], requires_grad=True)
    assert bce_loss(logits_NC, *labels).isnan()
    with torch.no_grad():
        assert not bce_loss(logits_NC, *labels).requires_grad
    assert not bce_loss(logits_NC.detach(), *labels).requires_grad
    # many sure and right logits: each loss is e^-20, which 1 + e^-20 would round away
    zero_N = torch.zeros(4, dtype=torch.int64)
    sure = bce_loss(torch.full((4, 100), -20.0), zero_N, zero_N, torch.ones(4), threshold=1.0)
    torch.testing.assert_close(sure, torch.tensor(-20.0).exp(), rtol=1e-5, atol=0)
    # backward twice gives the gradient twice
    logits_NC = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    loss = bce_loss(logits_NC, *labels)
    loss.backward(retain_graph=True)
    once_NC = logits_NC.grad.clone()
    loss.backward()
    assert torch.equal(logits_NC.grad, 2 * once_NC)
    # float64 is not the kernel's
    assert bce_loss(logits_NC.double(), *labels).dtype is torch.float64


CHECKS: list[Callable[[], None]] = [
    check_mix,
    check_mix_takes_memory_and_rows_of_any_kind,
    check_mix_reads_what_the_mix_demands,
    check_bce,
    check_bce_targets_on_the_edge_of_the_threshold,
    check_bce_small_things,
]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    found: dict[str, str] = triton_tools.interpret(__file__)
    return found


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_kernels_interpreted(check: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[check], interpreted[check]


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mix_kernel_compiles(capability: int, dtype: str) -> None:
    vec = mix_kernel.chunk(160, getattr(torch, dtype))
    floats = {f"{name}{channel}": "fp32" for name in ("scale", "shift") for channel in range(3)}
    stages = triton_tools.compiled(
        mix_kernel.mix_kernel,
        capability,
        {"images": "*u8", "out": triton_tools.POINTERS[dtype], "rows": "*i32", "count": "i32", **floats},
        {"HEIGHT": 160, "WIDTH": 160, "VEC": vec, "BLOCK": mix_kernel.BLOCK},
        aligned=("images", "out", "rows"),
    )
    assert stages["cubin"]
    stores, loads = stages["ptx"].count("st.global"), stages["ptx"].count("ld.global")
    assert stages["ptx"].count("st.global.v4.b32") == stores, "each thread writes 16 bytes at a time"
    if dtype == "bfloat16" and capability >= 80:  # the interpreter cuts off; for sm_70 Triton rounds by integers
        assert "cvt.rn.bf16x2.f32" in stages["ptx"]
    # masks and all: CutMix's reads are as wide as a mixup's; six words are the row's own
    wide = {8: "ld.global.v2.b32", 4: "ld.global.b32"}[vec]
    assert stages["ptx"].count(wide) >= loads - 6
    assert "st.shared" not in stages["ptx"], "nothing changes threads between load and store"


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_bce_kernels_compile(capability: int, dtype: str) -> None:
    scores = triton_tools.POINTERS[dtype]
    pointers = {"labels": "*i64", "partners": "*i64", "lams": "*fp32", "partials": "*fp32"}
    scalars = dict.fromkeys(("on", "off", "threshold"), "fp32")
    stages = triton_tools.compiled(
        bce_kernel.bce_kernel,
        capability,
        {"logits": scores, **pointers, "residual": scores, **scalars},
        {"CLASSES": 1000, "STRIDE": 1000, "THRESHOLDED": True, "RESIDUAL": True, "BLOCK": 1024},
        aligned=("logits", *pointers, "residual"),
        **bce_kernel.EXACT,
    )
    assert stages["cubin"]
    assert "ld.global.v4.b32" in stages["ptx"]
    assert "st.global.v4.b32" in stages["ptx"]
    # on·λ + off·(1 − λ) rounds after each product, as in torch; those with .ftz are the logarithm's own
    assert "fma.rn.f32" not in stages["ptx"]
    types = {"residual": scores, "grad": scores, "grad_output": "*fp32", "share": "fp32", "total": "i32"}
    scaling = triton_tools.compiled(
        bce_kernel.scale_kernel, capability, types, {"BLOCK": bce_kernel.SCALE_BLOCK}, aligned=("residual", "grad")
    )
    assert scaling["cubin"]


def test_the_backend_of_ops_is_chosen_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for choice, interpreter, on_cpu, on_cuda in (
        ("", "0", False, True),
        ("reference", "0", False, False),
        ("interpret", "1", True, True),
    ):
        monkeypatch.setenv("RSBDALI_KERNELS", choice)
        monkeypatch.setenv("TRITON_INTERPRET", interpreter)
        assert (use_kernels(CPU), use_kernels(cuda)) == (on_cpu, on_cuda)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(DeviceError, match="TRITON_INTERPRET=1"):
        use_kernels(CPU)
    monkeypatch.setenv("RSBDALI_KERNELS", "refrence")
    with pytest.raises(DeviceError, match="interpret or reference"):
        use_kernels(CPU)


if __name__ == "__main__":
    triton_tools.report(CHECKS)
