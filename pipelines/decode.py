"""Graph pieces that train and eval share: decode, resize, the codes of resize filters."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from nvidia.dali import fn, types

from rsbdali.pipelines.executor import ImageSource
from rsbdali.plan.randaugment import BICUBIC, BILINEAR

# by plan code; with antialias=True linear is Pillow's triangle filter, cubic its a = -0.5 cubic
_FILTERS = np.array([0, 0], np.int32)
_FILTERS[BILINEAR] = int(types.INTERP_LINEAR)
_FILTERS[BICUBIC] = int(types.INTERP_CUBIC)


def filter_codes(interp_N: np.ndarray) -> np.ndarray:
    """DALI's filter numbers (int32) for the plan's BILINEAR and BICUBIC."""
    return _FILTERS[interp_N]


def gpu_settings(index: ImageSource, hw_decoder_load: float | None = None) -> dict[str, Any]:
    """Settings of DALI's mixed decoder that suit these images.

    Chroma is upsampled as libjpeg-turbo and Pillow do it. The JPEG engine's buffers get room for all but the largest
    hundredth of the images from the start; DALI's own guess is one pixel, and every larger image moves them.

    Args:
        index: the images.
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine, where it has one; None for DALI's 0.65.
    """
    width, height = (int(np.percentile(side_N, 99)) for side_N in (index.width_N, index.height_N))
    settings: dict[str, Any] = {
        "jpeg_fancy_upsampling": True,
        "preallocate_width_hint": width,
        "preallocate_height_hint": height,
    }
    return settings if hw_decoder_load is None else settings | {"hw_decoder_load": hw_decoder_load}


def said_load(hw_decoder_load: float | None) -> str:
    """For `pixels`: the JPEG engine's pixels are not those of the GPU's other decoders."""
    return "" if hw_decoder_load is None else f", hw_decoder_load {hw_decoder_load:g}"


def decode(encoded: Any, *, device: str, settings: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Whole images, uint8 HWC RGB, EXIF orientation not applied (as timm).

    Args:
        encoded: uint8 node, the encoded images.
        device: 'cpu' or 'gpu'.
        settings: of the GPU's decoder (`gpu_settings`).
    """
    if device == "cpu":
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=False)
    return fn.decoders.image(encoded, device="mixed", output_type=types.RGB, adjust_orientation=False, **settings)


def decode_window(
    encoded: Any,
    start: Any,
    shape: Any,
    *,
    device: str,
    roi: bool,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Exactly the pixels of a window of each image, uint8 HWC RGB.

    Args:
        encoded: uint8 node, the encoded images.
        start: int32 node, (y, x) of each window in source pixels.
        shape: int32 node, (h, w) of each window.
        device: 'cpu' or 'gpu'.
        roi: decode only what the window needs; else the whole image, then slice. On a GPU nvImageCodec 0.9 breaks at
            regions of JPEGs, with an error or a crash (its issue 55).
        settings: of the GPU's decoder for whole images (`gpu_settings`).
    """
    if not roi:
        return fn.slice(decode(encoded, device=device, settings=settings), start=start, shape=shape, axes=(0, 1))
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
