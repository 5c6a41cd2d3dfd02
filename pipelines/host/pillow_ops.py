"""Ops of which there is no loop and no kernel: Pillow and torchvision themselves, image by image.

Sources: `timm.data.auto_augment.gaussian_blur`; torchvision's `GaussianBlur(kernel_size=23)` and `adjust_hue`, as
timm's `transforms_imagenet_train` calls them.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from rsbdali.plan.randaugment import HOST_OPS, Op

TAPS = 23


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Pillow's approximation by box blurs; radius in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius=radius))


def gaussian_filter(image: Image.Image, sigma: float) -> Image.Image:
    """Torchvision's convolution in float32, rounded; sigma in pixels."""
    from torchvision.transforms import functional  # takes a while to import, and few recipes blur

    blurred: Image.Image = functional.gaussian_blur(image, TAPS, sigma)
    return blurred


def turn_hue(image: Image.Image, share: float) -> Image.Image:
    """Add a share of the circle, -0.5 to 0.5, to the hue in Pillow's HSV, in 256 steps, toward zero."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(share * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned, "L"), saturation, value)).convert("RGB")


OPS: dict[int, Callable[[Image.Image, float], Image.Image]] = {
    Op.GAUSSIAN_BLUR: gaussian_blur,
    Op.GAUSSIAN_FILTER: gaussian_filter,
    Op.HUE: turn_hue,
}
assert set(OPS) == HOST_OPS


def apply(image_HWC: np.ndarray, op: int, arg: float) -> None:
    """One op of `OPS` in place; uint8, contiguous."""
    np.copyto(image_HWC, np.asarray(OPS[op](Image.fromarray(image_HWC), arg)))
