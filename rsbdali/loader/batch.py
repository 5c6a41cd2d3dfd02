"""What the loaders give: batches for training and for evaluation."""

from dataclasses import dataclass

import numpy as np
import torch

from rsbdali.plan.planner import BatchPlan


@dataclass(frozen=True)
class TrainBatch:
    """One mix group, ready for the model.

    Attributes:
        images: (N, 3, H, W), channels_last: mixed and normalized float; or uint8 as they are, if the loader's dtype is.
        label_N: int64, the row's own class.
        partner_label_N: int64, the class of the row mixed in.
        lam_N: float32, weight of `label_N`; 1 − λ is the partner's.
        epoch: epoch, counted from 0.
        step: optimizer step in the epoch.
        group: mix group within the global batch.
        plan: the plan that made it, images that were replaced included.
    """

    images: torch.Tensor
    label_N: torch.Tensor
    partner_label_N: torch.Tensor
    lam_N: torch.Tensor
    epoch: int
    step: int
    group: int
    plan: BatchPlan


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation images.

    Attributes:
        images: (N, 3, H, W), channels_last: normalized float; or uint8 as they are, if the loader's dtype is. N varies
            in the last batch and may be 0.
        label_N: int64.
        sample_N: int64, on the CPU: rows of the `ImageIndex`.
    """

    images: torch.Tensor
    label_N: torch.Tensor
    sample_N: np.ndarray
