"""A user's transform of a batch, between augmentation and mixing, with draws that a resume repeats."""

from collections.abc import Callable

import torch

from rsbdali.errors import RecipeError

Transform = Callable[[torch.Tensor], torch.Tensor]


def apply_transform(transform: Transform, images_NHWC: torch.Tensor, seed: int) -> torch.Tensor:
    """`transform` of the images, while torch's generators start from `seed`; theirs come back afterwards.

    Args:
        transform: called with uint8 (N, 3, H, W), channels_last, on the loader's device; gives the same shape and type.
        images_NHWC: uint8 (N, H, W, 3); may be written.
        seed: of torch's generators of the CPU and of the images' device.

    Returns:
        uint8 (N, H, W, 3), contiguous.

    Raises:
        RecipeError: it gives something else.
    """
    device = images_NHWC.device
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        images = transform(images_NHWC.permute(0, 3, 1, 2))
    _check(images, images_NHWC)
    return images.permute(0, 2, 3, 1).contiguous()


def _check(images: torch.Tensor, given_NHWC: torch.Tensor) -> None:
    rows, height, width, _ = given_NHWC.shape
    expected = (rows, 3, height, width)
    if not isinstance(images, torch.Tensor):
        raise RecipeError(f"transform= gives {type(images).__name__}: expected a uint8 tensor of shape {expected}")
    if (images.dtype, tuple(images.shape), images.device) != (torch.uint8, expected, given_NHWC.device):
        raise RecipeError(
            f"transform= gives {images.dtype} {tuple(images.shape)} on {images.device}: expected torch.uint8 "
            f"{expected} on {given_NHWC.device} (mixing and normalizing come behind it)"
        )
