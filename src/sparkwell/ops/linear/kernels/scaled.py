"""FP8 times FP8:  y[m, n] = sum over groups g of s_x[m, g] s_w[n / group_n, g] (x[m, g] . w[n, g]).

One group, and a scale per row of each operand, is the same with one g.  Each step's product of BK
columns starts from zero and is added in fp32, so that units which cut long sums (Hopper's) do not.
The product's rows are those of x (BY_X) where there are many, which keeps their scales in few
registers; else the weight's, so that few rows of x do not leave a matrix instruction empty.
Targets without FP8 units multiply the same values as float16.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import WIDENED
from sparkwell.ops.kernels.nibbles import e4m3_wide


@triton.jit
def tile_of(pid, tiles_n, tiles_m, BAND: tl.constexpr):
    """Blocks that run together share rows of both operands: BAND tiles of n at a time."""
    band = BAND * tiles_m
    first = pid // band * BAND
    height = tl.minimum(tiles_n - first, BAND)
    inside = pid % band
    return first + inside % height, inside // height


@triton.jit
def _both(of_w, of_x, UNIFORM: tl.constexpr, BY_X: tl.constexpr):
    """Products of both operands' scales, for a tile of y."""
    if UNIFORM:
        scale = (of_x * of_w)[:, None] if BY_X else (of_x * of_w)[None, :]
    elif BY_X:
        scale = of_x[:, None] * of_w[None, :]
    else:
        scale = of_w[:, None] * of_x[None, :]
    return scale


@triton.jit
def scaled_kernel(
    out_ptr, w_ptr, w_scale_ptr, x_ptr, x_scale_ptr, bias_ptr, m, n, k, chunk, group_n, stride_w,
    stride_w_scale, stride_x, stride_x_row, stride_x_group, GROUPED: tl.constexpr,
    UNIFORM: tl.constexpr, BY_X: tl.constexpr, WIDEN: tl.constexpr, ASM: tl.constexpr,
    PARTS: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    at_n, at_m = tile_of(tl.program_id(0), tl.cdiv(n, BN), tl.cdiv(m, BM), 8)
    part = tl.program_id(1)
    low = part * chunk
    count = tl.minimum(chunk, k - low)
    col = at_n * BN + tl.arange(0, BN)
    row = at_m * BM + tl.arange(0, BM)
    n_at = tl.minimum(col, n - 1).to(tl.int64)
    m_at = tl.minimum(row, m - 1).to(tl.int64)
    k_at = tl.arange(0, BK)
    w_ptrs = w_ptr + n_at[:, None] * stride_w + low + k_at[None, :]
    x_ptrs = x_ptr + m_at[:, None] * stride_x + low + k_at[None, :]
    x_scales = x_scale_ptr + m_at * stride_x_row
    if UNIFORM:  # the whole block has one scale of the weight
        w_scales = w_scale_ptr + (at_n * BN // group_n).to(tl.int64) * stride_w_scale
    else:
        w_scales = w_scale_ptr + n_at // group_n * stride_w_scale

    acc = tl.zeros((BM, BN) if BY_X else (BN, BM), tl.float32)
    for step in range(tl.cdiv(count, BK)):
        first = step * BK
        if EVEN:
            w, x = tl.load(w_ptrs + first), tl.load(x_ptrs + first)
        else:
            inside = (k_at < count - first)[None, :]
            w = tl.load(w_ptrs + first, mask=inside, other=0.0 if not WIDEN else 0)
            x = tl.load(x_ptrs + first, mask=inside, other=0.0 if not WIDEN else 0)
        if GROUPED:  # before the product, which hides them
            group = (low + first) // GROUP
            of_x, of_w = tl.load(x_scales + group * stride_x_group), tl.load(w_scales + group)
        if WIDEN:
            w, x = e4m3_wide(w, False, ASM), e4m3_wide(x, False, ASM)
        sums = tl.dot(x, tl.trans(w)) if BY_X else tl.dot(w, tl.trans(x))
        if GROUPED:
            sums *= _both(of_w, of_x, UNIFORM, BY_X)
        acc += sums

    if WIDEN:
        acc *= WIDENED * WIDENED
    if not GROUPED:
        acc *= _both(tl.load(w_scale_ptr + n_at), tl.load(x_scales), False, BY_X)
    if BY_X:
        at, mine = m_at[:, None] * n + col[None, :], (row < m)[:, None] & (col < n)[None, :]
    else:
        at, mine = m_at[None, :] * n + col[:, None], (row < m)[None, :] & (col < n)[:, None]
    if PARTS:
        out = out_ptr + part.to(tl.int64) * m * n
    else:
        out = out_ptr
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + n_at).to(tl.float32)
            acc += bias[None, :] if BY_X else bias[:, None]
    tl.store(out + at, acc.to(out_ptr.dtype.element_ty), mask=mine)
