"""Indexer scores:  I(t, s) = scale[s] sum_h w[t, h] max(0, q[t, h] . k[s]),  -inf where not seen.

A block takes a few rows with all their heads as one matrix, and a tile of keys.  e4m3 is widened to
float16, where it is exact, by moving its bits, so that every target computes the same products.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import WIDENED, widen


@triton.jit
def _queries(
    q_ptr, row, h, d, of_row, heads, width, stride_t, stride_h,
    WIDEN: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[rows * heads, BLOCK_D]: all heads of all rows, one below the other."""
    at = q_ptr + row[:, None, None] * stride_t + h[None, :, None] * stride_h + d[None, None, :]
    mask = of_row[:, None, None] & (h < heads)[None, :, None] & (d < width)[None, None, :]
    if WIDEN:
        x = widen(tl.load(at, mask=mask, other=0))
    else:
        x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return tl.reshape(x, (M, BLOCK_D))


@triton.jit
def _sum_heads(
    q, k, weight, factor, M: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """[R, N]: factor[s] sum_h weight[t, h] max(0, q . k)."""
    dots = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    dots = tl.maximum(dots, 0.0) * weight[:, None]
    return tl.sum(tl.reshape(dots, (R, HEADS, N)), 1) * factor[None, :]


@triton.jit
def paged_kernel(
    out_ptr, q_ptr, weight_ptr, key_ptr, scale_ptr, table_ptr, request_ptr, visible_ptr,
    rows, heads, d_width, columns, num_pages, table_width, stride_out, stride_t, stride_h,
    stride_weight, stride_table, key_page_stride, scale_page_stride, PAGE: tl.constexpr,
    TOKEN: tl.constexpr, WIDEN: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = R * HEADS
    row = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK_D)
    of_row = row < rows
    request = tl.load(request_ptr + row, mask=of_row, other=-1)
    visible = tl.load(visible_ptr + row, mask=of_row, other=0)
    visible = tl.minimum(visible, columns)
    of_column = n < columns
    out = out_ptr + row[:, None] * stride_out + n[None, :]
    if tl.program_id(1) * BLOCK_N < tl.max(visible, 0):
        q = _queries(
            q_ptr, row, h, d, of_row, heads, d_width, stride_t, stride_h, WIDEN, M, BLOCK_D
        )
        weight = tl.load(
            weight_ptr + row[:, None] * stride_weight + h[None, :],
            mask=of_row[:, None] & (h < heads)[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.reshape(weight, (M,))
        first = tl.min(tl.where(of_row, request, 2147483647), 0)
        last = tl.max(request, 0)
        for owner in range(first, last + 1):  # one, unless requests of few rows share the block
            logical = n // PAGE
            page = tl.load(
                table_ptr + tl.cast(owner, tl.int64) * stride_table + logical,
                mask=logical < table_width, other=-1,
            ).to(tl.int64)  # fmt: skip
            ok = (page >= 0) & (page < num_pages)
            page = tl.where(ok, page, 0)
            at = key_ptr + (page * key_page_stride + (n % PAGE) * TOKEN)[:, None] + d[None, :]
            mask = ok[:, None] & (d < d_width)[None, :]
            if WIDEN:
                k = widen(tl.load(at, mask=mask, other=0))
                # The plane of scales follows the plane of values; both sides are widened.
                factor = tl.load(
                    scale_ptr + page * scale_page_stride + PAGE * (d_width // 4) + n % PAGE,
                    mask=ok, other=0.0,
                ) * (WIDENED * WIDENED)  # fmt: skip
            else:
                k = tl.load(at, mask=mask, other=0.0).to(tl.float32)
                factor = tl.zeros((BLOCK_N,), tl.float32) + 1.0
            score = _sum_heads(q, k, weight, factor, M, R, HEADS, BLOCK_N)
            seen = ok[None, :] & (n[None, :] < visible[:, None])
            score = tl.where(seen, score, -float("inf"))
            mine = of_row & (request == owner)
            tl.store(out, score, mask=mine[:, None] & of_column[None, :])
    else:
        nothing = tl.full((R, BLOCK_N), -float("inf"), tl.float32)
        tl.store(out, nothing, mask=of_row[:, None] & of_column[None, :])


@triton.jit
def ragged_kernel(
    out_ptr, q_ptr, weight_ptr, key_ptr, scale_ptr, start_ptr, end_ptr, rows, heads, d_width,
    num_keys, columns, stride_out, stride_t, stride_h, stride_weight, stride_key,
    RELATIVE: tl.constexpr, WIDEN: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = R * HEADS
    row = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    h = tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK_D)
    of_row = row < rows
    start = tl.load(start_ptr + row, mask=of_row, other=2147483647)
    end = tl.minimum(tl.load(end_ptr + row, mask=of_row, other=0), num_keys)
    # RELATIVE: column j of a row is its key start + j, so the tile of keys starts where the
    # block's first row does and reaches as far as its last row needs.
    base = tl.min(start, 0) if RELATIVE else 0
    n = base + tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wide = n.to(tl.int64)
    column = n[None, :] - (start[:, None] if RELATIVE else 0)
    out = out_ptr + row[:, None] * stride_out + column
    stored = of_row[:, None] & (column >= 0) & (column < columns)
    seen = (n[None, :] >= start[:, None]) & (n[None, :] < end[:, None])
    if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
        q = _queries(
            q_ptr, row, h, d, of_row, heads, d_width, stride_t, stride_h, WIDEN, M, BLOCK_D
        )
        weight = tl.load(
            weight_ptr + row[:, None] * stride_weight + h[None, :],
            mask=of_row[:, None] & (h < heads)[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.reshape(weight, (M,))
        ok = n < num_keys
        at = key_ptr + wide[:, None] * stride_key + d[None, :]
        mask = ok[:, None] & (d < d_width)[None, :]
        factor = tl.zeros((BLOCK_N,), tl.float32) + 1.0
        if scale_ptr is not None:
            factor = tl.load(scale_ptr + n, mask=ok, other=0.0)
        if WIDEN:
            k = widen(tl.load(at, mask=mask, other=0))
            factor = factor * (WIDENED * WIDENED)
        else:
            k = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        score = _sum_heads(q, k, weight, factor, M, R, HEADS, BLOCK_N)
        tl.store(out, tl.where(seen, score, -float("inf")), mask=stored)
    else:
        tl.store(out, tl.full((R, BLOCK_N), -float("inf"), tl.float32), mask=stored)
