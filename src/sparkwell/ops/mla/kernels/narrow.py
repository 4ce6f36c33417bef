"""Dense absorbed MLA of few pairs where warps have roles: one copies keys, four multiply.

    s = scale kv q^T,  p = exp2(s - max),  o = kv[:, :rank]^T p / sum p    online over tiles of keys

A wgmma has 64 rows, which 16 or 32 pairs (row, head) do not fill: here keys are the rows.  Four
warps suffice, what bounds this is the reading of keys.
"""

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

from sparkwell.ops.mla.kernels.contexts import (
    KEYS,
    RANK,
    ROPE,
    find_work,
    first_row_of,
    launch_over_contexts,
    page_of,
    pairs,
)
from sparkwell.ops.mla.kernels.finish import finish

STAGES: gl.constexpr = gl.constexpr(2)
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _copy(
    latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, last, count,
    PAGE: gl.constexpr,
):  # fmt: skip
    """Tiles of keys to shared memory, into a ring of STAGES."""
    for i in range(count):
        stage, turn = i % STAGES, (i // STAGES) & 1
        key = first + i * KEYS
        page, known = page_of(names, key, last, limit, PAGE)
        row = first_row_of(page, known, key, page_rows, PAGE)
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
def _read_pairs(
    q_ptr, qs, qrs, tile, heads, t0, rows, stride_q_t, stride_q_h, PAIRS: gl.constexpr
):  # fmt: skip
    """The block's queries to shared memory, zeros for pairs there are not."""
    copy: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i, h = pairs(tile, heads, PAIRS, gl.SliceLayout(1, copy))
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


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ps, ready, free, names, limit, tile, heads, t0,
    rows, before, width, first, last, count, split, scale2,
    SPLITS: gl.constexpr, PAGE: gl.constexpr, PAIRS: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PAIRS, 16])
    of_key: gl.constexpr = gl.SliceLayout(1, layout)
    of_pair: gl.constexpr = gl.SliceLayout(0, layout)
    i, h = pairs(tile, heads, PAIRS, of_pair)
    seen = gl.minimum(before + i + 1, last)
    m = gl.full([PAIRS], float("-inf"), gl.float32, of_pair)
    l = gl.zeros([KEYS, PAIRS], gl.float32, layout)  # noqa: E741  sums of each thread's own keys
    o = gl.zeros([RANK, PAIRS], gl.float32, layout)
    for j in tl.range(count, disable_licm=True):
        stage, turn = j % STAGES, (j // STAGES) & 1
        key = first + j * KEYS
        page, known = page_of(names, key, last, limit, PAGE)
        stop = gl.where(known, seen, 0)
        mbarrier.wait(ready.index(stage), turn)
        k = ks.index(stage)
        s = gl.zeros([KEYS, PAIRS], gl.float32, layout)
        s = warpgroup_mma(k, qs.permute([1, 0]), s, use_acc=False, is_async=True)
        s = warpgroup_mma(rs.index(stage), qrs.permute([1, 0]), s, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        n = key + gl.arange(0, KEYS, of_key)
        s = gl.where(n[:, None] < stop[None, :], s * scale2, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 0))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p = gl.exp2(s - shift[None, :])
        fade = gl.exp2(m - shift)
        l = l * fade[None, :] + p  # noqa: E741
        m = m_new
        ps.store(p.to(gl.bfloat16))
        if last - key < KEYS:
            _clean(k, last - key)
        fence_async_shared()
        gl.barrier()
        o = warpgroup_mma(k.slice(0, RANK, 1).permute([1, 0]), ps, o * fade[None, :], is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(stage), count=1)

    weight, lse, largest = finish(gl.sum(l, 0), m, None, h, heads, SPLITS)
    row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
    gl.store(lse_ptr + row, lse, mask=i < rows)
    gl.store(max_ptr + row, largest, mask=i < rows)
    c = gl.arange(0, RANK, gl.SliceLayout(1, layout))
    to = out_ptr + row[None, :] * RANK + c[:, None]
    gl.store(to, (o * weight[None, :]).to(out_ptr.dtype.element_ty), mask=(i < rows)[None, :])


@gluon.jit
def narrow_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latents, ropes, table_ptr, length_ptr, start_ptr, heads,
    width, num_rows, num_requests, limit, page_rows, stride_q_t, stride_q_h, stride_table, scale,
    EACH: gl.constexpr, STEPS: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr,
    PAIRS: gl.constexpr,
):  # fmt: skip
    request, tile, t0, rows, before, first, last, split = find_work(
        length_ptr, start_ptr, heads, width, num_rows, num_requests, EACH, STEPS, PAIRS, SPLITS
    )
    count = (last - first + KEYS - 1) // KEYS
    names = table_ptr + request.to(gl.int64) * stride_table

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    few: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, PAIRS], gl.bfloat16)
    qs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, RANK], tall)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, KEYS, ROPE], thin)
    ps = gl.allocate_shared_memory(gl.bfloat16, [KEYS, PAIRS], few)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)

    _read_pairs(q_ptr, qs, qrs, tile, heads, t0, rows, stride_q_t, stride_q_h, PAIRS)
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, qs, qrs, ks, rs, ps, ready, free, names, limit, tile,
                heads, t0, rows, before, width, first, last, count, split, scale * LOG2E, SPLITS,
                PAGE, PAIRS,
            )),
            (_copy, (
                latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, last, count,
                PAGE,
            )),
        ],
        [1],
        [40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def run_narrow(first, q, cache, lists, stride_lists, scale, *, plan):
    launch_over_contexts(
        narrow_kernel, first, q, cache, lists, stride_lists, scale, plan=plan,
        columns=RANK.value, PAIRS=plan.choice.schedule.block_h,
    )  # fmt: skip
