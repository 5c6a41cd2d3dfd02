"""`warp` as one Triton kernel for the GPU: each pixel is read and written once, its taps stay in registers.

In torch the doubles of sixteen taps go through memory a dozen times; at 512 images of 160 px that is gigabytes a batch.
The arithmetic and its order are those of `warp.py`; fused multiply-adds are off, since Pillow's C code has none.
"""

# mypy: allow-untyped-defs
import torch
import triton
import triton.language as tl

from rsbdali.ops.pillow_cubic import cubic_taps
from rsbdali.plan.randaugment import FILL_RGB

BLOCK = 256
FILL_R, FILL_G, FILL_B = (tl.constexpr(level) for level in FILL_RGB)


@triton.jit
def warp_kernel(images, out, matrices, cubics, height, width, BLOCK: tl.constexpr):
    """One block of pixels of one image: program (image, block). Pointers to uint8, uint8, float64 and int32."""
    image = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < height * width
    start = image.to(tl.int64) * height * width * 3
    matrix = matrices + image * 6
    x = (pixel % width).to(tl.float64) + 0.5
    y = (pixel // width).to(tl.float64) + 0.5
    x_in = tl.load(matrix) * x + tl.load(matrix + 1) * y + tl.load(matrix + 2)
    y_in = tl.load(matrix + 3) * x + tl.load(matrix + 4) * y + tl.load(matrix + 5)
    inside = (x_in >= 0) & (x_in < width) & (y_in >= 0) & (y_in < height)
    x_in -= 0.5
    y_in -= 0.5
    left = tl.floor(x_in)
    top = tl.floor(y_in)
    dx = x_in - left
    dy = y_in - top
    # far outside, where only the fill shows, positions must still be addresses
    left = tl.minimum(tl.maximum(left, -2.0), width + 1.0).to(tl.int32)
    top = tl.minimum(tl.maximum(top, -2.0), height + 1.0).to(tl.int32)
    is_cubic = tl.load(cubics + image)
    for channel in tl.static_range(3):
        source = images + start + channel
        if is_cubic:
            value = cubic_taps(
                _cubic_line(source, left, top - 1, dx, height, width),
                _cubic_line(source, left, top, dx, height, width),
                _cubic_line(source, left, top + 1, dx, height, width),
                _cubic_line(source, left, top + 2, dx, height, width),
                dy,
            )
        else:
            upper = _linear_line(source, left, top, dx, height, width)
            value = upper + (_linear_line(source, left, top + 1, dx, height, width) - upper) * dy
        fill = FILL_R if channel == 0 else (FILL_G if channel == 1 else FILL_B)
        # truncated, as C's cast does
        level = tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)
        tl.store(out + start + pixel * 3 + channel, tl.where(inside, level, fill).to(tl.uint8), mask=valid)


@triton.jit
def _tap(source, column, row, height, width):
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    return tl.load(source + (row * width + column) * 3).to(tl.float64)


@triton.jit
def _linear_line(source, left, row, dx, height, width):
    first = _tap(source, left, row, height, width)
    return first + (_tap(source, left + 1, row, height, width) - first) * dx


@triton.jit
def _cubic_line(source, left, row, dx, height, width):
    return cubic_taps(
        _tap(source, left - 1, row, height, width),
        _tap(source, left, row, height, width),
        _tap(source, left + 1, row, height, width),
        _tap(source, left + 2, row, height, width),
        dx,
    )


def warp_fused(images_NHWC: torch.Tensor, matrix_N6: torch.Tensor, cubic_N: torch.Tensor) -> torch.Tensor:
    """`warp` with a filter per image, in one pass.

    Args:
        images_NHWC: uint8, contiguous, three channels.
        matrix_N6: float64, see `affine_matrices`.
        cubic_N: bool, bicubic where true, else bilinear.

    Returns:
        uint8, same shape.
    """
    n, height, width, _ = images_NHWC.shape
    out_NHWC = torch.empty_like(images_NHWC)
    grid = (n, triton.cdiv(height * width, BLOCK))
    with torch.cuda.device_of(images_NHWC):
        warp_kernel[grid](
            images_NHWC,
            out_NHWC,
            matrix_N6.contiguous(),
            cubic_N.to(torch.int32),
            height,
            width,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
    return out_NHWC
