"""Dense absorbed MLA where warps have roles: one copies keys, two groups multiply in turns.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

Both groups of four warps take the same 64 pairs (row, head).  Tiles come in twos: group g scores
all keys of tile g and adds its half of the output's columns for both tiles.  Group 0 tells its
maximum and its weights to group 1, which goes on from there and tells its own back: while one is
at its softmax, the other multiplies.  Weights lie where their tile's rotated keys lay, which only
their own group reads.  Half a tile's latents are free as soon as the group that weighs them is
done; then the next ones are copied.
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

PAIRS: gl.constexpr = gl.constexpr(64)  # of a block: a wgmma's rows
HALF: gl.constexpr = gl.constexpr(256)  # output columns of a group
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def _copy_half(
    latents, ropes, ks, rs, ready, free, names, limit, page_rows, key, last, turn,
    PAGE: gl.constexpr, G: gl.constexpr, H: gl.constexpr,
):  # fmt: skip
    """Half H of the latents of tile G; rotated keys come with the half that is free later."""
    page, known = page_of(names, key, last, limit, PAGE)
    row = first_row_of(page, known, key, page_rows, PAGE)
    full = ready.index(2 * G + H)
    mbarrier.wait(free.index(2 * G + H), turn ^ 1)
    mbarrier.expect(full, KEYS * (HALF + (0 if G == H else ROPE)) * 2)
    tma.async_load(latents, [row, H * HALF], full, ks.index(2 * G + H))
    if G != H:
        tma.async_load(ropes, [row, RANK], full, rs.index(G))


@gluon.jit
def _copy(
    latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, last, twos,
    PAGE: gl.constexpr,
):  # fmt: skip
    """Tiles two by two: half h of tile g is buffer 2 g + h, which group h weighs last."""
    for i in range(twos):
        for n in gl.static_range(4):
            _copy_half(
                latents, ropes, ks, rs, ready, free, names, limit, page_rows,
                first + (2 * i + n // 2) * KEYS, last, i & 1, PAGE, n // 2, (n % 2) ^ (n // 2),
            )  # fmt: skip


@gluon.jit
def _clean(ks, G: gl.constexpr, valid):
    """Zeros behind the last key: what lies there may be NaN, which no weight of 0 would hide."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    for c in gl.static_range(RANK // 64):
        part = ks.index(2 * G + c // 4).slice(c % 4 * 64, 64, 1)
        x = part.load(layout)
        part.store(gl.where((row < valid)[:, None], x, gl.zeros_like(x)))


@gluon.jit
def _read_half(
    q_ptr, qs, qrs, asked, tile, heads, t0, rows, stride_q_t, stride_q_h, G: gl.constexpr
):  # fmt: skip
    """This group's share of the queries to shared memory; then wait for the other's."""
    copy: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i, h = pairs(tile, heads, PAIRS, gl.SliceLayout(1, copy))
    c = gl.arange(0, 64, gl.SliceLayout(0, copy))
    q_row = q_ptr + (t0 + i).to(gl.int64) * stride_q_t + h.to(gl.int64) * stride_q_h
    for part in gl.static_range(G * 4, 4 + G * 5):
        at = q_row[:, None] + part * 64 + c[None, :]
        x = gl.load(at, mask=(i < rows)[:, None], other=0.0)
        if part < RANK // 64:
            qs.slice(part * 64, 64, 1).store(x)
        else:
            qrs.store(x)
    fence_async_shared()
    mbarrier.arrive(asked, count=1)
    mbarrier.wait(asked, 0)


@gluon.jit
def _score(qs, qrs, ks, rs, ready, turn, G: gl.constexpr, s_layout: gl.constexpr):
    """Scores of tile G, begun: the half that comes first, then the other and the rotated keys."""
    s = gl.zeros([PAIRS, KEYS], gl.float32, s_layout)
    mbarrier.wait(ready.index(3 * G), turn)
    k = ks.index(3 * G).permute([1, 0])
    s = warpgroup_mma(qs.slice(G * HALF, HALF, 1), k, s, use_acc=False, is_async=True)
    mbarrier.wait(ready.index(1 + G), turn)
    k = ks.index(1 + G).permute([1, 0])
    s = warpgroup_mma(qs.slice(HALF - G * HALF, HALF, 1), k, s, is_async=True)
    return warpgroup_mma(qrs, rs.index(G).permute([1, 0]), s, is_async=True)


@gluon.jit
def _weights(
    s, m, scale2, stop, key, last, ks, rs, tops, told, G: gl.constexpr, s_layout: gl.constexpr
):  # fmt: skip
    """Softmax of tile G, told to the other group.  -> (largest score so far, shift, sums)."""
    n = key + gl.arange(0, KEYS, gl.SliceLayout(0, s_layout))
    s = gl.where(n[None, :] < stop[:, None], s * scale2, float("-inf"))
    top = gl.maximum(m, gl.max(s, 1))
    tops.index(G).store(top)
    shift = gl.where(top == float("-inf"), 0.0, top)
    p = gl.exp2(s - shift[:, None])
    rs.index(G).store(p.to(gl.bfloat16))
    if last - key < KEYS:
        _clean(ks, G, last - key)  # only this group reads its scores from there, and has
    fence_async_shared()
    mbarrier.arrive(told, count=1)
    return top, shift, gl.sum(p, 1)


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, max_ptr, q_ptr, qs, qrs, ks, rs, tops, asked, ready, free, told0, told1,
    names, limit, tile, heads, t0, rows, before, first, last, twos, split, scale2, stride_q_t,
    stride_q_h, SPLITS: gl.constexpr, PAGE: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    of_s: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_o: gl.constexpr = gl.SliceLayout(1, o_layout)
    i, h = pairs(tile, heads, PAIRS, of_s)
    seen = gl.minimum(before + i + 1, last)
    m = gl.full([PAIRS], float("-inf"), gl.float32, of_s)
    l = gl.zeros([PAIRS], gl.float32, of_s)  # noqa: E741  over this group's tiles
    o = gl.zeros([PAIRS, HALF], gl.float32, o_layout)
    _read_half(q_ptr, qs, qrs, asked, tile, heads, t0, rows, stride_q_t, stride_q_h, G)
    for j in tl.range(twos, disable_licm=True):
        turn = j & 1
        key = first + (2 * j + G) * KEYS
        page, known = page_of(names, key, last, limit, PAGE)
        stop = gl.where(known, seen, 0)
        s = _score(qs, qrs, ks, rs, ready, turn, G, s_layout)
        if G == 0:
            s = warpgroup_mma_wait(0, deps=[s])
            top, shift, sums = _weights(
                s, m, scale2, stop, key, last, ks, rs, tops, told0, 0, s_layout
            )
            fade = gl.exp2(m - shift)
            l = l * fade + sums  # noqa: E741
            o = o * gl.convert_layout(fade, of_o)[:, None]
            o = warpgroup_mma(rs.index(0), ks.index(0), o, is_async=True)
            o = warpgroup_mma_wait(0, deps=[o])
            mbarrier.arrive(free.index(0), count=1)
            mbarrier.wait(told1, turn)
            m = tops.index(1).load(of_s)
            fade = gl.exp2(top - gl.where(m == float("-inf"), 0.0, m))
            l = l * fade  # noqa: E741
        else:
            mbarrier.wait(told0, turn)
            top = tops.index(0).load(of_s)
            shift = gl.where(top == float("-inf"), 0.0, top)
            fade = gl.exp2(m - shift)
            l = l * fade  # noqa: E741
            o = o * gl.convert_layout(fade, of_o)[:, None]
            o = warpgroup_mma(rs.index(0), ks.index(1), o, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            m, shift, sums = _weights(
                s, top, scale2, stop, key, last, ks, rs, tops, told1, 1, s_layout
            )
            fade = gl.exp2(top - shift)
            l = l * fade + sums  # noqa: E741
            o = warpgroup_mma_wait(0, deps=[o])
            mbarrier.arrive(free.index(1), count=1)
        o = o * gl.convert_layout(fade, of_o)[:, None]
        o = warpgroup_mma(rs.index(1), ks.index(2 + G), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(free.index(2 + G), count=1)

    # The last told1 says that group 0's shelf has been read, told0 the same of the other.
    if G == 0:
        tops.index(0).store(l)
        mbarrier.arrive(told0, count=1)
        mbarrier.wait(told1, twos & 1)
    else:
        mbarrier.wait(told0, twos & 1)
        tops.index(1).store(l)
        mbarrier.arrive(told1, count=1)
    l = l + tops.index(1 - G).load(of_s)  # noqa: E741
    weight, lse, largest = finish(l, m, None, h, heads, SPLITS)
    if G == 0:
        row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
        gl.store(lse_ptr + row, lse, mask=i < rows)
        gl.store(max_ptr + row, largest, mask=i < rows)
    i, h = pairs(tile, heads, PAIRS, of_o)
    row = ((t0 + i).to(gl.int64) * SPLITS + split) * heads + h
    o = o * gl.convert_layout(weight, of_o)[:, None]
    c = G * HALF + gl.arange(0, HALF, gl.SliceLayout(0, o_layout))
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
    twos = (last - first + 2 * KEYS - 1) // (2 * KEYS)
    names = table_ptr + request.to(gl.int64) * stride_table

    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([PAIRS, RANK], gl.bfloat16)
    half: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, HALF], gl.bfloat16)
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE], gl.bfloat16)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    qs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, RANK], tall)
    qrs = gl.allocate_shared_memory(gl.bfloat16, [PAIRS, ROPE], thin)
    ks = gl.allocate_shared_memory(gl.bfloat16, [4, KEYS, HALF], half)
    rs = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, ROPE], thin)  # weights too
    tops = gl.allocate_shared_memory(gl.float32, [2, PAIRS], flat)
    ready = mbarrier.allocate_mbarrier(batch=4)
    free = mbarrier.allocate_mbarrier(batch=4)
    asked = mbarrier.allocate_mbarrier()
    told0 = mbarrier.allocate_mbarrier()
    told1 = mbarrier.allocate_mbarrier()
    mbarrier.init(asked, count=2)
    mbarrier.init(told0, count=1)
    mbarrier.init(told1, count=1)
    for part in gl.static_range(4):
        mbarrier.init(ready.index(part), count=1)
        mbarrier.init(free.index(part), count=1)
    fence_async_shared()

    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, q_ptr, qs, qrs, ks, rs, tops, asked, ready, free, told0,
                told1, names, limit, tile, heads, t0, rows, before, first, last, twos, split,
                scale * LOG2E, stride_q_t, stride_q_h, SPLITS, PAGE, 0,
            )),
            (_multiply, (
                out_ptr, lse_ptr, max_ptr, q_ptr, qs, qrs, ks, rs, tops, asked, ready, free, told0,
                told1, names, limit, tile, heads, t0, rows, before, first, last, twos, split,
                scale * LOG2E, stride_q_t, stride_q_h, SPLITS, PAGE, 1,
            )),
            (_copy, (
                latents, ropes, ks, rs, ready, free, names, limit, page_rows, first, last, twos,
                PAGE,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def run_specialized(first, q, cache, lists, stride_lists, scale, *, plan):
    launch_over_contexts(
        specialized_kernel, first, q, cache, lists, stride_lists, scale, plan=plan,
        columns=HALF.value,
    )  # fmt: skip
