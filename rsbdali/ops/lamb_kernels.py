"""LAMB over all tensors of a model in five launches, whatever their number.

    grad_squares   every chunk     Σ g²
    step_scalars   one program     clip and unscale factor, step counts, bias corrections, whether to skip
    moments        every chunk     m, v updated; Σ p², Σ u² of the chunk
    step_sizes     every tensor    −lr · scale · ‖p‖ / (scale · ‖u‖)
    apply          every chunk     u once more from m, v, p; p += size · u

A chunk whose tensor begins on 16 bytes and has a length that divides by 4 is read 4 values at a time, any other (the
biases of 10 classes, what DDP's buckets push off its alignment) value by value; one never slows the others.

11 values of four bytes go through memory for each parameter; the floor for a LAMB whose norms come free is 7
(`lamb.lamb_bytes`). Tensors are found by a table of addresses, chunks by a table of (tensor, chunk in it). Sums are
taken in a fixed order, so a step gives the same bits every time.

Legend: T tensors, C chunks, G parameter groups. Arrays that the kernels share, all float32 but the tables:

    rates_G2     learning rate, weight decay
    scalars_G2   damping = eps · √(1 − β₂ᵗ), scale = √(1 − β₂ᵗ) / (1 − β₁ᵗ)
    common       (2,): factor on the gradients; 1 to go, 0 to skip the step
    sums_C, squares_C2, sizes_T
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

# columns of the tensor table (T, 7), int64: four addresses, the length in values, the parameter group, whether values
# may be read by four
P, G, M, V, LENGTH, GROUP, WIDE = (tl.constexpr(i) for i in range(7))
COLUMNS = tl.constexpr(7)


@triton.jit
def _values(table, tensor, COLUMN: tl.constexpr, VECTOR: tl.constexpr):
    address = tl.load(table + tensor * COLUMNS + COLUMN)
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 4 * VECTOR)


@triton.jit
def _tensor(table, chunks):
    """This program's tensor, and whether its values may be read by four."""
    tensor = tl.load(chunks + tl.program_id(0) * 2)
    return tensor, tl.load(table + tensor * COLUMNS + WIDE) != 0


@triton.jit
def _place(table, chunks, tensor, VECTOR: tl.constexpr, CHUNK: tl.constexpr):
    """The positions of this program's values in its tensor, and which of them exist."""
    length = tl.multiple_of(tl.load(table + tensor * COLUMNS + LENGTH), VECTOR)
    at = tl.load(chunks + tl.program_id(0) * 2 + 1).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    return at, at < length


@triton.jit
def _of_group(table, tensor, scalars_G2, rates_G2):
    """What `_update` takes of the tensor's group: damping, and weight decay by `scale`."""
    group = tl.load(table + tensor * COLUMNS + GROUP)
    decay = tl.load(rates_G2 + group * 2 + 1) / tl.load(scalars_G2 + group * 2 + 1)
    return tl.load(scalars_G2 + group * 2), decay


@triton.jit
def _update(p, m, v, damping, decay):
    """The update up to the factor `scale`, in timm's order of operations."""
    return m / (tl.sqrt(v) + damping) + decay * p


@triton.jit
def grad_squares_kernel(table, chunks, sums_C, CHUNK: tl.constexpr):
    """Σ g² of each chunk, of gradients as they are."""
    tensor, wide = _tensor(table, chunks)
    if wide:
        _grad_squares(table, chunks, tensor, sums_C, 4, CHUNK)
    else:
        _grad_squares(table, chunks, tensor, sums_C, 1, CHUNK)


@triton.jit
def _grad_squares(table, chunks, tensor, sums_C, VECTOR: tl.constexpr, CHUNK: tl.constexpr):
    at, valid = _place(table, chunks, tensor, VECTOR, CHUNK)
    g = tl.load(_values(table, tensor, G, VECTOR) + at, mask=valid, other=0.0)
    tl.store(sums_C + tl.program_id(0), tl.sum(g * g))


@triton.jit
def step_scalars_kernel(
    sums_C,
    num_chunks,
    steps_G,
    num_groups,
    grad_scale,
    found_inf,
    common,
    scalars_G2,
    max_norm,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`common`, `scalars_G2` and the new step counts, by one program. `grad_scale` and `found_inf` are GradScaler's."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_chunks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(sums_C + at, mask=at < num_chunks, other=0.0).to(tl.float64)
    unscale = 1.0 / tl.load(grad_scale)
    norm = tl.sqrt(tl.sum(total)).to(tl.float32) * unscale
    go = tl.where(tl.load(found_inf) == 0.0, 1.0, 0.0)
    tl.store(common, unscale / tl.maximum(norm / max_norm, 1.0))
    tl.store(common + 1, go)
    for group in range(num_groups):
        step = tl.load(steps_G + group) + go
        tl.store(steps_G + group, step)
        # in float64: 1 − β₂ is 0.001 at the first step, of which float32 would leave four digits
        count = tl.maximum(step, 1.0).to(tl.float64)
        root2 = tl.sqrt(1.0 - tl.exp(count * LOG_BETA2))
        tl.store(scalars_G2 + group * 2, (EPS * root2).to(tl.float32))
        tl.store(scalars_G2 + group * 2 + 1, (root2 / (1.0 - tl.exp(count * LOG_BETA1))).to(tl.float32))


@triton.jit
def moments_kernel(
    table,
    chunks,
    common,
    scalars_G2,
    rates_G2,
    squares_C2,
    BETA2: tl.constexpr,
    TAKE1: tl.constexpr,
    TAKE2: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """New moments of each chunk, and its Σ p² and Σ u². TAKE is 1 − β."""
    if tl.load(common + 1) != 0.0:
        tensor, wide = _tensor(table, chunks)
        damping, decay = _of_group(table, tensor, scalars_G2, rates_G2)
        factor = tl.load(common)
        if wide:
            _moments(table, chunks, tensor, squares_C2, factor, damping, decay, BETA2, TAKE1, TAKE2, 4, CHUNK)
        else:
            _moments(table, chunks, tensor, squares_C2, factor, damping, decay, BETA2, TAKE1, TAKE2, 1, CHUNK)


@triton.jit
def _moments(
    table,
    chunks,
    tensor,
    squares_C2,
    factor,
    damping,
    decay,
    BETA2: tl.constexpr,
    TAKE1: tl.constexpr,
    TAKE2: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    at, valid = _place(table, chunks, tensor, VECTOR, CHUNK)
    at_m, at_v = _values(table, tensor, M, VECTOR) + at, _values(table, tensor, V, VECTOR) + at
    g = tl.load(_values(table, tensor, G, VECTOR) + at, mask=valid, other=0.0) * factor
    p = tl.load(_values(table, tensor, P, VECTOR) + at, mask=valid, other=0.0)
    m = tl.load(at_m, mask=valid, other=0.0)
    v = tl.load(at_v, mask=valid, other=0.0)
    m += TAKE1 * (g - m)
    v = v * BETA2 + TAKE2 * g * g
    tl.store(at_m, m, mask=valid)
    tl.store(at_v, v, mask=valid)
    u = tl.where(valid, _update(p, m, v, damping, decay), 0.0)
    tl.store(squares_C2 + tl.program_id(0) * 2, tl.sum(p * p))
    tl.store(squares_C2 + tl.program_id(0) * 2 + 1, tl.sum(u * u))


@triton.jit
def step_sizes_kernel(
    table,
    first_chunk_T1,
    scalars_G2,
    rates_G2,
    squares_C2,
    sizes_T,
    BLOCK: tl.constexpr,
):
    """Factor on u for each tensor: the trust ratio where there is weight decay, times −lr · scale."""
    tensor = tl.program_id(0)
    first, end = tl.load(first_chunk_T1 + tensor), tl.load(first_chunk_T1 + tensor + 1)
    p_squares = tl.zeros([BLOCK], tl.float64)
    u_squares = tl.zeros([BLOCK], tl.float64)
    for start in range(first, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        p_squares += tl.load(squares_C2 + at * 2, mask=at < end, other=0.0).to(tl.float64)
        u_squares += tl.load(squares_C2 + at * 2 + 1, mask=at < end, other=0.0).to(tl.float64)
    group = tl.load(table + tensor * COLUMNS + GROUP)
    scale = tl.load(scalars_G2 + group * 2 + 1)
    p_norm = tl.sqrt(tl.sum(p_squares)).to(tl.float32)
    u_norm = tl.sqrt(tl.sum(u_squares)).to(tl.float32) * scale
    adapts = (tl.load(rates_G2 + group * 2 + 1) != 0.0) & (p_norm > 0.0) & (u_norm > 0.0)
    ratio = tl.where(adapts, p_norm / tl.where(u_norm > 0.0, u_norm, 1.0), 1.0)
    tl.store(sizes_T + tensor, -tl.load(rates_G2 + group * 2) * scale * ratio)


@triton.jit
def apply_kernel(
    table,
    chunks,
    common,
    scalars_G2,
    rates_G2,
    sizes_T,
    CHUNK: tl.constexpr,
):
    """The step itself: p += size · u."""
    if tl.load(common + 1) != 0.0:
        tensor, wide = _tensor(table, chunks)
        damping, decay = _of_group(table, tensor, scalars_G2, rates_G2)
        size = tl.load(sizes_T + tensor)
        if wide:
            _apply(table, chunks, tensor, size, damping, decay, 4, CHUNK)
        else:
            _apply(table, chunks, tensor, size, damping, decay, 1, CHUNK)


@triton.jit
def _apply(table, chunks, tensor, size, damping, decay, VECTOR: tl.constexpr, CHUNK: tl.constexpr):
    at, valid = _place(table, chunks, tensor, VECTOR, CHUNK)
    at_p = _values(table, tensor, P, VECTOR) + at
    p = tl.load(at_p, mask=valid, other=0.0)
    m = tl.load(_values(table, tensor, M, VECTOR) + at, mask=valid, other=0.0)
    v = tl.load(_values(table, tensor, V, VECTOR) + at, mask=valid, other=0.0)
    tl.store(at_p, p + size * _update(p, m, v, damping, decay), mask=valid)
