"""Losses against timm: `mixup_target`, `BinaryCrossEntropy`, `SoftTargetCrossEntropy`."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from rsbdali.ops.bce import bce_bytes, bce_loss, bce_loss_reference, soft_cross_entropy, soft_targets

N, C = 64, 10


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, C, generator=generator), torch.randint(C, (N,), generator=generator)


def labels_of(label_N: torch.Tensor, lam: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return label_N, label_N.flip(0), torch.full((N,), lam)


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.37, 0.8, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_timms(batch: tuple[torch.Tensor, torch.Tensor], lam: float, smoothing: float) -> None:
    _, label_N = batch
    ours = soft_targets(*labels_of(label_N, lam), num_classes=C, smoothing=smoothing)
    # timm multiplies by λ in float64 and then rounds, we hold λ in float32: the last bit may differ
    torch.testing.assert_close(ours, mixup_target(label_N, C, lam, smoothing), rtol=0, atol=1.2e-7)


def test_each_row_has_a_weight_of_its_own(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, label_N = batch
    lam_N = torch.rand(N)
    rows = soft_targets(label_N, label_N.flip(0), lam_N, num_classes=C, smoothing=0.1)
    alone = [mixup_target(label_N, C, lam.item(), 0.1)[i] for i, lam in enumerate(lam_N)]
    torch.testing.assert_close(rows, torch.stack(alone), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [0.0, 0.15, 0.5, 0.85])
def test_bce_is_timms(
    batch: tuple[torch.Tensor, torch.Tensor], lam: float, smoothing: float, threshold: float | None
) -> None:
    logits_NC, label_N = batch
    ours_NC, timms_NC = logits_NC.clone().requires_grad_(), logits_NC.clone().requires_grad_()
    ours = bce_loss(ours_NC, *labels_of(label_N, lam), smoothing=smoothing, threshold=threshold)
    timms = BinaryCrossEntropy(target_threshold=threshold)(timms_NC, mixup_target(label_N, C, lam, smoothing))
    torch.testing.assert_close(ours, timms)
    ours.backward()
    timms.backward()
    torch.testing.assert_close(ours_NC.grad, timms_NC.grad)


def test_a_target_equal_to_the_threshold_is_zero() -> None:
    label_N = torch.tensor([0, 1])
    target = (torch.tensor([[0.0, 1.0], [1.0, 0.0]]),)  # λ = .5: both targets are .5, none is above it
    loss = bce_loss(torch.zeros(2, 2), label_N, label_N.flip(0), torch.full((2,), 0.5), threshold=0.5)
    below = torch.nn.functional.binary_cross_entropy_with_logits(torch.zeros(2, 2), torch.zeros_like(*target))
    assert loss == below


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_cross_entropy_is_timms(batch: tuple[torch.Tensor, torch.Tensor], smoothing: float) -> None:
    logits_NC, label_N = batch
    ours = soft_cross_entropy(logits_NC, *labels_of(label_N, 0.3), smoothing=smoothing)
    timms = SoftTargetCrossEntropy()(logits_NC, mixup_target(label_N, C, 0.3, smoothing))
    torch.testing.assert_close(ours, timms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(batch: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> None:
    logits_NC, label_N = batch
    half_NC = logits_NC.to(dtype)
    loss = bce_loss(half_NC, *labels_of(label_N, 0.3))
    assert loss.dtype is torch.float32
    assert loss == bce_loss(half_NC.float(), *labels_of(label_N, 0.3))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_reference_passes_gradcheck(batch: tuple[torch.Tensor, torch.Tensor], threshold: float | None) -> None:
    """Its gradient is what the kernel's is compared with, in test_ops_kernels."""
    logits_NC, label_N = batch
    labels = tuple(each[:6] for each in labels_of(label_N, 0.3))
    few_NC = logits_NC[:6].double().requires_grad_()

    def loss(scores_NC: torch.Tensor) -> torch.Tensor:
        return bce_loss_reference(scores_NC, *labels, smoothing=0.1, threshold=threshold)

    assert loss(few_NC).dtype is torch.float64
    assert torch.autograd.gradcheck(loss, few_NC)


def test_bytes_are_the_logits_and_their_gradient() -> None:
    assert bce_bytes(512, 1000, torch.float16) == 512 * 1000 * (2 + 2)
    assert bce_bytes(3, 5, torch.float32) == 3 * 5 * (4 + 4)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("classes", [10, 1000, 21841])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_gpu_equals_the_reference(classes: int, dtype: torch.dtype, threshold: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NC = (4 * torch.randn(48, classes, generator=generator)).to("cuda", dtype)
    labels = [torch.randint(classes, (48,), generator=generator).cuda() for _ in range(2)]
    lam_N = torch.rand(48, generator=generator).cuda()
    leaves = [logits_NC.clone().requires_grad_() for _ in range(2)]
    losses = []
    for function, leaf in zip((bce_loss, bce_loss_reference), leaves, strict=True):
        loss = function(leaf, *labels, lam_N, smoothing=0.1, threshold=threshold)
        (loss * 65536).backward()  # as a GradScaler does
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)  # another formula and order of summing
    # rounded to the logits' type twice, the reference once; σ of float32 is good to 3e-7
    half_ulp = 0.5 * torch.finfo(dtype).eps
    rtol, atol = 3.1 * half_ulp + 1e-5, 3e-7 * 65536 / logits_NC.numel() + torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(leaves[0].grad.float(), leaves[1].grad.float(), rtol=rtol, atol=atol)
    again = bce_loss(logits_NC, *labels, lam_N, smoothing=0.1, threshold=threshold)
    assert torch.equal(again, losses[0].detach()), "the loss differs from call to call"


@pytest.mark.gpu
@gpu
def test_gpu_does_not_wait_and_fits_a_cuda_graph(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits_NC = batch[0].cuda().requires_grad_()
    labels = [each.cuda() for each in labels_of(batch[1], 0.3)]
    expected_NC = torch.autograd.grad(bce_loss(logits_NC, *labels, threshold=0.2), logits_NC)[0]  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bce_loss(logits_NC, *labels, threshold=0.2).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(logits_NC.grad, expected_NC)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad_NC = torch.autograd.grad(bce_loss(logits_NC, *labels, threshold=0.2), logits_NC)[0]
    with torch.no_grad():
        logits_NC.neg_()
    graph.replay()
    replayed_NC = grad_NC.clone()
    fresh_NC = torch.autograd.grad(bce_loss(logits_NC, *labels, threshold=0.2), logits_NC)[0]
    assert torch.equal(replayed_NC, fresh_NC)
