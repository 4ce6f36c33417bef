"""Dense absorbed MLA where warps have roles: one copies keys, two groups multiply.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

Both groups of four warps take the same 64 pairs (row, head): each computes all scores, so nothing
is exchanged, and half of the output's columns.  A tile of keys is copied once, for both products.
While one group is at its softmax the tensor cores serve the other.
"""

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sparkwell.ops.launch import launch
from sparkwell.ops.mla.kernels.dense import find_tile
from sparkwell.ops.mla.kernels.finish import finish

PAIRS: gl.constexpr = gl.constexpr(64)  # of a block: a wgmma's rows
KEYS: gl.constexpr = gl.constexpr(64)  # of a tile
STAGES: gl.constexpr = gl.constexpr(2)
RANK: gl.constexpr = gl.constexpr(512)
ROPE: gl.constexpr = gl.constexpr(64)
HALF: gl.constexpr = gl.constexpr(256)  # output columns of a group
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _page(names, key, limit, PAGE: gl.constexpr):
    """(page, whether the cache has it)."""
    page = gl.load(names + key // PAGE)
    return page, (page >= 0) & (page < limit)


@gluon.jit
def _copy(
    latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, count, PAGE: gl.constexpr
):  # fmt: skip
    for i in range(count):
        stage, turn = i % STAGES, (i // STAGES) & 1
        key = first + i * KEYS
        page, known = _page(names, key, limit, PAGE)
        # Outside of the cache: zeros are copied.
        row = gl.where(known, page * page_rows + key % PAGE, 2147483647 - KEYS)
        mbarrier.wait(free.index(stage), turn ^ 1)
        mbarrier.expect(ready.index(stage), KEYS * (RANK + ROPE) * 2)
        tma.async_load(latents, [row, 0], ready.index(stage), ks.index(stage))
        tma.async_load(ropes, [row, RANK], ready.index(stage), rs.index(stage))


@gluon.jit
def _clean(k, valid):
    """Zeros behind the last key: what lies there may be NaN, which no weight of 0 would hide."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    for c in gl.static_range(RANK // 64):
        part = k.slice(c * 64, 64, 1)
        x = part.load(layout)
        part.store(gl.where((row < valid)[:, None], x, gl.zeros_like(x)))


@gluon.jit
def _pairs(tile, heads, layout: gl.constexpr):
    pair = tile * PAIRS + gl.arange(0, PAIRS, layout)
    return pair // heads, pair % heads


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ready, free, clean, names, limit, tile, heads, t0,
    rows, before, width, first, last, count, split, scale2,
    SPLITS: gl.constexpr, PAGE: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    of_s: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_o: gl.constexpr = gl.SliceLayout(1, o_layout)
    i, h = _pairs(tile, heads, of_s)
    seen = gl.minimum(before + i + 1, last)
    m = gl.full([PAIRS], float("-inf"), gl.float32, of_s)
    l = gl.zeros([PAIRS], gl.float32, of_s)  # noqa: E741
    o = gl.zeros([PAIRS, HALF], gl.float32, o_layout)
    for j in tl.range(count, disable_licm=True):
        stage, turn = j % STAGES, (j // STAGES) & 1
        key = first + j * KEYS
        page, known = _page(names, key, limit, PAGE)
        stop = gl.where(known, seen, 0)
        mbarrier.wait(ready.index(stage), turn)
        k = ks.index(stage)
        zeros = gl.zeros([PAIRS, KEYS], gl.float32, s_layout)
        s = warpgroup_mma(qs, k.permute([1, 0]), zeros, use_acc=False, is_async=True)
        s = warpgroup_mma(qrs, rs.index(stage).permute([1, 0]), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        n = key + gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))
        s = gl.where(n[None, :] < stop[:, None], s * scale2, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 1))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - shift[:, None])
        fade = gl.exp2(m - shift)
        l = l * fade + gl.sum(p, 1)  # noqa: E741
        m = m_new
        o = o * gl.convert_layout(fade, of_o)[:, None]
        p = gl.convert_layout(p.to(gl.bfloat16), p_layout)
        if last - key < KEYS:
            if GROUP == 0:
                # The other group has read its scores from other rows: those keys are masked.
                _clean(k, last - key)
                fence_async_shared()
                mbarrier.arrive(clean, count=1)
            mbarrier.wait(clean, 0)
        o = warpgroup_mma(p, k.slice(GROUP * HALF, HALF, 1), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(stage), count=1)

    weight, lse, largest = finish(l, m, None, h, heads, SPLITS)
    if GROUP == 0:
        row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
        gl.store(lse_ptr + row, lse, mask=i < rows)
        gl.store(max_ptr + row, largest, mask=i < rows)
    i, h = _pairs(tile, heads, of_o)
    row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
    o = o * gl.convert_layout(weight, of_o)[:, None]
    c = GROUP * HALF + gl.arange(0, HALF, gl.SliceLayout(0, o_layout))
    to = out_ptr + row[:, None] * RANK + c[None, :]
    gl.store(to, o.to(out_ptr.dtype.element_ty), mask=(i < rows)[:, None])


@gluon.jit
def specialized_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latents, ropes, table_ptr, length_ptr, start_ptr, heads,
    width, num_rows, num_requests, limit, page_rows, stride_q_t, stride_q_h, stride_table, scale,
    EACH: gl.constexpr, STEPS: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    tile = gl.program_id(0)
    split = gl.program_id(1)
    if EACH > 0:
        request, tile = tile // EACH, tile % EACH
    else:
        request, tile = find_tile(start_ptr, num_requests, heads, tile, STEPS, PAIRS)
    t0 = gl.minimum(gl.maximum(gl.load(start_ptr + request).to(gl.int32), 0), num_rows)
    rows = gl.minimum(gl.load(start_ptr + request + 1).to(gl.int32), num_rows) - t0
    before = gl.load(length_ptr + request).to(gl.int32) - rows  # keys older than the first row
    last_row = gl.minimum((tile * PAIRS + PAIRS - 1) // heads, rows - 1)
    keys = gl.maximum(gl.minimum(before + last_row + 1, width), 0)
    keys = gl.where(tile * PAIRS < rows * heads, keys, 0)  # nothing to do: no key
    share = (((keys + KEYS - 1) // KEYS + SPLITS - 1) // SPLITS) * KEYS
    first = gl.minimum(split * share, keys)
    last = gl.minimum(first + share, keys)
    count = (last - first + KEYS - 1) // KEYS
    names = table_ptr + request.to(gl.int64) * stride_table

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    qs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, RANK], tall)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, ROPE], thin)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    clean = mbarrier.allocate_mbarrier()
    mbarrier.init(clean, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)

    copy: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i, h = _pairs(tile, heads, gl.SliceLayout(1, copy))
    c = gl.arange(0, 64, gl.SliceLayout(0, copy))
    q_row = q_ptr + (t0 + i).to(gl.int64) * stride_q_t + h.to(gl.int64) * stride_q_h
    for part in gl.static_range((RANK + ROPE) // 64):
        at = q_row[:, None] + part * 64 + c[None, :]
        x = gl.load(at, mask=(i < rows)[:, None], other=0.0)
        if part < RANK // 64:
            qs.slice(part * 64, 64, 1).store(x)
        else:
            qrs.store(x)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ready, free, clean, names, limit, tile,
                heads, t0, rows, before, width, first, last, count, split, scale * LOG2E,
                SPLITS, PAGE, 0,
            )),
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ready, free, clean, names, limit, tile,
                heads, t0, rows, before, width, first, last, count, split, scale * LOG2E,
                SPLITS, PAGE, 1,
            )),
            (_copy, (
                latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, count, PAGE,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def run_specialized(first, q, cache, lists, stride_lists, scale, *, plan):  # fmt: skip
    p, names, lengths, starts, requests = plan.problem, lists[0], lists[1], lists[2], lists[4]
    width = p.rank + p.rope
    pages = cache.pages.view(torch.bfloat16)
    page_rows = pages.stride(0) // width
    rows = max(0, cache.num_pages - 1) * page_rows + cache.page_size
    flat = pages.as_strided((rows, width), (width, 1))
    latents, ropes = (
        TensorDescriptor(
            flat, [rows, width], [width, 1], [KEYS.value, n],
            gl.NVMMASharedLayout.get_default_for([KEYS.value, n], gl.bfloat16),
        )
        for n in (p.rank, p.rope)
    )  # fmt: skip
    tiles = requests * plan.each or p.rows * p.heads // PAIRS.value + requests
    launch(
        specialized_kernel, (tiles, plan.splits), *first, q, latents, ropes, names, lengths,
        starts, p.heads, p.keys, p.rows, requests, cache.num_pages, page_rows, q.stride(0),
        q.stride(1), stride_lists, scale, choice=plan.choice, EACH=plan.each,
        STEPS=0 if plan.each else requests.bit_length(), PAGE=cache.page_size, SPLITS=plan.splits,
    )  # fmt: skip
