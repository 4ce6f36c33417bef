"""The rotation of a pair inside kernels, rounded the same way in all of them."""

import triton
import triton.language as tl


@triton.jit
def turn(a, b, cos, sin):
    """(a cos - b sin, b cos + a sin); which product is rounded first is no compiler's choice."""
    return tl.fma(a, cos, -(b * sin)), tl.fma(a, sin, b * cos)
