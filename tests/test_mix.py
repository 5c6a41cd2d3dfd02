"""mix_normalize against its plain reference, and the reference against timm's Mixup."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from rsbdali.ops.mix import mix_bytes, mix_normalize, mix_normalize_reference
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.recipe import IMAGENET_MEAN, IMAGENET_STD

TOLERANCE = 2e-6  # float32 rounding: scale and shift are applied as one multiply-add, the reference divides twice


def _images(n: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def _rows(n: int, height: int, width: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """partner, λ and box: one kind for all rows, or each row another (timm's elem mode)."""
    rng = np.random.default_rng(1)
    partner_N = np.arange(n, dtype=np.int32)[::-1].copy()
    lam_N, box_N4 = np.ones(n, np.float32), np.zeros((n, 4), np.int32)
    for row in range(n):
        what = kind if kind != "elem" else ("mixup", "cutmix", "none")[row % 3]
        if what == "mixup":
            lam_N[row] = 0.3 if kind == "mixup" else rng.random()
        elif what == "cutmix":
            y0, x0 = int(rng.integers(height)), int(rng.integers(width))
            box_N4[row] = (y0, int(rng.integers(y0, height)) + 1, x0, int(rng.integers(x0, width)) + 1)
            y0, y1, x0, x1 = box_N4[row].tolist()
            lam_N[row] = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return partner_N, lam_N, box_N4


def _assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix", "elem"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (200, 160), (7, 33), (2, 30000)])  # the last: one line a block
def test_fast_path_equals_the_reference(kind: str, height: int, width: int) -> None:
    images_NHWC = _images(6, height, width)
    rows = _rows(6, height, width, kind)
    expected = mix_normalize_reference(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    result = mix_normalize(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    assert result.shape == (6, 3, height, width)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    _assert_close(result, expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "elem"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_once(kind: str, dtype: torch.dtype) -> None:
    images_NHWC = _images(6, 40, 40)
    rows = _rows(6, 40, 40, kind)
    exact = mix_normalize_reference(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    result = mix_normalize(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD, dtype)
    assert result.dtype == dtype
    # half a unit in the last place, and the fast path's own tolerance, which may tip a tie
    torch.testing.assert_close(result.float(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=TOLERANCE)


def test_takes_memory_of_the_caller_and_tensors_for_rows() -> None:
    images_NHWC = _images(4, 24, 24)
    rows = _rows(4, 24, 24, "elem")
    out = BufferPool((4, 24, 24, 3), torch.float32).take().permute(0, 3, 1, 2)
    result = mix_normalize(images_NHWC, *map(torch.from_numpy, rows), IMAGENET_MEAN, IMAGENET_STD, out=out)
    assert result.data_ptr() == out.data_ptr()
    _assert_close(result, mix_normalize_reference(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD))


def test_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    mix_normalize(_images(4, 24, 24), *_rows(4, 24, 24, "elem"), IMAGENET_MEAN, IMAGENET_STD)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before + 1


def test_partner_need_not_be_the_mirror() -> None:
    images_NHWC = _images(5, 16, 16)
    partner_N = np.array([3, 3, 2, 0, 1], np.int32)
    _, lam_N, box_N4 = _rows(5, 16, 16, "elem")
    arguments = (images_NHWC, partner_N, lam_N, box_N4, IMAGENET_MEAN, IMAGENET_STD)
    _assert_close(mix_normalize(*arguments), mix_normalize_reference(*arguments))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_reference_equals_timm(cut: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's batch mode on normalized floats, its own draws handed to ours."""
    drawn: list[tuple[tuple[int, ...], float]] = []
    original = Mixup._mix_batch.__globals__["cutmix_bbox_and_lam"]

    def spy(*args: object, **kwargs: object) -> tuple[tuple[int, ...], float]:
        drawn.append(original(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setitem(Mixup._mix_batch.__globals__, "cutmix_bbox_and_lam", spy)
    np.random.seed(seed)  # timm draws from the global generator
    mixup = Mixup(mixup_alpha=0 if cut else 0.4, cutmix_alpha=1 if cut else 0, num_classes=10)
    images_NHWC = _images(8, 48, 48)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    plain = ((images_NHWC.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    lam = mixup._mix_batch(expected := plain.clone())
    assert cut or 0 < lam < 1  # a box may lie at the edge and be nearly nothing
    box_N4 = np.tile(np.array(drawn[0][0] if cut else (0, 0, 0, 0), np.int32), (8, 1))
    rows = np.arange(8)[::-1].copy(), np.full(8, lam, np.float32), box_N4
    for function in (mix_normalize_reference, mix_normalize):
        _assert_close(function(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD), expected)


def test_bytes_count_what_a_mix_reads() -> None:
    box_N4 = np.zeros((6, 4), np.int32)
    box_N4[3] = (0, 5, 2, 3)
    partner_N = np.array([5, 4, 3, 2, 4, 0])
    # two images are read for the first row alone: the others are λ = 1, λ = 0, CutMix, a row mixed with itself, λ = 1
    lam_N = np.array([0.3, 1, 0, 0.7, 0.5, 1], np.float32)
    out = 2 * 6 * 10 * 12 * 3
    assert mix_bytes(partner_N, lam_N, box_N4, 10, 12, torch.float16) == 7 * 10 * 12 * 3 + out
    assert mix_bytes(partner_N, lam_N, box_N4, 10, 12, torch.float32) == 7 * 10 * 12 * 3 + 2 * out


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix", "elem"])
@pytest.mark.parametrize(("height", "width"), [(160, 160), (224, 236), (33, 47)])
def test_gpu_equals_the_reference_on_the_cpu(kind: str, height: int, width: int) -> None:
    images_NHWC = _images(7, height, width)[1:]  # starts at an odd address for the odd size
    arguments = (*_rows(6, height, width, kind), IMAGENET_MEAN, IMAGENET_STD)
    expected = mix_normalize_reference(images_NHWC, *arguments)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        result = mix_normalize(images_NHWC.cuda(), *arguments, dtype)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        rtol = TOLERANCE if dtype is torch.float32 else 0.51 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.cpu().float(), expected, rtol=rtol, atol=TOLERANCE)


@pytest.mark.gpu
@gpu
def test_gpu_indexes_batches_of_more_than_two_gigabytes() -> None:
    rows, size = 1100, 832  # 2.3 GB of bytes, 4.6 GB of results
    images_NHWC = torch.zeros((rows, size, size, 3), dtype=torch.uint8, device="cuda")
    images_NHWC[-2:] = _images(2, size, size).cuda()
    mix = np.arange(rows)[::-1].copy(), np.full(rows, 0.25, np.float32), np.zeros((rows, 4), np.int32)
    result = mix_normalize(images_NHWC, *mix, IMAGENET_MEAN, IMAGENET_STD, torch.float16)
    ends = torch.cat([images_NHWC[:2], images_NHWC[-2:]]).cpu()
    few = np.arange(4)[::-1].copy(), np.full(4, 0.25, np.float32), np.zeros((4, 4), np.int32)
    expected = mix_normalize_reference(ends, *few, IMAGENET_MEAN, IMAGENET_STD)
    found = torch.cat([result[:2], result[-2:]]).cpu().float()
    torch.testing.assert_close(found, expected, rtol=0.51 * torch.finfo(torch.float16).eps, atol=TOLERANCE)


@pytest.mark.gpu
@gpu
def test_gpu_does_not_wait_and_fits_a_cuda_graph() -> None:
    images_NHWC, rows = _images(6, 32, 32).cuda(), _rows(6, 32, 32, "elem")
    expected = mix_normalize(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = mix_normalize(images_NHWC, *rows, IMAGENET_MEAN, IMAGENET_STD)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(again, expected)
    on_gpu = [torch.from_numpy(array).cuda() for array in rows]
    out, graph = torch.zeros_like(expected), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mix_normalize(images_NHWC, *on_gpu, IMAGENET_MEAN, IMAGENET_STD, out=out)
    on_gpu[1].fill_(1)  # other rows than those captured
    on_gpu[2].zero_()
    graph.replay()
    plain = mix_normalize(
        images_NHWC, np.arange(6), *(array.cpu().numpy() for array in on_gpu[1:]), IMAGENET_MEAN, IMAGENET_STD
    )
    assert torch.equal(out, plain)
