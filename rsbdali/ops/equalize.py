"""Pillow's equalize in torch, to the bit, on the CPU or a GPU; DALI's `fn.equalize` builds another table."""

import torch


def equalize(images_NHWC: torch.Tensor) -> torch.Tensor:
    """Histogram equalization of each channel as `PIL.ImageOps.equalize`, uint8 in and out."""
    n, height, width, channels = images_NHWC.shape
    planes_KP = images_NHWC.permute(0, 3, 1, 2).reshape(n * channels, height * width).long()
    histogram_KV = torch.zeros(len(planes_KP), 256, dtype=torch.int64, device=images_NHWC.device)
    histogram_KV.scatter_add_(1, planes_KP, torch.ones_like(planes_KP))
    brightest_K1 = histogram_KV.gather(1, planes_KP.amax(1, keepdim=True))
    step_K1 = torch.div(height * width - brightest_K1, 255, rounding_mode="floor")
    below_KV = histogram_KV.cumsum(1) - histogram_KV
    divisor_K1 = step_K1.clamp(min=1)
    table_KV = torch.div(divisor_K1 // 2 + below_KV, divisor_K1, rounding_mode="floor").clamp(max=255)
    # a step of 0 (nearly one gray level) leaves the channel as it is
    equalized_KP = torch.where(step_K1 == 0, planes_KP, table_KV.gather(1, planes_KP))
    return equalized_KP.to(torch.uint8).view(n, channels, height, width).permute(0, 2, 3, 1).contiguous()
