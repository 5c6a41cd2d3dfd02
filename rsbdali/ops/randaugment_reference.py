"""RandAugment and the flip by Pillow, image by image: the meaning of `ops.randaugment`, not the fast way."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rsbdali.ops.pillow_ops import apply_layers


def randaugment_reference(
    images_NHWC: torch.Tensor,
    flip_N: np.ndarray,
    op_NL: np.ndarray,
    arg_NL: np.ndarray,
    op_interp_NL: np.ndarray,
    *,
    fill: Sequence[int],
) -> torch.Tensor:
    """`randaugment` by Pillow, on any device: the images travel to the host and back."""
    out_NHWC = np.empty(images_NHWC.shape, np.uint8)
    rows = zip(images_NHWC.cpu().numpy(), flip_N, op_NL, arg_NL, op_interp_NL, strict=True)
    for row, (image_HWC, flip, op_L, arg_L, interp_L) in enumerate(rows):
        image = Image.fromarray(image_HWC)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        out_NHWC[row] = np.asarray(apply_layers(image, op_L, arg_L, interp_L, tuple(fill)))
    return torch.from_numpy(out_NHWC).to(images_NHWC.device)
