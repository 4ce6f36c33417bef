"""Activations to codes and scales inside kernels, bit for bit as the quantizers of `formats`.

Every division is rounded to nearest: a product with an inverse would move codes at their edges.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import E4M3_MAX, e4m3_code, e4m3_value, group_scale

E2M1_MAX = tl.constexpr(6.0)
E2M1_E4M3_MAX = tl.constexpr(2688.0)  # 6 * 448
SMALLEST_SCALE = tl.constexpr(2.0**-9)  # of e4m3
FACTOR_FLOOR = tl.constexpr(2.0**-100)  # of a token's factor


@triton.jit
def divided(x, by):
    """x / by, rounded once; `by` one number, or of x's rank."""
    return tl.math.div_rn(x, by + tl.zeros_like(x))


@triton.jit
def fp8_groups(x, floor):
    """[G, n] fp32 -> codes [G, n] uint8 and scales [G]: max(amax, floor) / 448 each."""
    scale = group_scale(x, floor, False, 1)
    return e4m3_code(divided(x, scale[:, None])), scale


@triton.jit
def largest_of(x):
    """The largest |x|, and whether one of x is NaN, of a whole tile."""
    x = tl.reshape(x, (x.numel,))
    return tl.max(tl.abs(x), 0), tl.max((x != x).to(tl.int32), 0)


@triton.jit
def token_scale(largest, any_nan, floor, most):
    """max(amax / most, floor) of a token; NaN where one of its values is."""
    scale = tl.maximum(tl.math.div_rn(largest, most), floor)
    return tl.where(any_nan > 0, float("nan"), scale)


@triton.jit
def e2m1_code(x):
    """0..15: nearest e2m1, ties to the even code, beyond 6 saturated."""
    a = tl.abs(x)
    code = (a > 0.25).to(tl.int32) + (a >= 0.75).to(tl.int32) + (a > 1.25).to(tl.int32)
    code += (a >= 1.75).to(tl.int32) + (a > 2.5).to(tl.int32) + (a >= 3.5).to(tl.int32)
    code += (a > 5.0).to(tl.int32)
    sign = (x.to(tl.int32, bitcast=True) >> 28) & 8
    return code | sign


@triton.jit
def nvfp4_blocks(x, factor, BLOCKS: tl.constexpr):
    """[BLOCKS, 16] fp32 -> bytes [BLOCKS, 8], even column low, and e4m3 scales [BLOCKS] uint8."""
    largest = tl.max(tl.abs(x), 1)
    wanted = divided(largest, factor * E2M1_MAX)
    wanted = tl.minimum(tl.maximum(wanted, SMALLEST_SCALE), 448.0)
    lost = (x + factor) != (x + factor)  # one of both is NaN
    any_nan = tl.max(lost.to(tl.int32), 1) > 0
    scale = tl.where(any_nan, 0x7F, e4m3_code(wanted).to(tl.int32)).to(tl.uint8)
    codes = e2m1_code(divided(x, (e4m3_value(scale) * factor)[:, None]))
    even, odd = tl.split(tl.reshape(codes, (BLOCKS, 8, 2)))
    return (even | (odd << 4)).to(tl.uint8), scale


@triton.jit
def store_quantized(
    y, code_ptr, scale_ptr, block_ptr, given_ptr, row, rows, first, width, floor,
    FORM: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantizes columns first .. first + BLOCK - 1 of a row and stores codes and scales.

    y: [BLOCK] fp32, 0 beyond `width`; the whole row where it has one scale.
    """
    if FORM == "fp8-group":
        codes, scale = fp8_groups(tl.reshape(y, (BLOCK // GROUP, GROUP)), floor)
        group = tl.arange(0, BLOCK // GROUP)
        col = first + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        tl.store(code_ptr + row * width + col, codes, mask=col < width)
        at = scale_ptr + (first // GROUP + group).to(tl.int64) * rows + row
        tl.store(at, scale, mask=first + group * GROUP < width)
    else:
        FP4: tl.constexpr = FORM == "nvfp4"
        if given_ptr is not None:
            scale = tl.load(given_ptr)
        else:
            largest, any_nan = largest_of(y)
            scale = token_scale(largest, any_nan, floor, E2M1_E4M3_MAX if FP4 else E4M3_MAX)
        tl.store(scale_ptr + row, scale)
        if FP4:
            codes, scales = nvfp4_blocks(tl.reshape(y, (BLOCK // 16, 16)), scale, BLOCK // 16)
            block = tl.arange(0, BLOCK // 16)
            byte = first // 2 + block[:, None] * 8 + tl.arange(0, 8)[None, :]
            tl.store(code_ptr + row * (width // 2) + byte, codes, mask=byte < width // 2)
            at = block_ptr + row * (width // 16) + first // 16 + block
            tl.store(at, scales, mask=first + block * 16 < width)
        else:
            col = first + tl.arange(0, BLOCK)
            tl.store(code_ptr + row * width + col, e4m3_code(divided(y, scale)), mask=col < width)
