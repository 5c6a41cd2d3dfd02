"""Losses against mixed labels: binary cross entropy (the paper's) and soft cross entropy, in float32.

A mixed row carries two labels and a weight, so its target is never stored by the loader:

    y = λ · smooth(label) + (1 − λ) · smooth(partner)        smooth: 1 − s + s/C on the class, s/C elsewhere

This is timm's `mixup_target` with a λ for every row. On a GPU `bce_loss` is one Triton kernel (`bce_kernel.py`) that
never builds y; the plain torch versions here are its reference, and what runs on the CPU.

Legend: N rows, C classes.
"""

import torch
import torch.nn.functional as F

from rsbdali.ops.backend import use_kernels

FUSED = (torch.float16, torch.bfloat16, torch.float32)


def soft_targets(
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    *,
    num_classes: int,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Dense targets of mixed rows (timm's `mixup_target`).

    Args:
        label_N: int64, the row's own class.
        partner_label_N: int64, the class mixed in.
        lam_N: float32, weight of `label_N`.
        num_classes: C.
        smoothing: s, label smoothing.

    Returns:
        float32, shape (N, C), on the labels' device. Where both labels are the same class their weights add up.
    """
    off = smoothing / num_classes
    lam_N1 = lam_N.float().unsqueeze(1)
    own_NC = _smooth_one_hot(label_N, num_classes, off, 1.0 - smoothing + off)
    partner_NC = _smooth_one_hot(partner_label_N, num_classes, off, 1.0 - smoothing + off)
    # in timm's order of operations, so that targets on the edge of the threshold fall on the same side
    return own_NC * lam_N1 + partner_NC * (1.0 - lam_N1)


def bce_loss(
    logits_NC: torch.Tensor,
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    *,
    smoothing: float = 0.0,
    threshold: float | None = None,
) -> torch.Tensor:
    """Binary cross entropy, mean over rows and classes (timm's `BinaryCrossEntropy` after `Mixup`).

    On a GPU one kernel makes loss and gradient, one more scales the gradient in backward; nothing waits, both can be
    captured in a CUDA graph, and the loss is the same bits every time. Least traffic of its memory: `bce_bytes`.

    Args:
        logits_NC: scores of any float dtype, in which their gradient comes too. Arithmetic is float32.
        label_N: int64, the row's own class, from 0 to C − 1.
        partner_label_N: int64, the class mixed in.
        lam_N: float32, weight of `label_N`.
        smoothing: label smoothing.
        threshold: targets strictly above it become 1, the others 0. It erases smoothing below it.

    Returns:
        float32 scalar.
    """
    if use_kernels(logits_NC.device) and logits_NC.dtype in FUSED:
        from rsbdali.ops.bce_kernel import bce_fused  # Triton takes a while to import, and a CPU needs none

        return bce_fused(logits_NC, label_N, partner_label_N, lam_N, smoothing, threshold)
    return bce_loss_reference(logits_NC, label_N, partner_label_N, lam_N, smoothing=smoothing, threshold=threshold)


def bce_loss_reference(
    logits_NC: torch.Tensor,
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    *,
    smoothing: float = 0.0,
    threshold: float | None = None,
) -> torch.Tensor:
    """`bce_loss` in plain torch, on any device. Logits of float64 stay so, and the loss is float64."""
    target_NC = soft_targets(label_N, partner_label_N, lam_N, num_classes=logits_NC.shape[1], smoothing=smoothing)
    if threshold is not None:
        target_NC = target_NC.gt(threshold).float()
    scores_NC = logits_NC if logits_NC.dtype is torch.float64 else logits_NC.float()
    return F.binary_cross_entropy_with_logits(scores_NC, target_NC.to(scores_NC.dtype))


def bce_bytes(rows: int, classes: int, dtype: torch.dtype) -> int:
    """Bytes that `bce_loss` has to read and write for loss and gradient: its floor, over the memory's bandwidth.

    Logits in, gradient out: 2·itemsize·N·C. Backward's multiplication reads and writes as much again.

    Args:
        rows: N.
        classes: C.
        dtype: of the logits.
    """
    return 2 * dtype.itemsize * rows * classes


def soft_cross_entropy(
    logits_NC: torch.Tensor,
    label_N: torch.Tensor,
    partner_label_N: torch.Tensor,
    lam_N: torch.Tensor,
    *,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy with the same targets, mean over rows (timm's `SoftTargetCrossEntropy`).

    Arguments and result as `bce_loss`.
    """
    target_NC = soft_targets(label_N, partner_label_N, lam_N, num_classes=logits_NC.shape[1], smoothing=smoothing)
    return torch.sum(-target_NC * F.log_softmax(logits_NC.float(), dim=-1), dim=-1).mean()


def _smooth_one_hot(label_N: torch.Tensor, num_classes: int, off: float, on: float) -> torch.Tensor:
    shape = (len(label_N), num_classes)
    return torch.full(shape, off, dtype=torch.float32, device=label_N.device).scatter_(1, label_N.unsqueeze(1), on)
