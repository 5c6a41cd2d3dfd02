"""Losses against timm: `mixup_target`, `BinaryCrossEntropy`, `SoftTargetCrossEntropy`."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from rsbdali.ops.bce import bce_loss, soft_cross_entropy, soft_targets

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
