"""`erase` as a Triton kernel: one program a box and block of its pixels, one launch for each box number of the rows."""

# mypy: allow-untyped-defs
import numpy as np
import torch
import triton
import triton.language as tl

from rsbdali.distributed.devices import to_device
from rsbdali.ops.noise import ROUNDS
from rsbdali.plan.erasing import MODES

BLOCK = 512  # pixels a program
CONST, RAND = tl.constexpr(MODES.index("const")), tl.constexpr(MODES.index("rand"))
FIELDS = 6  # of a packed box: key, row, y0, y1, x0, x1


@triton.jit(do_not_specialize=["number"])  # not compiled anew for another box
def erase_kernel(
    images,
    boxes,
    number,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    MODE: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one box. Pointers to the images' type, (N, H, W, 3), and int64 (boxes, 6); `number` in the row."""
    box = boxes + tl.program_id(0) * 6
    key = tl.load(box)
    row = tl.load(box + 1)
    top = tl.load(box + 2).to(tl.int32)
    bottom = tl.load(box + 3).to(tl.int32)
    left = tl.load(box + 4).to(tl.int32)
    width = tl.load(box + 5).to(tl.int32) - left
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < (bottom - top) * width
    pixel = (top + offset // width) * WIDTH + left + offset % width
    target = images + row * (HEIGHT * WIDTH * 3) + pixel * 3
    if MODE == CONST:
        zero = tl.zeros([BLOCK], tl.float32)
        for channel in tl.static_range(3):
            tl.store(target + channel, zero, mask=inside)
    else:
        counter = tl.zeros_like(pixel) if MODE == RAND else pixel
        zeros = tl.zeros_like(pixel)
        w0, w1, w2, w3 = tl.philox(key, counter, zeros + number, zeros, zeros, ROUNDS)
        radius = tl.sqrt(-2.0 * tl.log(_uniform(w0)))
        angle = _uniform(w1) * 6.283185307179586
        tl.store(target, radius * tl.cos(angle), mask=inside)
        tl.store(target + 1, radius * tl.sin(angle), mask=inside)
        blue = tl.sqrt(-2.0 * tl.log(_uniform(w2))) * tl.cos(_uniform(w3) * 6.283185307179586)
        tl.store(target + 2, blue, mask=inside)


@triton.jit
def _uniform(word):
    """The upper 24 bits as float32 in (0, 1]."""
    return ((word >> 8).to(tl.float32) + 0.5) * 5.960464477539063e-08


def erase_fused(images_NCHW: torch.Tensor, box_NK4: np.ndarray, key_N: np.ndarray, mode: str) -> torch.Tensor:
    """`erase` on the current stream, without waiting."""
    _, _, height, width = images_NCHW.shape
    assert images_NCHW.is_contiguous(memory_format=torch.channels_last)
    shape = {"HEIGHT": height, "WIDTH": width, "MODE": MODES.index(mode), "ROUNDS": ROUNDS, "BLOCK": BLOCK}
    with torch.cuda.device_of(images_NCHW):
        for number in range(box_NK4.shape[1]):
            box_N4 = box_NK4[:, number].astype(np.int64)
            area_N = (box_N4[:, 1] - box_N4[:, 0]) * (box_N4[:, 3] - box_N4[:, 2])
            row_E = np.flatnonzero(area_N)
            if len(row_E):
                packed_E6 = np.column_stack([key_N[row_E], row_E, box_N4[row_E]])
                grid = (len(row_E), triton.cdiv(int(area_N.max()), BLOCK))
                erase_kernel[grid](images_NCHW, to_device(packed_E6, images_NCHW.device), number, **shape)
    return images_NCHW
