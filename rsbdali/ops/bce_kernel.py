"""`bce_loss` as one Triton kernel: loss and gradient from one reading of the logits, no target in memory.

The gradient of the mean is (σ(x) − y) / (N·C): at 512 × 1000 nearly all of it is below what float16 can hold. So
σ(x) − y, which is in [−1, 1], is stored in the logits' type; backward multiplies it by grad_output / (N·C), in
float32. With a GradScaler grad_output carries the scale, so the product is large enough by then. The gradient is
rounded twice that way, each time by half a unit of the logits' type.
"""

# mypy: allow-untyped-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

MAX_BLOCK = 1024  # classes a program
SCALE_BLOCK = 4096  # values a program, in backward
EXACT = {"enable_fp_fusion": False}  # a target on the edge of the threshold has to be rounded as in torch


@triton.jit
def bce_kernel(
    logits,
    labels,
    partners,
    lams,
    partials,
    residual,
    on,
    off,
    threshold,
    CLASSES: tl.constexpr,
    STRIDE: tl.constexpr,
    THRESHOLDED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of classes of one row: program (row, block). Writes the block's loss and, if RESIDUAL, σ(x) − y.

    Pointers to the logits' type, int64, int64, float32, float32 and the logits' type. To be compiled with
    the options EXACT.
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = at < CLASSES
    label = tl.load(labels + row)
    partner = tl.load(partners + row)
    lam = tl.load(lams + row)
    rest = 1.0 - lam
    # a row has at most four different targets
    neither = _target(off * lam + off * rest, threshold, THRESHOLDED)
    own = _target(on * lam + off * rest, threshold, THRESHOLDED)
    other = _target(off * lam + on * rest, threshold, THRESHOLDED)
    both = _target(on * lam + on * rest, threshold, THRESHOLDED)
    y = tl.where(at == label, tl.where(at == partner, both, own), tl.where(at == partner, other, neither))

    x = tl.load(logits + row.to(tl.int64) * STRIDE + at, mask=valid, other=0.0).to(tl.float32)
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    # log(1 + e) without the loss of what 1 + e rounds away (Kahan)
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    loss = tl.maximum(x, 0.0) - x * y + log1p
    tl.store(partials + row * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.where(valid, loss, 0.0)))
    if RESIDUAL:
        sigmoid = tl.where(x >= 0, 1.0, e) / u
        value = (sigmoid - y).to(residual.dtype.element_ty)
        tl.store(residual + row.to(tl.int64) * CLASSES + at, value, mask=valid)


@triton.jit
def _target(y, threshold, THRESHOLDED: tl.constexpr):
    if THRESHOLDED:
        y = tl.where(y > threshold, 1.0, 0.0)
    return y


@triton.jit
def scale_kernel(residual, grad, grad_output, share, total, BLOCK: tl.constexpr):
    """`grad` is residual · (grad_output · share), in float32; `grad_output` points to one float32 on the device."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(grad_output) * share
    value = tl.load(residual + at, mask=at < total, other=0.0).to(tl.float32) * scale
    tl.store(grad + at, value.to(grad.dtype.element_ty), mask=at < total)


def bce_fused(
    logits_NC: torch.Tensor,
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    smoothing: float,
    threshold: float | None,
) -> torch.Tensor:
    """`bce_loss` by the kernel; arguments and result as there. The residual is computed if a gradient is wanted."""
    arguments = (logits_NC, label_N, partner_label_N, lam_N, smoothing, threshold)
    if torch.is_grad_enabled() and logits_NC.requires_grad:
        loss: torch.Tensor = _FusedBCE.apply(*arguments)
        return loss
    return _launch(*arguments, None)


class _FusedBCE(torch.autograd.Function):
    """Loss forward, and what of the gradient is known by then; backward is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NC: torch.Tensor,
        label_N: torch.Tensor,
        partner_label_N: torch.Tensor,
        lam_N: torch.Tensor,
        smoothing: float,
        threshold: float | None,
    ) -> torch.Tensor:
        residual_NC = torch.empty(logits_NC.shape, dtype=logits_NC.dtype, device=logits_NC.device)
        loss = _launch(logits_NC, label_N, partner_label_N, lam_N, smoothing, threshold, residual_NC)
        ctx.save_for_backward(residual_NC)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (residual_NC,) = ctx.saved_tensors
        grad_NC, total = torch.empty_like(residual_NC), residual_NC.numel()
        with torch.cuda.device_of(residual_NC):
            scale_kernel[(triton.cdiv(total, SCALE_BLOCK),)](
                residual_NC, grad_NC, grad_output, 1 / total, total, BLOCK=SCALE_BLOCK
            )
        return grad_NC, None, None, None, None, None


def _launch(
    logits_NC: torch.Tensor,
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    smoothing: float,
    threshold: float | None,
    residual_NC: torch.Tensor | None,
) -> torch.Tensor:
    rows, classes = logits_NC.shape
    if logits_NC.stride(1) != 1:
        logits_NC = logits_NC.contiguous()
    block = min(MAX_BLOCK, triton.next_power_of_2(classes))
    # a partial sum each and torch's sum over them: no atomics, so the same loss every time
    partials = torch.empty((rows, triton.cdiv(classes, block)), dtype=torch.float32, device=logits_NC.device)
    off = smoothing / classes
    with torch.cuda.device_of(logits_NC):
        bce_kernel[tuple(partials.shape)](
            logits_NC,
            label_N.contiguous(),
            partner_label_N.contiguous(),
            lam_N.float().contiguous(),
            partials,
            partials if residual_NC is None else residual_NC,
            1.0 - smoothing + off,
            off,
            threshold or 0.0,
            CLASSES=classes,
            STRIDE=logits_NC.stride(0),
            THRESHOLDED=threshold is not None,
            RESIDUAL=residual_NC is not None,
            BLOCK=block,
            **EXACT,
        )
    return partials.sum() / (rows * classes)
