"""Powers of two that values are measured in, to fit the range of float16."""

import triton
import triton.language as tl

TINY = tl.constexpr(2.0**-100)  # smallest power of two that stands for a scale


@triton.jit
def power_of_two(x):
    """The smallest power of two that is not below x >= 0, at least TINY."""
    bits = (x.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    return tl.maximum(bits.to(tl.float32, bitcast=True), TINY)


@triton.jit
def inverse_of(power):
    """1 / power, exact for a power of two."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
