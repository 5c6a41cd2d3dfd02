"""Graph pieces that train and eval share: decode, resize, the codes of resize filters."""

from typing import Any

import numpy as np
from nvidia.dali import fn, types

from rsbdali.plan.randaugment import BICUBIC, BILINEAR

# by plan code; with antialias=True linear is Pillow's triangle filter, cubic its a = -0.5 cubic
_FILTERS = np.array([0, 0], np.int32)
_FILTERS[BILINEAR] = int(types.INTERP_LINEAR)
_FILTERS[BICUBIC] = int(types.INTERP_CUBIC)


def filter_codes(interp_N: np.ndarray) -> np.ndarray:
    """DALI's filter numbers (int32) for the plan's BILINEAR and BICUBIC."""
    return _FILTERS[interp_N]


def decode(encoded: Any, *, device: str) -> Any:
    """Whole images, uint8 HWC RGB, EXIF orientation not applied (as timm).

    Args:
        encoded: uint8 node, the encoded images.
        device: 'cpu' or 'gpu'.
    """
    decoder = "mixed" if device == "gpu" else "cpu"
    return fn.decoders.image(encoded, device=decoder, output_type=types.RGB, adjust_orientation=False)


def decode_window(encoded: Any, start: Any, shape: Any, *, device: str, roi: bool) -> Any:
    """Exactly the pixels of a window of each image, uint8 HWC RGB.

    Args:
        encoded: uint8 node, the encoded images.
        start: int32 node, (y, x) of each window in source pixels.
        shape: int32 node, (h, w) of each window.
        device: 'cpu' or 'gpu'.
        roi: decode only what the window needs; else the whole image, then slice.
    """
    if not roi:
        return fn.slice(decode(encoded, device=device), start=start, shape=shape, axes=(0, 1))
    return fn.decoders.image_slice(
        encoded,
        start=start,
        shape=shape,
        axes=(0, 1),
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
    )


def resize(images: Any, size: Any, filters: Any) -> Any:
    """Antialiased resize to `size` (h, w), with a filter per sample (int32 node, `filter_codes`)."""
    codes = fn.cast(filters, dtype=types.DALIDataType.INTERP_TYPE)
    return fn.resize(images, size=size, interp_type=codes, antialias=True)
