"""Pillow's bicubic interpolation (a = -0.5), for kernels: its BICUBIC macro, in its order of operations."""

import triton
import triton.language as tl


@triton.jit
def cubic_taps(v0: tl.tensor, v1: tl.tensor, v2: tl.tensor, v3: tl.tensor, t: tl.tensor) -> tl.tensor:
    """At `t` between v1 and v2; float64, 0 ≤ t < 1."""
    p2 = v2 - v0
    p3 = 2.0 * (v0 - v1) + v2 - v3
    p4 = v1 - v0 - v2 + v3
    return v1 + t * (p2 + t * (p3 + t * p4))
