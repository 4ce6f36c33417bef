"""Indexer scores of e4m3 queries and keys:  scale[s] sum_h w[t, h] max(0, q[t, h] . k[s]).

A block holds a few queries with all their heads and walks over its share of the keys, whose tile is
the left operand: a sum over heads then stays within a few lanes.  -inf where a row does not look.
"""

import triton
import triton.language as tl


@triton.jit
def _keys(
    key_ptr, scale_ptr, table_ptr, owner, n, d, end, d_width, num_pages, table_width,
    stride_table, stride_key, stride_scale,
    PAGED: tl.constexpr, PAGE: tl.constexpr, TOKEN: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_D] keys, their scales, and which of them exist."""
    ok = n < end
    scale = tl.zeros(n.shape, tl.float32) + 1.0
    if PAGED:
        logical = n // PAGE
        at = table_ptr + tl.cast(owner, tl.int64) * stride_table + logical
        page = tl.load(at, mask=ok & (logical < table_width), other=-1).to(tl.int64)
        ok = ok & (page >= 0) & (page < num_pages)
        page = tl.where(ok, page, 0)
        key = page * stride_key + (n % PAGE) * TOKEN
        # The plane of scales follows the plane of values.
        from_plane = scale_ptr + page * stride_scale + PAGE * (d_width // 4) + n % PAGE
        scale = tl.load(from_plane, mask=ok, other=0.0)
    else:
        key = n.to(tl.int64) * stride_key
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + n, mask=ok, other=0.0)
    mask = ok[:, None] & (d < d_width)[None, :]
    return tl.load(key_ptr + key[:, None] + d[None, :], mask=mask, other=0.0), scale, ok


@triton.jit
def _fill(out, start, end, of_row, low, high, first, last, WIDE: tl.constexpr):
    """-inf in the columns first..last-1 of low..high-1 that a row does not see."""
    wide = tl.arange(0, WIDE)
    nothing = tl.full((out.shape[0], WIDE), -float("inf"), tl.float32)
    for at in range(tl.maximum(first, low), tl.minimum(last, high), WIDE):
        n = (at + wide)[None, :]
        gone = of_row[:, None] & ((n < start[:, None]) | (n >= end[:, None])) & (n < high)
        tl.store(out[:, None] + n, nothing, mask=gone)


@triton.jit
def tiled_kernel(
    out_ptr, q_ptr, weight_ptr, key_ptr, scale_ptr, table_ptr, request_ptr, start_ptr, end_ptr,
    rows, each, heads, d_width, num_keys, columns, chunk, num_pages, table_width, stride_out,
    stride_t, stride_h, stride_weight, stride_table, stride_key, stride_scale,
    PAGED: tl.constexpr, PAGE: tl.constexpr, TOKEN: tl.constexpr, RELATIVE: tl.constexpr,
    R: tl.constexpr, HEADS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = R * HEADS
    row = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    of_row = row < rows
    end = tl.minimum(tl.load(end_ptr + row, mask=of_row, other=0), num_keys)
    start = tl.zeros((R,), tl.int32)
    first, last, base = 0, 0, 0
    if PAGED:
        if request_ptr is None:  # so many rows each, one request after the other
            request = tl.where(of_row, (row // each).to(tl.int32), -1)
        else:
            request = tl.load(request_ptr + row, mask=of_row, other=-1)
        first = tl.maximum(tl.min(tl.where(of_row, request, 2147483647), 0), 0)
        last = tl.max(request, 0)
    else:
        start = tl.load(start_ptr + row, mask=of_row, other=2147483647)
    out = out_ptr + row * stride_out
    if RELATIVE:  # column j of the block's one row is its key start + j
        base = tl.min(start, 0)
        end = tl.minimum(end, tl.minimum(start, num_keys) + columns)
        out -= start
    low = base + tl.program_id(1) * chunk
    high = low + chunk if RELATIVE else tl.minimum(low + chunk, columns)

    d = tl.arange(0, BLOCK_D)
    column = tl.arange(0, N)
    of = (tl.program_id(0) * R + column // HEADS).to(tl.int64)
    head = column % HEADS
    known = (of < rows) & (head < heads)
    q = tl.load(
        q_ptr + (of * stride_t + head * stride_h)[:, None] + d[None, :],
        mask=known[:, None] & (d < d_width)[None, :], other=0.0,
    )  # fmt: skip  # [N, BLOCK_D]
    weight = tl.load(weight_ptr + of * stride_weight + head, mask=known, other=0.0)

    stop = tl.minimum(end, high)
    for owner in range(first, last + 1):  # one, unless requests of few rows share the block
        mine = stop
        if PAGED:
            mine = tl.where(request == owner, stop, 0)
        begin = tl.maximum(tl.min(start, 0), low)
        for at in tl.range(begin, tl.max(mine, 0), BLOCK_K):
            n = at + tl.arange(0, BLOCK_K)
            k, scale, ok = _keys(
                key_ptr, scale_ptr, table_ptr, owner, n, d, num_keys, d_width, num_pages,
                table_width, stride_table, stride_key, stride_scale, PAGED, PAGE, TOKEN,
            )  # fmt: skip
            dots = tl.dot(k, tl.trans(q), max_num_imprecise_acc=BLOCK_D)  # one rounding of sums
            dots = tl.maximum(dots, 0.0) * weight[None, :]
            score = tl.sum(tl.reshape(dots, (BLOCK_K, R, HEADS)), 2) * scale[:, None]
            score = tl.where(ok[:, None], score, -float("inf"))
            seen = (n[:, None] >= start[None, :]) & (n[:, None] < mine[None, :])
            tl.store(out[None, :] + n[:, None], score, mask=seen)
    if not RELATIVE:
        _fill(out, start, end, of_row, low, high, low, tl.max(tl.where(of_row, start, 0), 0), 256)
        _fill(out, start, end, of_row, low, high, tl.min(tl.where(of_row, end, high), 0), high, 256)
