"""Dense absorbed MLA where warps have roles: one copies keys, two groups multiply.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

Both groups of four warps take the same 64 pairs (row, head).  Each computes the scores of half of a
tile's keys and half of the output's columns; what it weighs keys by, it tells the other.  A tile of
keys is copied once, for both products.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparkwell.ops.mla.kernels.contexts import (
    KEYS,
    RANK,
    ROPE,
    STAGES,
    clean,
    copy_keys,
    find_work,
    launch_over_contexts,
    page_of,
    pairs,
    read_pairs,
)
from sparkwell.ops.mla.kernels.exchange import meet, other_group
from sparkwell.ops.mla.kernels.finish import finish

PAIRS: gl.constexpr = gl.constexpr(64)  # of a block: a wgmma's rows
MINE: gl.constexpr = gl.constexpr(32)  # keys of a tile that a group scores
HALF: gl.constexpr = gl.constexpr(256)  # output columns of a group
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ps, tops, ready, free, scored, weighed, names,
    limit, tile, heads, t0, rows, before, width, first, last, count, split, scale2,
    SPLITS: gl.constexpr, PAGE: gl.constexpr, SIDE: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MINE, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    of_s: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_o: gl.constexpr = gl.SliceLayout(1, o_layout)
    i, h = pairs(tile, heads, PAIRS, of_s)
    seen = gl.minimum(before + i + 1, last)
    m = gl.full([PAIRS], float("-inf"), gl.float32, of_s)
    l = gl.zeros([PAIRS], gl.float32, of_s)  # noqa: E741  over this group's keys
    o = gl.zeros([PAIRS, HALF], gl.float32, o_layout)
    for j in tl.range(count, disable_licm=True):
        stage, turn = j % STAGES, (j // STAGES) & 1
        key = first + j * KEYS
        page, known = page_of(names, key, limit, PAGE)
        stop = gl.where(known, seen, 0)
        mbarrier.wait(ready.index(stage), turn)
        k = ks.index(stage)
        s = gl.zeros([PAIRS, MINE], gl.float32, s_layout)
        mine = k.slice(SIDE * MINE, MINE, 0).permute([1, 0])
        s = warpgroup_mma(qs, mine, s, use_acc=False, is_async=True)
        mine = rs.index(stage).slice(SIDE * MINE, MINE, 0).permute([1, 0])
        s = warpgroup_mma(qrs, mine, s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        n = key + SIDE * MINE + gl.arange(0, MINE, gl.SliceLayout(0, s_layout))
        s = gl.where(n[None, :] < stop[:, None], s * scale2, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 1))
        m_new = gl.maximum(m_new, other_group(m_new, tops, scored, j & 1, SIDE))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - shift[:, None])
        fade = gl.exp2(m - shift)
        l = l * fade + gl.sum(p, 1)  # noqa: E741
        m = m_new
        ps.slice(SIDE * MINE, MINE, 1).store(p.to(gl.bfloat16))
        if SIDE == 0:  # noqa: SIM102  of constants and values, one `and` is none
            if last - key < KEYS:
                clean(k, last - key)  # the other group has read its scores
        fence_async_shared()
        meet(weighed, j & 1)
        o = o * gl.convert_layout(fade, of_o)[:, None]
        o = warpgroup_mma(ps, k.slice(SIDE * HALF, HALF, 1), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(stage), count=1)

    l += other_group(l, tops, scored, count & 1, SIDE)  # noqa: E741
    weight, lse, largest = finish(l, m, None, h, heads, SPLITS)
    if SIDE == 0:
        row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
        gl.store(lse_ptr + row, lse, mask=i < rows)
        gl.store(max_ptr + row, largest, mask=i < rows)
    i, h = pairs(tile, heads, PAIRS, of_o)
    row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
    o = o * gl.convert_layout(weight, of_o)[:, None]
    c = SIDE * HALF + gl.arange(0, HALF, gl.SliceLayout(0, o_layout))
    to = out_ptr + row[:, None] * RANK + c[None, :]
    gl.store(to, o.to(out_ptr.dtype.element_ty), mask=(i < rows)[:, None])


@gluon.jit
def specialized_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latents, ropes, table_ptr, length_ptr, start_ptr, heads,
    width, num_rows, num_requests, limit, page_rows, stride_q_t, stride_q_h, stride_table, scale,
    EACH: gl.constexpr, STEPS: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    request, tile, t0, rows, before, first, last, split = find_work(
        length_ptr, start_ptr, heads, width, num_rows, num_requests, EACH, STEPS, PAIRS, SPLITS
    )
    count = (last - first + KEYS - 1) // KEYS
    names = table_ptr + request.to(gl.int64) * stride_table

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([PAIRS, KEYS], gl.bfloat16)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    qs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, RANK], tall)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, ROPE], thin)
    ps = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, KEYS], square)
    tops = gl.allocate_shared_memory(gl.float32, [2, PAIRS], flat)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    scored = mbarrier.allocate_mbarrier()
    weighed = mbarrier.allocate_mbarrier()
    mbarrier.init(scored, count=2)
    mbarrier.init(weighed, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)

    read_pairs(q_ptr, qs, qrs, tile, heads, t0, rows, stride_q_t, stride_q_h, PAIRS)
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ps, tops, ready, free, scored, weighed,
                names, limit, tile, heads, t0, rows, before, width, first, last, count, split,
                scale * LOG2E, SPLITS, PAGE, 0,
            )),
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ps, tops, ready, free, scored, weighed,
                names, limit, tile, heads, t0, rows, before, width, first, last, count, split,
                scale * LOG2E, SPLITS, PAGE, 1,
            )),
            (copy_keys, (
                latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, count, PAGE,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def run_specialized(first, q, cache, lists, stride_lists, scale, *, plan):
    launch_over_contexts(specialized_kernel, first, q, cache, lists, stride_lists, scale, plan=plan)
