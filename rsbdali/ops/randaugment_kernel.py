"""RandAugment and the flip as Triton kernels, two launches a layer, equal to Pillow to the bit.

`tables` makes three tables of 256 levels for each image whose op maps a level to a level: one program an image, which
counts a histogram first where the op needs one. `apply` makes the pixels: a copy, the table, color, sharpness or a
warp; in the first layer it reads mirrored where the row says flip.

Arithmetic and its order are Pillow's: float64 in warps and AutoContrast (`Geometry.c`, `ImageOps`), float32 in blends
(`Blend.c`), integers elsewhere; levels are cut off, not rounded. Fused multiply-adds are off, since Pillow has none.
"""

# mypy: allow-untyped-defs
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from rsbdali.distributed.devices import to_device
from rsbdali.ops.pillow_cubic import cubic_taps
from rsbdali.ops.warp import affine_matrices
from rsbdali.plan.randaugment import BICUBIC, WARPS, Op

TABLE_BLOCK = 1024  # pixels a program of `tables` counts at a time
APPLY_BLOCK = 256  # pixels a program of `apply` makes
EXACT = {"enable_fp_fusion": False}  # compiler options without which the last bit is wrong

TABLE_OPS = (
    Op.AUTO_CONTRAST,
    Op.EQUALIZE,
    Op.INVERT,
    Op.POSTERIZE,
    Op.SOLARIZE,
    Op.SOLARIZE_ADD,
    Op.CONTRAST,
    Op.BRIGHTNESS,
)

AUTO_CONTRAST = tl.constexpr(int(Op.AUTO_CONTRAST))
EQUALIZE = tl.constexpr(int(Op.EQUALIZE))
INVERT = tl.constexpr(int(Op.INVERT))
ROTATE = tl.constexpr(int(Op.ROTATE))
POSTERIZE = tl.constexpr(int(Op.POSTERIZE))
SOLARIZE = tl.constexpr(int(Op.SOLARIZE))
SOLARIZE_ADD = tl.constexpr(int(Op.SOLARIZE_ADD))
COLOR = tl.constexpr(int(Op.COLOR))
CONTRAST = tl.constexpr(int(Op.CONTRAST))
BRIGHTNESS = tl.constexpr(int(Op.BRIGHTNESS))
SHARPNESS = tl.constexpr(int(Op.SHARPNESS))

# A row of the packed arguments, eight words of 64 bits: op, flags, then six float64. The six are a warp's matrix; the
# first of them is any other op's argument.
OP, FLAGS, VALUES, ROW = (tl.constexpr(word) for word in (0, 1, 2, 8))
FLIP, CUBIC = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def tables_kernel(
    images,
    tables,
    rows,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The tables of one image; nothing for an op that needs none. Pointers to uint8, uint8 (N, 3, 256) and int64."""
    image = tl.program_id(0)
    row = rows + image * ROW
    op = tl.load(row + OP).to(tl.int32)
    arg = tl.load(row + VALUES).to(tl.float64, bitcast=True)
    source = images + image.to(tl.int64) * (HEIGHT * WIDTH * 3)
    table = tables + image * 768
    level = tl.arange(0, 256)
    if (op == AUTO_CONTRAST) | (op == EQUALIZE):
        for channel in tl.static_range(3):
            histogram = _histogram(source + channel, HEIGHT * WIDTH, BLOCK)
            if op == AUTO_CONTRAST:
                mapped = _auto_contrast(histogram, level)
            else:
                mapped = _equalize(histogram, level, HEIGHT * WIDTH)
            tl.store(table + channel * 256 + level, mapped.to(tl.uint8))
    elif (op == CONTRAST) | (op == BRIGHTNESS):
        mean = 0.0
        if op == CONTRAST:
            mean = _mean_luma(source, HEIGHT * WIDTH, BLOCK)
        _store_for_all(table, level, _blend(mean, level.to(tl.float32), arg.to(tl.float32)))
    elif op == INVERT:
        _store_for_all(table, level, 255 - level)
    elif (op == POSTERIZE) | (op == SOLARIZE) | (op == SOLARIZE_ADD):
        # beyond this range nothing changes any more, and the conversion would overflow
        whole = tl.minimum(tl.maximum(arg, -256.0), 256.0).to(tl.int32)
        if op == POSTERIZE:
            bits = tl.minimum(tl.maximum(whole, 0), 8)
            mapped = level & (256 - (1 << (8 - bits)))
        elif op == SOLARIZE:
            mapped = tl.where(level < whole, level, 255 - level)
        else:
            mapped = tl.where(level < 128, tl.minimum(tl.maximum(level + whole, 0), 255), level)
        _store_for_all(table, level, mapped)


@triton.jit
def _store_for_all(table, level, mapped):
    for channel in tl.static_range(3):
        tl.store(table + channel * 256 + level, mapped.to(tl.uint8))


@triton.jit
def _histogram(source, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    histogram = tl.zeros([256], tl.int32)
    for first in range(0, COUNT, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        levels = tl.load(source + pixel * 3, mask=pixel < COUNT, other=0).to(tl.int32)
        histogram += tl.histogram(levels, 256)
    PADDING: tl.constexpr = (BLOCK - COUNT % BLOCK) % BLOCK  # counted as black
    return histogram - tl.where(tl.arange(0, 256) == 0, PADDING, 0)


@triton.jit
def _auto_contrast(histogram, level):
    low = tl.min(tl.where(histogram > 0, level, 255), axis=0)
    high = tl.max(tl.where(histogram > 0, level, 0), axis=0)
    flat = high <= low
    scale = 255.0 / tl.where(flat, 255, high - low).to(tl.float64)
    stretched = level.to(tl.float64) * scale + -low.to(tl.float64) * scale
    return tl.where(flat, level, tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32))


@triton.jit
def _equalize(histogram, level, COUNT: tl.constexpr):
    brightest = tl.max(tl.where(histogram > 0, level, 0), axis=0)
    step = (COUNT - tl.sum(tl.where(level == brightest, histogram, 0), axis=0)) // 255
    below = tl.cumsum(histogram, axis=0) - histogram
    divisor = tl.maximum(step, 1)
    # a step of 0 (nearly one level) leaves the channel as it is
    return tl.where(step == 0, level, tl.minimum((divisor // 2 + below) // divisor, 255))


@triton.jit
def _mean_luma(source, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int64)
    for first in range(0, COUNT, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        inside = pixel < COUNT
        red = tl.load(source + pixel * 3, mask=inside, other=0).to(tl.int32)
        green = tl.load(source + pixel * 3 + 1, mask=inside, other=0).to(tl.int32)
        blue = tl.load(source + pixel * 3 + 2, mask=inside, other=0).to(tl.int32)
        total += _luma(red, green, blue)  # 0 for black
    return ((tl.sum(total, axis=0) * 2 + COUNT) // (2 * COUNT)).to(tl.float32)


@triton.jit
def _luma(red, green, blue):
    """Pillow's RGB to L."""
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@triton.jit
def _blend(base, value, factor):
    """From `base` to `value` and, for a factor above 1, beyond; float32."""
    return tl.minimum(tl.maximum(base + factor * (value - base), 0.0), 255.0).to(tl.int32)


@triton.jit(do_not_specialize=["fill0", "fill1", "fill2"])
def apply_kernel(
    images,
    out,
    tables,
    rows,
    fill0,
    fill1,
    fill2,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of pixels of one image: program (image, block). Pointers to uint8, three of them, and int64."""
    image = tl.program_id(0)
    row = rows + image * ROW
    op = tl.load(row + OP).to(tl.int32)
    flags = tl.load(row + FLAGS).to(tl.int32)
    flip = (flags & FLIP) != 0
    start = image.to(tl.int64) * (HEIGHT * WIDTH * 3)
    source = images + start
    first = tl.program_id(1) * BLOCK
    if (op == ROTATE) | (op > SHARPNESS):
        cubic = (flags & CUBIC) != 0
        _warp(source, out + start, first, row + VALUES, cubic, flip, fill0, fill1, fill2, HEIGHT, WIDTH, BLOCK)
    elif (op == SHARPNESS) | (op == COLOR):
        factor = tl.load(row + VALUES).to(tl.float64, bitcast=True).to(tl.float32)
        if op == COLOR:
            _color(source, out + start, first, factor, flip, HEIGHT, WIDTH, BLOCK)
        else:
            _sharpness(source, out + start, first, factor, flip, HEIGHT, WIDTH, BLOCK)
    else:
        _look_up(source, out + start, first, tables + image * 768, op >= 0, flip, HEIGHT, WIDTH, BLOCK)


@triton.jit
def _look_up(
    source,
    out,
    first,
    table,
    by_table,
    flip,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The copy, and the ops with a table. It goes by bytes, three blocks of them, so that stores are wide."""
    for part in tl.static_range(3):
        byte = first * 3 + part * BLOCK + tl.arange(0, BLOCK)
        valid = byte < HEIGHT * WIDTH * 3
        channel = byte % 3
        x = byte // 3 % WIDTH
        mirrored = byte + (WIDTH - 1 - 2 * x) * 3
        level = tl.load(source + tl.where(flip, mirrored, byte), mask=valid, other=0)
        if by_table:
            level = tl.load(table + channel * 256 + level.to(tl.int32))
        tl.store(out + byte, level, mask=valid)


@triton.jit
def _color(
    source,
    out,
    first,
    factor,
    flip,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = first + tl.arange(0, BLOCK)
    here = source + _row(pixel // WIDTH, HEIGHT, WIDTH) + _column(pixel % WIDTH, flip, WIDTH)
    red = tl.load(here).to(tl.int32)
    green = tl.load(here + 1).to(tl.int32)
    blue = tl.load(here + 2).to(tl.int32)
    luma = _luma(red, green, blue).to(tl.float32)
    for channel in tl.static_range(3):
        level = red if channel == 0 else (green if channel == 1 else blue)
        _store(out, pixel, channel, _blend(luma, level.to(tl.float32), factor), HEIGHT, WIDTH)


@triton.jit
def _sharpness(
    source,
    out,
    first,
    factor,
    flip,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, whose border stays as it is."""
    pixel = first + tl.arange(0, BLOCK)
    x = pixel % WIDTH
    y = pixel // WIDTH
    border = (x == 0) | (y == 0) | (x == WIDTH - 1) | (y == HEIGHT - 1)
    left = _column(x - 1, flip, WIDTH)
    middle = _column(x, flip, WIDTH)
    right = _column(x + 1, flip, WIDTH)
    above = _row(y - 1, HEIGHT, WIDTH)
    here = _row(y, HEIGHT, WIDTH)
    below = _row(y + 1, HEIGHT, WIDTH)
    for channel in tl.static_range(3):
        plane = source + channel
        level = tl.load(plane + here + middle).to(tl.int32)
        total = level * 4 + _sum_of_line(plane + above, left, middle, right)
        total += _sum_of_line(plane + here, left, middle, right) + _sum_of_line(plane + below, left, middle, right)
        # to the nearest; thirteenths are never halfway
        smooth = tl.where(border, level, (total * 2 + 13) // 26).to(tl.float32)
        _store(out, pixel, channel, _blend(smooth, level.to(tl.float32), factor), HEIGHT, WIDTH)


@triton.jit
def _sum_of_line(line, left, middle, right):
    total = tl.load(line + left).to(tl.int32) + tl.load(line + middle).to(tl.int32)
    return total + tl.load(line + right).to(tl.int32)


@triton.jit
def _warp(
    source,
    out,
    first,
    values,
    cubic,
    flip,
    fill0,
    fill1,
    fill2,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`Image.transform` by the matrix at `values`, float64."""
    pixel = first + tl.arange(0, BLOCK)
    x = (pixel % WIDTH).to(tl.float64) + 0.5
    y = (pixel // WIDTH).to(tl.float64) + 0.5
    x_in = _value(values, 0) * x + _value(values, 1) * y + _value(values, 2)
    y_in = _value(values, 3) * x + _value(values, 4) * y + _value(values, 5)
    inside = (x_in >= 0) & (x_in < WIDTH) & (y_in >= 0) & (y_in < HEIGHT)
    x_in -= 0.5
    y_in -= 0.5
    left = tl.floor(x_in)
    top = tl.floor(y_in)
    dx = x_in - left
    dy = y_in - top
    # far outside, where only the fill shows, positions must still be addresses
    left = tl.minimum(tl.maximum(left, -2.0), WIDTH + 1.0).to(tl.int32)
    top = tl.minimum(tl.maximum(top, -2.0), HEIGHT + 1.0).to(tl.int32)
    x0 = _column(left - 1, flip, WIDTH)
    x1 = _column(left, flip, WIDTH)
    x2 = _column(left + 1, flip, WIDTH)
    x3 = _column(left + 2, flip, WIDTH)
    y0 = _row(top - 1, HEIGHT, WIDTH)
    y1 = _row(top, HEIGHT, WIDTH)
    y2 = _row(top + 1, HEIGHT, WIDTH)
    y3 = _row(top + 2, HEIGHT, WIDTH)
    for channel in tl.static_range(3):
        plane = source + channel
        if cubic:
            line0 = _cubic_line(plane + y0, x0, x1, x2, x3, dx)
            line1 = _cubic_line(plane + y1, x0, x1, x2, x3, dx)
            line2 = _cubic_line(plane + y2, x0, x1, x2, x3, dx)
            line3 = _cubic_line(plane + y3, x0, x1, x2, x3, dx)
            value = cubic_taps(line0, line1, line2, line3, dy)
        else:
            upper = _linear_line(plane + y1, x1, x2, dx)
            lower = _linear_line(plane + y2, x1, x2, dx)
            value = upper + (lower - upper) * dy
        level = tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)
        fill = fill0 if channel == 0 else (fill1 if channel == 1 else fill2)
        _store(out, pixel, channel, tl.where(inside, level, fill), HEIGHT, WIDTH)


@triton.jit
def _value(values, word: tl.constexpr):
    return tl.load(values + word).to(tl.float64, bitcast=True)


@triton.jit
def _linear_line(line, x0, x1, t):
    v0 = tl.load(line + x0).to(tl.float64)
    v1 = tl.load(line + x1).to(tl.float64)
    return v0 + (v1 - v0) * t


@triton.jit
def _cubic_line(line, x0, x1, x2, x3, t):
    v0 = tl.load(line + x0).to(tl.float64)
    v1 = tl.load(line + x1).to(tl.float64)
    v2 = tl.load(line + x2).to(tl.float64)
    v3 = tl.load(line + x3).to(tl.float64)
    return cubic_taps(v0, v1, v2, v3, t)


@triton.jit
def _column(x, flip, WIDTH: tl.constexpr):
    """Where in a line column x of the image, flipped or not, is read; edges are repeated."""
    x = tl.minimum(tl.maximum(x, 0), WIDTH - 1)
    return tl.where(flip, WIDTH - 1 - x, x) * 3


@triton.jit
def _row(y, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Where line y begins; edges are repeated."""
    return tl.minimum(tl.maximum(y, 0), HEIGHT - 1) * (WIDTH * 3)


@triton.jit
def _store(out, pixel, channel: tl.constexpr, level, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    tl.store(out + pixel * 3 + channel, level.to(tl.uint8), mask=pixel < HEIGHT * WIDTH)


def pack(
    flip_N: np.ndarray, op_NL: np.ndarray, arg_NL: np.ndarray, op_interp_NL: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """A batch's arguments as the kernels take them, so that one copy takes them to the GPU.

    Returns:
        int64, shape (max(L, 1), N, 8): op, flags, six float64 (see `ROW`). Without layers one copies and flips.
    """
    rows, layers = op_NL.shape
    packed_LNR = np.zeros((max(layers, 1), rows, ROW.value), np.int64)
    packed_LNR[:, :, OP.value] = Op.NONE
    packed_LNR[:layers, :, OP.value] = op_NL.T
    packed_LNR[:layers, :, FLAGS.value] = np.where(op_interp_NL.T == BICUBIC, CUBIC.value, 0)
    packed_LNR[0, :, FLAGS.value] |= np.where(flip_N, FLIP.value, 0)
    for layer in range(layers):
        op_N, arg_N = op_NL[:, layer], arg_NL[:, layer]
        value_N6 = affine_matrices(op_N, arg_N, size)
        value_N6[:, 0] = np.where(np.isin(op_N, list(WARPS)), value_N6[:, 0], arg_N)
        packed_LNR[layer, :, VALUES.value :] = value_N6.view(np.int64)
    return packed_LNR


def randaugment_fused(
    images_NHWC: torch.Tensor,
    flip_N: np.ndarray,
    op_NL: np.ndarray,
    arg_NL: np.ndarray,
    op_interp_NL: np.ndarray,
    *,
    fill: Sequence[int],
) -> torch.Tensor:
    """`randaugment` on the current stream, without waiting: one or two launches a layer.

    A layer in which no image's op has a table is one launch.
    """
    rows, height, width, _ = images_NHWC.shape
    assert images_NHWC.is_contiguous()
    if not rows:
        return torch.empty_like(images_NHWC)
    device, shape = images_NHWC.device, {"HEIGHT": height, "WIDTH": width}
    packed_LNR = to_device(pack(flip_N, op_NL, arg_NL, op_interp_NL, (height, width)), device)
    table_NCV = torch.empty((rows, 3, 256), dtype=torch.uint8, device=device)
    has_table_NL = np.isin(op_NL, TABLE_OPS)
    with torch.cuda.device_of(images_NHWC):
        for layer, packed_NR in enumerate(packed_LNR):
            if has_table_NL[:, layer : layer + 1].any():
                tables_kernel[(rows,)](images_NHWC, table_NCV, packed_NR, **shape, BLOCK=TABLE_BLOCK, **EXACT)
            out_NHWC = torch.empty_like(images_NHWC)
            grid = (rows, triton.cdiv(height * width, APPLY_BLOCK))
            apply_kernel[grid](images_NHWC, out_NHWC, table_NCV, packed_NR, *fill, **shape, BLOCK=APPLY_BLOCK, **EXACT)
            images_NHWC = out_NHWC
    return images_NHWC
