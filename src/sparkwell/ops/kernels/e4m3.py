"""e4m3 inside kernels by integers, for targets that have no such type and for the interpreter.

The bits of e4m3, moved left by 7, read as float16, are the value times 2^-8, subnormals included.
"""

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)
WIDENED = tl.constexpr(256.0)  # undoes the 2^-8 of `widen`


@triton.jit
def widen(code):
    """Values of e4m3 bits (uint8) times 2^-8, exact in float16; the NaN codes read as 480."""
    wide = code.to(tl.int16)
    bits = (((wide & 0x7F) << 7) | ((wide & 0x80) << 8)).to(tl.int16)
    return bits.to(tl.float16, bitcast=True)


@triton.jit
def e4m3_code(x):
    """Bits of the nearest e4m3 of |x| <= 448 (ties to even); NaN becomes a NaN code.  -> uint8"""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
    normal = (rounded >> 20) - (120 << 3)
    # Below 2^-6 codes count steps of 2^-9; adding 1.5 * 2^23 rounds to a whole number of them.
    y = magnitude.to(tl.float32, bitcast=True)
    steps = ((y * 512.0 + 12582912.0) - 12582912.0).to(tl.int32)
    code = tl.where(y < 0.015625, steps, tl.minimum(normal, 0x7E))
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e4m3_value(code):
    """fp32 value of e4m3 bits (uint8)."""
    value = widen(code).to(tl.float32) * WIDENED
    return tl.where((code & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def group_scale(x, floor, POW2: tl.constexpr, AXIS: tl.constexpr = None):
    """max(amax, floor) / 448 over all of x, or an axis of it; a NaN among x makes it NaN."""
    largest = tl.maximum(tl.max(tl.abs(x), AXIS), floor)
    scale = tl.math.div_rn(largest, E4M3_MAX)
    if POW2:
        bits = (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        scale = bits.to(tl.float32, bitcast=True)
    any_nan = tl.max((x != x).to(tl.int32), AXIS) > 0
    return tl.where(any_nan, float("nan"), scale)
