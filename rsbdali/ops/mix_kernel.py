"""`mix_normalize` as one Triton kernel: each byte is read as often as the mix demands, each result written once.

An image in NHWC is one run of H·W·C values, cut into chunks of VEC: as many as a thread writes in one 16-byte store,
and few enough that a chunk never crosses a line. What depends on the position (line, column, which channel comes first)
is computed once a chunk; masks are the same for a whole chunk, so loads stay wide in CutMix too, where a chunk on the
edge of the box is read from both images and any other from one.

Programs of the same block of all images run together. The second read of a chunk, as another row's partner, can
then come from the L2 cache: N·BLOCK bytes are in use at a time, whatever the partners.
"""

# mypy: allow-untyped-defs
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

BLOCK = 4096  # values a program
STORE_BYTES = 16  # the widest store of a thread


@triton.jit(do_not_specialize=["count"])  # not compiled anew for another number of images
def mix_kernel(
    images,
    out,
    rows,
    count,
    scale0,
    scale1,
    scale2,
    shift0,
    shift1,
    shift2,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one image. Pointers to uint8, the result's type and int32 (see `pack`); `count` images."""
    LINE: tl.constexpr = WIDTH * 3
    image = tl.program_id(0) % count
    block = tl.program_id(0) // count
    row = rows + image * 6
    partner = tl.load(row)
    lam = tl.load(row + 1).to(tl.float32, bitcast=True)
    top = tl.load(row + 2)
    bottom = tl.load(row + 3)
    left = tl.load(row + 4) * 3
    right = tl.load(row + 5) * 3
    boxed = (bottom > top) & (right > left)
    alone = partner == image
    mixup = (boxed == 0) & (alone == 0) & (lam != 0.0) & (lam != 1.0)
    # without a mixup all is CutMix: λ = 0 is a box as large as the image, a row mixed with itself an empty one
    whole = (boxed == 0) & (lam == 0.0)
    top = tl.where(whole, 0, top)
    bottom = tl.where(alone, top, tl.where(whole, HEIGHT, bottom))
    left = tl.where(whole, 0, left)
    right = tl.where(whole, LINE, right)

    first = (block * (BLOCK // VEC) + tl.arange(0, BLOCK // VEC)) * VEC
    k = tl.arange(0, VEC)[None, :]
    y = first // LINE
    x = first % LINE
    in_lines = (y >= top) & (y < bottom)
    low = tl.where(in_lines, left - x, VEC)
    high = tl.where(in_lines, right - x, 0)
    valid = first < HEIGHT * LINE
    inside = (k >= low[:, None]) & (k < high[:, None])
    some_inside = valid & (low < VEC) & (high > 0)
    some_outside = valid & ((low > 0) | (high < VEC))

    offset = first[:, None] + k
    stored = valid[:, None] & (k >= 0)
    own = images + image.to(tl.int64) * (HEIGHT * LINE) + offset
    other = images + partner.to(tl.int64) * (HEIGHT * LINE) + offset
    if mixup:
        own_level = tl.load(own, mask=stored, other=0).to(tl.float32)
        other_level = tl.load(other, mask=stored, other=0).to(tl.float32)
        level = own_level * lam + other_level * (1.0 - lam)
    else:
        own_byte = tl.load(own, mask=some_outside[:, None] & (k >= 0), other=0)
        other_byte = tl.load(other, mask=some_inside[:, None] & (k >= 0), other=0)
        level = tl.where(inside, other_byte, own_byte).to(tl.float32)
    scale = _by_channel(first, k, scale0, scale1, scale2)
    shift = _by_channel(first, k, shift0, shift1, shift2)
    value = (level * scale + shift).to(out.dtype.element_ty)
    tl.store(out + image.to(tl.int64) * (HEIGHT * LINE) + offset, value, mask=stored)


@triton.jit
def _by_channel(first, k, value0, value1, value2):
    """The channel's value at each offset. `k % 3` is known when compiled, so an offset costs no arithmetic."""
    phase = (first % 3)[:, None]
    at0 = tl.where(phase == 0, value0, tl.where(phase == 1, value1, value2))
    at1 = tl.where(phase == 0, value1, tl.where(phase == 1, value2, value0))
    at2 = tl.where(phase == 0, value2, tl.where(phase == 1, value0, value1))
    return tl.where(k % 3 == 0, at0, tl.where(k % 3 == 1, at1, at2))


def chunk(width: int, dtype: torch.dtype) -> int:
    """VEC: values of a chunk, a power of two; 8 for a 16-bit result where the width divides by 8."""
    return math.gcd(width * 3, STORE_BYTES // dtype.itemsize)


def mix_fused(
    images_NHWC: torch.Tensor, rows_N6: torch.Tensor, mean: Sequence[float], std: Sequence[float], out: torch.Tensor
) -> torch.Tensor:
    """`mix_normalize` in one launch on the current stream, without waiting.

    Args:
        images_NHWC: uint8, three channels, contiguous.
        rows_N6: int32, from `mix.pack`, on the same device.
        mean: of the three channels, as a share of 255.
        std: likewise.
        out: (N, 3, H, W), channels_last, float16, bfloat16 or float32: the result's memory.

    Returns:
        `out`.
    """
    rows, height, width, _ = images_NHWC.shape
    assert images_NHWC.is_contiguous()
    assert out.shape[1] == 3
    assert out.permute(0, 2, 3, 1).is_contiguous()
    if not images_NHWC.numel():
        return out
    scales = [1 / (255 * s) for s in std]
    shifts = [-m / s for m, s in zip(mean, std, strict=True)]
    grid = (rows * triton.cdiv(height * width * 3, BLOCK),)
    with torch.cuda.device_of(images_NHWC):
        mix_kernel[grid](
            images_NHWC,
            out,
            rows_N6,
            rows,
            *scales,
            *shifts,
            HEIGHT=height,
            WIDTH=width,
            VEC=chunk(width, out.dtype),
            BLOCK=BLOCK,
        )
    return out
