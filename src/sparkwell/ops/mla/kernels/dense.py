"""Absorbed MLA over whole paged contexts, the rows of a request and their heads packed in a tile.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

A block takes BLOCK_M pairs (row, head) of one request and one share of its keys, pages being whole
tiles.  The same work as `specialized`, in a form that Triton's interpreter can run.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.launch import launch
from sparkwell.ops.mla.kernels.finish import finish

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def find_tile(start_ptr, num_requests, heads, tile, STEPS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(request, number of its tile) where no one knows how many rows a request has.

    Request i has the tiles from starts[i] * heads // BLOCK_M + i on: at least as many as it fills,
    so the grid is sized without reading a start.
    """
    low, high = 0, num_requests
    for _ in range(STEPS):
        middle = (low + high) // 2
        first = tl.load(start_ptr + middle).to(tl.int64) * heads // BLOCK_M + middle
        low = tl.where(first <= tile, middle, low)
        high = tl.where(first <= tile, high, middle)
    first = tl.load(start_ptr + low).to(tl.int64) * heads // BLOCK_M + low
    return low, (tile - first).to(tl.int32)


@triton.jit
def _pairs(start_ptr, request, tile, heads, num_rows, BLOCK_M: tl.constexpr):
    """(row in the request, head, first row, rows of the request) of each pair of a tile."""
    t0 = tl.load(start_ptr + request).to(tl.int32)
    t0 = tl.minimum(tl.maximum(t0, 0), num_rows)
    end = tl.load(start_ptr + request + 1).to(tl.int32)
    pair = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    return pair // heads, pair % heads, t0, tl.minimum(end, num_rows) - t0


@triton.jit
def dense_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, pages_ptr, table_ptr, length_ptr, start_ptr,
    heads, width, num_rows, num_requests, limit, page_stride, stride_q_t, stride_q_h, stride_table,
    scale,
    EACH: tl.constexpr, STEPS: tl.constexpr, PAGE: tl.constexpr, RECORD: tl.constexpr,
    RANK: tl.constexpr, ROPE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(1)
    if EACH > 0:
        request, tile = tile // EACH, tile % EACH
    else:
        request, tile = find_tile(start_ptr, num_requests, heads, tile, STEPS, BLOCK_M)
    i, h, t0, rows = _pairs(start_ptr, request, tile, heads, num_rows, BLOCK_M)
    if tile * BLOCK_M >= rows * heads:
        return
    of_pair = i < rows
    before = tl.load(length_ptr + request).to(tl.int32) - rows  # keys older than the first row
    seen = tl.minimum(before + i + 1, width)
    last_row = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // heads, rows - 1)
    count = tl.maximum(tl.minimum(before + last_row + 1, width), 0)

    c = tl.arange(0, RANK)
    r = tl.arange(0, ROPE)
    q_row = q_ptr + (t0 + i).to(tl.int64) * stride_q_t + h.to(tl.int64) * stride_q_h
    q = tl.load(q_row[:, None] + c[None, :], mask=of_pair[:, None], other=0.0)
    q_rope = tl.load(q_row[:, None] + RANK + r[None, :], mask=of_pair[:, None], other=0.0)

    o = tl.zeros((BLOCK_M, RANK), tl.float32)
    m = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)  # noqa: E741
    names = table_ptr + request.to(tl.int64) * stride_table
    share = tl.cdiv(tl.cdiv(count, BLOCK_N), SPLITS) * BLOCK_N
    first = split * share
    last = tl.minimum(first + share, count)
    for start in tl.range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        page = tl.load(names + start // PAGE)
        known = (page >= 0) & (page < limit)
        ok = n < tl.where(known, last, 0)
        base = tl.where(known, page, 0).to(tl.int64) * page_stride + start % PAGE * RECORD
        record = pages_ptr + base + (tl.arange(0, BLOCK_N) * RECORD)[:, None]
        k = tl.load(record + c[None, :], mask=ok[:, None], other=0.0)
        k_rope = tl.load(record + RANK + r[None, :], mask=ok[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k))
        s = tl.dot(q_rope, tl.trans(k_rope), s) * (scale * LOG2_E)
        s = tl.where(ok[None, :] & (n[None, :] < seen[:, None]), s, -float("inf"))

        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        l = l * fade + tl.sum(p, 1)  # noqa: E741
        m = m_new
        o = tl.dot(p.to(k.dtype), k, o * fade[:, None])

    row = ((t0 + i).to(tl.int64) * SPLITS + split) * heads + h
    weight, lse, largest = finish(l, m, None, h, heads, SPLITS)
    o = (o * weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * RANK + c[None, :], o, mask=of_pair[:, None])
    tl.store(lse_ptr + row, lse, mask=of_pair)
    tl.store(max_ptr + row, largest, mask=of_pair)


# ---------------------------------------------------------------- launch


def run_dense(first, q, cache, lists, stride_lists, scale, *, plan):
    p, s = plan.problem, plan.choice.schedule
    names, lengths, starts, _, requests = lists
    tiles = requests * plan.each or p.rows * p.heads // s.block_h + requests
    pages = cache.pages.view(torch.bfloat16)
    launch(
        dense_kernel, (tiles, plan.splits), *first, q, pages, names, lengths, starts, p.heads,
        p.keys, p.rows, requests, cache.num_pages, pages.stride(0), q.stride(0), q.stride(1),
        stride_lists, scale, choice=plan.choice, EACH=plan.each,
        STEPS=0 if plan.each else requests.bit_length(), PAGE=cache.page_size,
        RECORD=p.rank + p.rope, RANK=p.rank, ROPE=p.rope, SPLITS=plan.splits, BLOCK_M=s.block_h,
        BLOCK_N=s.block_n,
    )  # fmt: skip
