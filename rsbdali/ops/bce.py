"""Losses against mixed labels: binary cross entropy (the paper's) and soft cross entropy, in float32.

A mixed row carries two labels and a weight, so its target is never stored by the loader:

    y = λ · smooth(label) + (1 − λ) · smooth(partner)        smooth: 1 − s + s/C on the class, s/C elsewhere

This is timm's `mixup_target` with a λ for every row. The plain torch versions here are the reference for fused ones.

Legend: N rows, C classes.
"""

import torch
import torch.nn.functional as F


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

    Args:
        logits_NC: scores of any float dtype; the loss is computed in float32.
        label_N: int64, the row's own class.
        partner_label_N: int64, the class mixed in.
        lam_N: float32, weight of `label_N`.
        smoothing: label smoothing.
        threshold: targets strictly above it become 1, the others 0. It erases smoothing below it.

    Returns:
        float32 scalar.
    """
    target_NC = soft_targets(label_N, partner_label_N, lam_N, num_classes=logits_NC.shape[1], smoothing=smoothing)
    if threshold is not None:
        target_NC = target_NC.gt(threshold).float()
    return F.binary_cross_entropy_with_logits(logits_NC.float(), target_NC)


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
    return torch.full(shape, off, device=label_N.device).scatter_(1, label_N.unsqueeze(1), on)
