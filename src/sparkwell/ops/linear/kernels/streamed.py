"""Few rows of x: the weight streams through as rows of the product, widened in registers.

y[m, n] = factor[n] sum_k w[n, k] x[m, k] + bias[n]

A block takes BN rows of the weight and all of BM rows of x: a 16-row matrix instruction is filled
by weights, not by padding.  Blocks share K among them where rows alone do not fill the GPU; their
parts are added in a fixed order.  Products are of exact 16-bit floats, sums fp32:
NVFP4 and MXFP4: e2m1 times its scale is exact in 16 bits.  INT4 and FP8 blocks: codes are
exact, each group's sum is scaled in fp32.  FP8 rows: the sum is scaled at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.kernels.e4m3 import WIDENED
from sparkwell.ops.kernels.nibbles import (
    E2M1_E4M3_LEFT,
    along,
    e2m1_halves,
    e4m3_factor,
    e4m3_wide,
    e8m0_factor,
    int4_halves,
    less_zero,
    pair_halves,
)


@triton.jit
def streamed_kernel(
    out_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, x_ptr, bias_ptr, m, n, width, chunk, groups,
    group_k, group_n, stride_w, stride_scale, stride_x, KIND: tl.constexpr, BF16: tl.constexpr,
    ASM: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    FOLDED: tl.constexpr = KIND == "nvfp4" or KIND == "mxfp4"
    GROUP: tl.constexpr = 8 if KIND == "nvfp4" else 16  # bytes of a scale that is folded in
    part = tl.program_id(1)
    low = part * chunk
    count = tl.minimum(chunk, width - low)
    col = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(2) * BM + tl.arange(0, BM)
    n_at = tl.minimum(col, n - 1).to(tl.int64)
    m_at = tl.minimum(row, m - 1).to(tl.int64)
    k_at = tl.arange(0, BK)
    s_at = tl.arange(0, BK // GROUP)
    w_ptrs = w_ptr + n_at[:, None] * stride_w + low + k_at[None, :]
    x_ptrs = x_ptr + m_at[:, None] * stride_x + low + k_at[None, :]

    acc = tl.zeros((BN, BM), tl.float32)
    if FOLDED:
        s_ptrs = scale_ptr + n_at[:, None] * stride_scale + part * groups + s_at[None, :]
    elif scale_ptr is not None:
        s_row = n_at // group_n * stride_scale
        scale = tl.load(scale_ptr + s_row + low // group_k)
        if zero_ptr is not None:
            zero = tl.load(zero_ptr + s_row + low // group_k)
    for step in range(tl.cdiv(count, BK)):
        first = step * BK
        if EVEN:
            codes, x = tl.load(w_ptrs + first), tl.load(x_ptrs + first)
        else:
            inside = (k_at < count - first)[None, :]
            codes = tl.load(w_ptrs + first, mask=inside, other=0)
            x = tl.load(x_ptrs + first, mask=inside, other=0)
        if FOLDED:
            if EVEN:
                scales = tl.load(s_ptrs + step * (BK // GROUP))
            else:
                held = (s_at * GROUP < count - first)[None, :]
                scales = tl.load(s_ptrs + step * (BK // GROUP), mask=held, other=0)
            wide_low, wide_high = e2m1_halves(codes, BF16, ASM)
            if KIND == "nvfp4":
                factor = e4m3_factor(scales, BF16, ASM)
            else:  # bfloat16 only: its exponents are those of the scales
                factor = e8m0_factor(scales)
                up = tl.full((), 2.0**119, tl.bfloat16)
                wide_low, wide_high = wide_low * up, wide_high * up
            factor = along(factor, BN, BK // GROUP, GROUP)
            even, odd = pair_halves(x, BF16)
            acc = tl.dot(wide_low * factor, tl.trans(even), acc)
            acc = tl.dot(wide_high * factor, tl.trans(odd), acc)
        else:
            if KIND == "int4":
                less = None
                if zero_ptr is not None:
                    less = zero.to(tl.float32).to(HALF)[:, None]
                wide_low, wide_high = int4_halves(codes, BF16, ASM)
                even, odd = pair_halves(x, BF16)
                sums = tl.dot(less_zero(wide_low, less, BF16), tl.trans(even))
                sums = tl.dot(less_zero(wide_high, less, BF16), tl.trans(odd), sums)
            else:
                wide = e4m3_wide(codes, BF16, ASM)
                sums = tl.dot(wide, tl.trans(x), acc if scale_ptr is None else None)
            if scale_ptr is None:
                acc = sums
            else:
                acc += sums * scale.to(tl.float32)[:, None]
                # One step ahead: these loads are too narrow to be copied in the background.
                ahead = tl.minimum(low + first + BK, width - 1) // group_k
                scale = tl.load(scale_ptr + s_row + ahead)
                if zero_ptr is not None:
                    zero = tl.load(zero_ptr + s_row + ahead)

    mine = (col < n)[:, None] & (row < m)[None, :]
    if FOLDED:
        acc *= E2M1_E4M3_LEFT
    elif KIND == "fp8" and not BF16:
        acc *= WIDENED
    if PARTS:
        out = out_ptr + part.to(tl.int64) * m * n
    else:
        out = out_ptr
        if factor_ptr is not None:
            acc *= tl.load(factor_ptr + n_at)[:, None]
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n_at).to(tl.float32)[:, None]
    tl.store(out + m_at[None, :] * n + col[:, None], acc.to(out_ptr.dtype.element_ty), mask=mine)


@triton.jit
def reduce_kernel(
    y_ptr, part_ptr, factor_ptr, bias_ptr, parts, m, n, EARLY: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < n

    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, AT_ONCE):  # always in the same order
        part = first + tl.arange(0, AT_ONCE)
        at = part_ptr + (row + part[:, None].to(tl.int64) * m) * n + col[None, :]
        held = (part < parts)[:, None] & mask[None, :]
        total += tl.sum(tl.load(at, mask=held, other=0.0), 0)
    if factor_ptr is not None:
        total *= tl.load(factor_ptr + col, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * n + col, total.to(y_ptr.dtype.element_ty), mask=mask)
