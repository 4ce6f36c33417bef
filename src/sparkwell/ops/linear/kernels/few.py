"""A few rows of x: blocks whose warps share K, so that no second kernel adds what they find.

y[m, n] = factor[n] sum over shares s: sum_k in s: w[n, k] x[m, k] + bias[n]

A block takes BN rows of the weight; each of its SHARES, a warp or two, takes its own columns of
them, and all are added in the block, in a fixed order.  Where rows alone do not fill the GPU blocks
share K too, and leave parts.  Arithmetic and widening are those of `streamed`.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.nibbles import (
    E2M1_E4M3_LEFT,
    E4M3_F16_LEFT,
    e2m1_halves,
    e4m3_factor,
    e4m3_wide,
    e8m0_factor,
    int4_halves,
    less_zero,
    pair_halves,
)


@triton.jit
def _tile(ptr, row, stride, low, inner):
    """Pointers [SHARES, rows, inner]: every share's columns start at its own `low`."""
    return ptr + row[None, :, None] * stride + (low[:, None, None] + inner[None, None, :])


@triton.jit
def _turned(x):
    return tl.permute(x, (0, 2, 1))


@triton.jit
def few_kernel(
    out_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, x_ptr, bias_ptr, m, n, width, chunk, groups,
    group_k, group_n, stride_w, stride_scale, stride_x, KIND: tl.constexpr, BF16: tl.constexpr,
    ASM: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr, SHARES: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    FOLDED: tl.constexpr = KIND == "nvfp4" or KIND == "mxfp4"
    GROUP: tl.constexpr = 8 if KIND == "nvfp4" else 16  # bytes of a scale that is folded in
    part = tl.program_id(1)
    share = part * SHARES + tl.arange(0, SHARES)
    low = share * chunk
    count = tl.minimum(chunk, width - low)  # below 0 where a share has nothing
    col = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(2) * BM + tl.arange(0, BM)
    n_at = tl.minimum(col, n - 1).to(tl.int64)
    of_x = (row < m)[None, :, None]  # nothing is read for the others: they are often most
    k_at = tl.arange(0, BK)
    s_at = tl.arange(0, BK // GROUP)
    w_ptrs = _tile(w_ptr, n_at, stride_w, low, k_at)
    x_ptrs = _tile(x_ptr, row.to(tl.int64), stride_x, low, k_at)

    acc = tl.zeros((SHARES, BN, BM), tl.float32)
    if FOLDED:
        s_ptrs = _tile(scale_ptr, n_at, stride_scale, share * groups, s_at)
    elif scale_ptr is not None:
        s_row = (n_at // group_n * stride_scale)[None, :]
        at = tl.minimum(low, width - 1)[:, None] // group_k
        scale = tl.load(scale_ptr + s_row + at)
        if zero_ptr is not None:
            zero = tl.load(zero_ptr + s_row + at)
    for step in range(tl.cdiv(chunk, BK)):
        first = step * BK
        if EVEN:
            codes, x = tl.load(w_ptrs + first), tl.load(x_ptrs + first, mask=of_x, other=0)
        else:
            inside = k_at[None, None, :] < (count - first)[:, None, None]
            codes = tl.load(w_ptrs + first, mask=inside, other=0)
            x = tl.load(x_ptrs + first, mask=inside & of_x, other=0)
        if FOLDED:
            if EVEN:
                scales = tl.load(s_ptrs + step * (BK // GROUP))
            else:
                held = (s_at * GROUP)[None, None, :] < (count - first)[:, None, None]
                scales = tl.load(s_ptrs + step * (BK // GROUP), mask=held, other=0)
            wide_low, wide_high = e2m1_halves(codes, BF16, ASM)
            if KIND == "nvfp4":
                factor = e4m3_factor(scales, BF16, ASM)
            else:  # bfloat16 only: its exponents are those of the scales
                factor = e8m0_factor(scales)
                up = tl.full((), 2.0**119, tl.bfloat16)
                wide_low, wide_high = wide_low * up, wide_high * up
            factor = tl.broadcast_to(factor[:, :, :, None], (SHARES, BN, BK // GROUP, GROUP))
            factor = tl.reshape(factor, (SHARES, BN, BK))
            even, odd = pair_halves(x, BF16)
            acc = tl.dot(wide_low * factor, _turned(even), acc)
            acc = tl.dot(wide_high * factor, _turned(odd), acc)
        else:
            if KIND == "int4":
                less = None
                if zero_ptr is not None:
                    less = zero.to(tl.float32).to(HALF)[:, :, None]
                wide_low, wide_high = int4_halves(codes, BF16, ASM)
                even, odd = pair_halves(x, BF16)
                sums = tl.dot(less_zero(wide_low, less, BF16), _turned(even))
                sums = tl.dot(less_zero(wide_high, less, BF16), _turned(odd), sums)
            else:
                wide = e4m3_wide(codes, BF16, ASM)
                sums = tl.dot(wide, _turned(x), acc if scale_ptr is None else None)
            if scale_ptr is None:
                acc = sums
            else:
                acc += sums * scale.to(tl.float32)[:, :, None]
                # One step ahead: these loads are too narrow to be copied in the background.
                at = tl.minimum(low + first + BK, width - 1)[:, None] // group_k
                scale = tl.load(scale_ptr + s_row + at)
                if zero_ptr is not None:
                    zero = tl.load(zero_ptr + s_row + at)

    y = tl.sum(acc, 0)  # [BN, BM]
    mine = (col < n)[:, None] & (row < m)[None, :]
    if FOLDED:
        y *= E2M1_E4M3_LEFT
    elif KIND == "fp8" and not BF16:
        y *= E4M3_F16_LEFT
    if PARTS:
        out = out_ptr + part.to(tl.int64) * m * n
    else:
        out = out_ptr
        if factor_ptr is not None:
            y *= tl.load(factor_ptr + n_at)[:, None]
        if bias_ptr is not None:
            y += tl.load(bias_ptr + n_at).to(tl.float32)[:, None]
    at = row.to(tl.int64)[None, :] * n + col[:, None]
    tl.store(out + at, y.to(out_ptr.dtype.element_ty), mask=mine)
