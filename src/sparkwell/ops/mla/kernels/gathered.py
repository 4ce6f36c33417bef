"""Sparse absorbed MLA where warps have roles: four gather records, two groups of four multiply.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

Both groups take the same 64 heads.  Each computes the scores of half of a tile's keys and half of
the output's columns; what it weighs keys by, it tells the other.  `grouped` is the form of the sums
that Triton's interpreter can run.
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

from sparkwell.ops.mla.kernels.finish import finish
from sparkwell.ops.mla.kernels.records import (
    KEYS,
    RANK,
    ROPE,
    STAGES,
    copy_records,
    launch_gathering,
    place,
    read_queries,
    share_of_keys,
    widen_records,
)

MINE: gl.constexpr = gl.constexpr(32)  # keys of a tile that a group scores
HEADS: gl.constexpr = gl.constexpr(64)  # of a block: a wgmma's rows
WARPS: gl.constexpr = gl.constexpr(4)  # that gather
CONSUMER_REGS: gl.constexpr = gl.constexpr(192)
PRODUCER_REGS: gl.constexpr = gl.constexpr(120)
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _meet(barrier, turn):
    """Both groups are here, and see what the other wrote."""
    mbarrier.arrive(barrier, count=1)
    mbarrier.wait(barrier, turn)


@gluon.jit
def _other_group(x, shelf, barrier, turn, SIDE: gl.constexpr):
    """The other group's x, for this group's; shelf [2, n]."""
    shelf.index(SIDE).store(x)
    _meet(barrier, turn)
    return shelf.index(1 - SIDE).load(x.type.layout)


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, tops, masks, ready, free, scored,
    weighed, heads, count, scale2, SPLITS: gl.constexpr, SIDE: gl.constexpr,
):  # fmt: skip
    """One group of warps: scores of 32 keys of each tile, columns SIDE * 256... of the output."""
    half: gl.constexpr = RANK // 2
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MINE, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, half, 16])
    of_s: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_o: gl.constexpr = gl.SliceLayout(1, o_layout)
    m = gl.full([HEADS], float("-inf"), gl.float32, of_s)
    l = gl.zeros([HEADS], gl.float32, of_s)  # noqa: E741  over this group's keys
    o = gl.zeros([HEADS, half], gl.float32, o_layout)
    for j in tl.range(count, disable_licm=True):
        stage, turn = j % STAGES, (j // STAGES) & 1
        mbarrier.wait(ready.index(stage), turn)
        k = ks.index(stage)
        s = gl.zeros([HEADS, MINE], gl.float32, s_layout)
        mine = k.slice(SIDE * MINE, MINE, 0).permute([1, 0])
        s = warpgroup_mma(qs, mine, s, use_acc=False, is_async=True)
        mine = rs.index(stage).slice(SIDE * MINE, MINE, 0).permute([1, 0])
        s = warpgroup_mma(qrs, mine, s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mask = masks.index(stage).slice(SIDE * MINE, MINE, 0).load(gl.SliceLayout(0, s_layout))
        s = s * scale2 + mask.to(gl.float32)[None, :]
        m_new = gl.maximum(m, gl.max(s, 1))
        m_new = gl.maximum(m_new, _other_group(m_new, tops, scored, j & 1, SIDE))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - shift[:, None])
        fade = gl.exp2(m - shift)
        l = l * fade + gl.sum(p, 1)  # noqa: E741
        m = m_new
        ps.slice(SIDE * MINE, MINE, 1).store(p.to(gl.bfloat16))
        fence_async_shared()
        _meet(weighed, j & 1)
        o = o * gl.convert_layout(fade, of_o)[:, None]
        o = warpgroup_mma(ps, k.slice(SIDE * half, half, 1), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(stage), count=1)

    l += _other_group(l, tops, scored, count & 1, SIDE)  # noqa: E741
    head0, t, split = place(heads, HEADS)
    h = head0 + gl.arange(0, HEADS, of_s)
    weight, lse, largest = finish(l, m, sink_ptr, h, heads, SPLITS)
    row = (t * SPLITS + split) * heads
    if SIDE == 0:
        gl.store(lse_ptr + row + h, lse, mask=h < heads)
        gl.store(max_ptr + row + h, largest, mask=h < heads)
    h = head0 + gl.arange(0, HEADS, of_o)
    o = o * gl.convert_layout(weight, of_o)[:, None]
    c = SIDE * half + gl.arange(0, half, gl.SliceLayout(0, o_layout))
    to = out_ptr + (row + h)[:, None] * RANK + c[None, :]
    gl.store(to, o.to(out_ptr.dtype.element_ty), mask=(h < heads)[:, None])


@gluon.jit
def gathered_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, pages, names_ptr, length_ptr, sink_ptr, heads, width, limit,
    page_stride, stride_q_t, stride_q_h, stride_names, scale,
    FP8: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    head0, t, split = place(heads, HEADS)
    first, last, count = share_of_keys(width, length_ptr, t, split, SPLITS)
    names = names_ptr + t * stride_names

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([HEADS, KEYS], gl.bfloat16)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    qs = gl.allocate_shared_memory(gl.bfloat16, [HEADS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, RANK], tall)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, ROPE], thin)
    ps = gl.allocate_shared_memory(gl.bfloat16, [HEADS, KEYS], square)
    tops = gl.allocate_shared_memory(gl.float32, [2, HEADS], flat)
    masks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS], flat)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    scored = mbarrier.allocate_mbarrier()
    weighed = mbarrier.allocate_mbarrier()
    mbarrier.init(scored, count=2)
    mbarrier.init(weighed, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)

    read_queries(q_ptr, qs, qrs, t, head0, heads, stride_q_t, stride_q_h, HEADS)
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, tops, masks, ready, free,
                scored, weighed, heads, count, scale * LOG2E, SPLITS, 0,
            )),
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, tops, masks, ready, free,
                scored, weighed, heads, count, scale * LOG2E, SPLITS, 1,
            )),
            (widen_records, (
                pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
                PAGE, WARPS, False,
            )) if FP8 else (copy_records, (
                pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
                PAGE, WARPS, 0, 1,
            )),
        ],
        [4, WARPS],
        [CONSUMER_REGS, PRODUCER_REGS],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def run_gathered(first, q, cache, lists, stride_lists, scale, *, plan):
    launch_gathering(gathered_kernel, first, q, cache, lists, stride_lists, scale, plan=plan)
