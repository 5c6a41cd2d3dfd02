"""Resize a box of an image and cut the output out of the result, padded where the result is smaller.

Source: timm's `center_crop_or_pad`, by way of torchvision's `pad` for images of Pillow.
"""

import numpy as np

from rsbdali.pipelines.host.resize import Resize

Size = tuple[int, int]


def resize_and_pad(
    resize: Resize,
    window_HWC: np.ndarray,
    box: tuple[int, int, int, int],
    out_HWC: np.ndarray,
    interp: int,
    *,
    size: Size,
    offset: Size,
    fill: tuple[int, int, int] | None,
    mirror: bool = False,
) -> None:
    """Fill `out_HWC`.

    Args:
        resize: the way to resize.
        window_HWC: uint8, an image or a part of one.
        box: (y, x, h, w) in the window: what is resized.
        out_HWC: uint8, receives the result.
        interp: filter.
        size: (h, w) that the box is resized to.
        offset: (y, x) in the resized image where the output begins; below 0 for so many pixels of padding before it.
        fill: color of the padding; None mirrors the image at its edges.
        mirror: whether to flip the result left to right.
    """
    height, width, _ = out_HWC.shape
    if min(offset) >= 0 and size[0] >= height and size[1] >= width:
        resize(window_HWC, box, out_HWC, interp, mirror=mirror, size=size, offset=offset)
        return
    inner_HWC = np.empty((min(height, size[0]), min(width, size[1]), 3), np.uint8)
    start = max(offset[0], 0), max(offset[1], 0)
    resize(window_HWC, box, inner_HWC, interp, size=size, offset=start)
    top, left = max(-offset[0], 0), max(-offset[1], 0)
    bottom, right = height - inner_HWC.shape[0] - top, width - inner_HWC.shape[1] - left
    if fill is None:
        padded_HWC = np.pad(inner_HWC, ((top, bottom), (left, right), (0, 0)), "reflect")
    else:
        padded_HWC = np.tile(np.array(fill, np.uint8), (height, width, 1))
        padded_HWC[top : height - bottom, left : width - right] = inner_HWC
    np.copyto(out_HWC, padded_HWC[:, ::-1] if mirror else padded_HWC)
