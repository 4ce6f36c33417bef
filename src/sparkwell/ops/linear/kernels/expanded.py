"""FP4 times FP8 on FP8 units:  y[m, n] = f_w[n] s_x[m] sum_k e4m3(w[n, k]) x[m, k]

NVFP4: w = e2m1 * scale / 8 is rounded to e4m3 on its way to the units: exact where e2m1 is a power
of two, else a relative error of at most 2^-4; values below 2^-3 of the 2688 that a row may hold
are rounded to steps of 2^-6.
MXFP4: w = 64 * e2m1 * 2^(e - largest), `largest` of the row's exponents in a step of the loop,
whose sum is scaled by it: exact for e >= largest - 14.
A byte of the weight holds an even and an odd column, so x's bytes are read in pairs and multiplied
in two halves.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.nibbles import along, e2m1_halves, e4m3_factor
from sparkwell.ops.linear.kernels.scaled import tile_of


@triton.jit
def _power(code):
    """2^(code - 127) of E8M0 in fp32; 255, NaN, is infinity."""
    bits = tl.where(code == 0, 0x400000, code.to(tl.int32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _below(code, largest):
    """2^15 * 2^(code - largest) in float16; below 2^-14 it is 0."""
    exponent = tl.maximum(code.to(tl.int32) - largest[:, None] + 30, 0)
    return (exponent << 10).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _as_e4m3(halves, factor, UP: tl.constexpr):
    """UP times the product of e2m1 (times 2^-14) and a factor, both float16, as e4m3."""
    return ((halves * tl.full((1, 1), UP, tl.float16)) * factor).to(tl.float8e4nv)


@triton.jit
def expanded_kernel(
    out_ptr, w_ptr, scale_ptr, factor_ptr, x_ptr, x_scale_ptr, bias_ptr, m, n, chunk, blocks,
    stride_w, stride_scale, stride_x, GROUP: tl.constexpr, ASM: tl.constexpr,
    PARTS: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    UP: tl.constexpr = 16.0 if GROUP == 8 else 32.0  # e4m3's range: 2688 / 8, and 6 * 64
    LEFT: tl.constexpr = 8.0 if GROUP == 8 else 1 / 64
    at_n, at_m = tile_of(tl.program_id(0), tl.cdiv(n, BN), tl.cdiv(m, BM), 8)
    part = tl.program_id(1)
    low = part * chunk  # counted in blocks of one scale, GROUP bytes
    count = tl.minimum(chunk, blocks - low) * GROUP
    col = at_n * BN + tl.arange(0, BN)
    row = at_m * BM + tl.arange(0, BM)
    n_at = tl.minimum(col, n - 1).to(tl.int64)
    m_at = tl.minimum(row, m - 1).to(tl.int64)
    byte = tl.arange(0, BK)
    block = tl.arange(0, BK // GROUP)
    w_ptrs = w_ptr + n_at[:, None] * stride_w + low * GROUP + byte[None, :]
    s_ptrs = scale_ptr + n_at[:, None] * stride_scale + low + block[None, :]
    x_ptrs = x_ptr + m_at[:, None] * stride_x + low * GROUP + byte[None, :]

    acc = tl.zeros((BN, BM), tl.float32)
    for step in range(tl.cdiv(count, BK)):
        b_at, s_at = step * BK, step * (BK // GROUP)
        if EVEN:
            codes, scales = tl.load(w_ptrs + b_at), tl.load(s_ptrs + s_at)
            x = tl.load(x_ptrs + b_at)
        else:
            inside = (byte < count - b_at)[None, :]
            codes = tl.load(w_ptrs + b_at, mask=inside, other=0)
            x = tl.load(x_ptrs + b_at, mask=inside, other=0)
            scales = tl.load(s_ptrs + s_at, mask=(block * GROUP < count - b_at)[None, :], other=0)
        low_half, high_half = e2m1_halves(codes, False, ASM)
        if GROUP == 8:
            factor = e4m3_factor(scales, False, ASM)
        else:
            largest = tl.max(scales.to(tl.int32), 1)
            factor = _below(scales, largest)
        factor = along(factor, BN, BK // GROUP, GROUP)
        even = (x & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
        odd = ((x >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
        sums = tl.dot(_as_e4m3(low_half, factor, UP), tl.trans(even))
        sums = tl.dot(_as_e4m3(high_half, factor, UP), tl.trans(odd), sums)
        acc += sums if GROUP == 8 else sums * _power(largest)[:, None]

    mine = (col < n)[:, None] & (row < m)[None, :]
    acc *= LEFT * tl.load(x_scale_ptr + m_at)[None, :]
    if factor_ptr is not None:
        acc *= tl.load(factor_ptr + n_at)[:, None]
    if PARTS:
        out = out_ptr + part.to(tl.int64) * m * n
    else:
        out = out_ptr
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n_at).to(tl.float32)[:, None]
    at = m_at[None, :] * n + col[:, None]
    tl.store(out + at, acc.to(out_ptr.dtype.element_ty), mask=mine)
