"""Whether to decode regions of interest: always on the CPU; on a GPU only where a self-test has shown it to work."""

from typing import Literal

import torch

DecodeMode = Literal["auto", "full", "roi"]


def use_roi(mode: DecodeMode, device: torch.device) -> bool:
    """True to decode only the crop of each image."""
    return mode == "roi" or (mode == "auto" and device.type == "cpu")
