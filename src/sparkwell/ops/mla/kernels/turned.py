"""Sparse absorbed MLA for few heads, products turned: keys are a matrix's rows, heads its columns.

    s^T = scale kv q^T,  p = exp2(s - max),  o^T = kv[:, :rank]^T p^T / sum p    online over tiles

A wgmma has 64 rows, however few heads there are, but as few as 8 columns: with 16 or 32 heads this
wastes nothing.  One group of four warps multiplies; eight warps widen FP8 records, or two groups of
four copy BF16 ones in turns, so that two tiles are on their way.
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

WIDENING_REGS: gl.constexpr = gl.constexpr(144)
COPYING_REGS: gl.constexpr = gl.constexpr(136)
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, masks, ready, free, heads, count,
    scale2, SPLITS: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEADS, 16])
    of_key: gl.constexpr = gl.SliceLayout(1, layout)
    of_head: gl.constexpr = gl.SliceLayout(0, layout)
    m = gl.full([HEADS], float("-inf"), gl.float32, of_head)
    l = gl.zeros([KEYS, HEADS], gl.float32, layout)  # noqa: E741  sums of each thread's own keys
    o = gl.zeros([RANK, HEADS], gl.float32, layout)
    for j in tl.range(count, disable_licm=True):
        stage, turn = j % STAGES, (j // STAGES) & 1
        mbarrier.wait(ready.index(stage), turn)
        k = ks.index(stage)
        s = gl.zeros([KEYS, HEADS], gl.float32, layout)
        s = warpgroup_mma(k, qs.permute([1, 0]), s, use_acc=False, is_async=True)
        s = warpgroup_mma(rs.index(j % rs.shape[0]), qrs.permute([1, 0]), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mask = masks.index(stage).load(of_key)
        s = s * scale2 + mask.to(gl.float32)[:, None]
        m_new = gl.maximum(m, gl.max(s, 0))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - shift[None, :])
        fade = gl.exp2(m - shift)
        l = l * fade[None, :] + p  # noqa: E741
        m = m_new
        ps.store(p.to(gl.bfloat16))
        fence_async_shared()
        gl.barrier()
        o = warpgroup_mma(k.slice(0, RANK, 1).permute([1, 0]), ps, o * fade[None, :], is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(stage), count=1)

    head0, t, split = place(heads, HEADS)
    h = head0 + gl.arange(0, HEADS, of_head)
    weight, lse, largest = finish(gl.sum(l, 0), m, sink_ptr, h, heads, SPLITS)
    row = (t * SPLITS + split) * heads + h
    gl.store(lse_ptr + row, lse, mask=h < heads)
    gl.store(max_ptr + row, largest, mask=h < heads)
    c = gl.arange(0, RANK, gl.SliceLayout(1, layout))
    to = out_ptr + row[None, :] * RANK + c[:, None]
    o = o * weight[None, :]
    gl.store(to, o.to(out_ptr.dtype.element_ty), mask=(h < heads)[None, :])


@gluon.jit
def turned_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, pages, names_ptr, length_ptr, sink_ptr, heads, width, limit,
    page_stride, stride_q_t, stride_q_h, stride_names, scale,
    FP8: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    head0, t, split = place(heads, HEADS)
    first, last, count = share_of_keys(width, length_ptr, t, split, SPLITS)
    names = names_ptr + t * stride_names

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    few: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HEADS], gl.bfloat16)
    qs = gl.allocate_shared_memory(gl.bfloat16, [HEADS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, RANK], tall)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES + FP8, KEYS, ROPE], thin)
    ps = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], few)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    masks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS], flat)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)

    read_queries(q_ptr, qs, qrs, t, head0, heads, stride_q_t, stride_q_h, HEADS)
    if FP8:
        gl.warp_specialize([
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, masks, ready, free, heads,
                count, scale * LOG2E, SPLITS, HEADS,
            )),
            (widen_records, (
                pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
                PAGE, 8, True,
            )),
        ], [8], [WIDENING_REGS])  # fmt: skip
    else:
        gl.warp_specialize([
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, sink_ptr, qs, qrs, ks, rs, ps, masks, ready, free, heads,
                count, scale * LOG2E, SPLITS, HEADS,
            )),
            (copy_records, (
                pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
                PAGE, 4, 0, 2,
            )),
            (copy_records, (
                pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
                PAGE, 4, 1, 2,
            )),
        ], [4, 4], [COPYING_REGS, COPYING_REGS])  # fmt: skip


# ---------------------------------------------------------------- launch


def run_turned(first, q, cache, lists, stride_lists, scale, *, plan):
    launch_gathering(
        turned_kernel, first, q, cache, lists, stride_lists, scale, plan=plan,
        HEADS=plan.choice.schedule.block_h,
    )  # fmt: skip
