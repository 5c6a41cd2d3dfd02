"""RandAugment's ops on one image by Pillow, as timm calls it: the reference, and what runs where Numba cannot."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rsbdali.ops.pillow_ops import apply_layers
from rsbdali.plan.randaugment import FILL_RGB


def augment(
    image_HWC: np.ndarray,
    op_L: Sequence[int],
    arg_L: Sequence[float],
    interp_L: Sequence[int],
    fill: tuple[int, ...] = FILL_RGB,
) -> None:
    """Apply one image's layers in turn, in place.

    Args:
        image_HWC: uint8, shape (H, W, 3), contiguous and writable.
        op_L: values of `Op`; NONE skips a layer.
        arg_L: the ops' arguments (`plan.randaugment.level_to_arg`).
        interp_L: BILINEAR or BICUBIC, for geometric ops.
        fill: levels of R, G and B outside the image.
    """
    image = Image.fromarray(image_HWC)
    augmented = apply_layers(image, op_L, arg_L, interp_L, fill)
    if augmented is not image:
        np.copyto(image_HWC, np.asarray(augmented))
