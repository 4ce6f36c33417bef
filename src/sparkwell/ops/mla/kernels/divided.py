"""Absorbed MLA of many heads by mma.sync: warps divide the heads and the record's columns.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

Every product is a batch of PARTS small ones.  A warp takes 16 heads and one part of the columns,
for its share of the scores and again for its share of the output, and keeps its queries in its
registers.  The shares of the scores meet in shared memory; every part's warps add up the same sum,
so p stays where it is needed.  `grouped` is the form of the same sums that can be interpreted.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from sparkwell.ops.launch import launch
from sparkwell.ops.mla.kernels.finish import finish

STAGES: gl.constexpr = gl.constexpr(2)
RANK: gl.constexpr = gl.constexpr(512)
ROPE: gl.constexpr = gl.constexpr(64)
CHUNK: gl.constexpr = gl.constexpr(64)  # columns of a part that one product takes
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.constexpr_function
def by_lane(parts, rows, columns):
    """Shared memory of [parts, rows, columns] sums: four of a lane's lie next to each other."""
    order = [[0, 0, 1], [0, 8, 0], [0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    order += [[0, 0, 1 << i] for i in range(3, columns.bit_length() - 1)]
    order += [[0, 1 << i, 0] for i in range(4, rows.bit_length() - 1)]
    order += [[1 << i, 0, 0] for i in range(parts.bit_length() - 1)]
    return gl.SharedLinearLayout(order)


# ---------------------------------------------------------------- keys


@gluon.jit
def _request(t, start_ptr, num_requests, layout: gl.constexpr):
    """The request that owns row t: how many of query_start[1:] are <= t."""
    request = 0
    for first in range(0, num_requests, 256):
        i = first + gl.arange(0, 256, layout)
        start = gl.load(start_ptr + 1 + i, mask=i < num_requests, other=2147483647)
        request += gl.sum((start <= t).to(gl.int32), 0)
    return gl.minimum(request, num_requests - 1)  # a row that belongs to none reads no start


@gluon.jit
def keys_of_row(
    row, lists_ptr, length_ptr, start_ptr, width, num_requests, stride_lists,
    PAGED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Where the row's list (or table) starts, and how many keys it names."""
    if PAGED:
        line: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
        request = _request(row, start_ptr, num_requests, line)
        end = gl.load(start_ptr + request + 1).to(gl.int32)
        length = gl.load(length_ptr + request).to(gl.int32)
        keys = gl.minimum(gl.minimum(length - end + row + 1, length), width)
        names = lists_ptr + request.to(gl.int64) * stride_lists
    else:
        keys = width
        if length_ptr is not None:
            keys = gl.minimum(width, gl.load(length_ptr + row).to(gl.int32))
        names = lists_ptr + row.to(gl.int64) * stride_lists
    return names, gl.maximum(keys, 0)


@gluon.jit
def names_of(names, n, last, limit, PAGED: gl.constexpr, PAGE: gl.constexpr):
    """A tile's slots, or pages if PAGED; -1 where there is no such key."""
    name = gl.load(names + (n // PAGE if PAGED else n), mask=n < last, other=-1)
    return gl.where((name >= 0) & (name < limit), name, -1)


@gluon.jit
def offsets_of(
    name, n, page_stride, PAGED: gl.constexpr, PAGE: gl.constexpr, RECORD: gl.constexpr,
    ALIGN: gl.constexpr,
):  # fmt: skip
    """Where each record starts.  PAGE: 0 (with slots only): pages follow each other without gap."""
    name = gl.maximum(name, 0)
    if PAGED:
        at = name.to(gl.int64) * page_stride + (n % PAGE) * RECORD
    elif PAGE == 0:
        at = name.to(gl.int64) * RECORD
    else:
        at = (name // PAGE).to(gl.int64) * page_stride + (name % PAGE) * RECORD
    return gl.multiple_of(at, ALIGN)


@gluon.jit
def columns_of(PARTS: gl.constexpr, WIDE: gl.constexpr, SOME: gl.constexpr, layout: gl.constexpr):
    """Where the first SOME of each part's WIDE columns are: [PARTS, 1, SOME]."""
    g = gl.arange(0, PARTS, gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    c = gl.arange(0, SOME, gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    return gl.expand_dims(g[:, None], 2) * WIDE + gl.expand_dims(c[None, :], 1)


@gluon.jit
def start_copy(to, at, ok, from_ptr, layout: gl.constexpr):
    """Start copying one piece of each record, whose parts follow each other; zeros if not ok."""
    PARTS: gl.constexpr = to.shape[0]
    of_key: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, layout))
    at = gl.expand_dims(gl.convert_layout(at, of_key)[None, :], 2)
    ok = gl.expand_dims(gl.convert_layout(ok, of_key)[None, :], 2)
    at = from_ptr + at + columns_of(PARTS, to.shape[2], to.shape[2], layout)
    async_copy.async_load(to, at, mask=ok)


# ---------------------------------------------------------------- products


@gluon.jit
def queries_of(
    q_row, head0, heads, stride_q_h, HEADS: gl.constexpr, PARTS: gl.constexpr, WIDE: gl.constexpr,
    SOME: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """SOME columns of each part of the queries: [PARTS, HEADS, SOME]."""
    h = head0 + gl.arange(0, HEADS, gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    h = gl.expand_dims(h[None, :], 2)
    at = q_row + h.to(gl.int64) * stride_q_h + columns_of(PARTS, WIDE, SOME, layout)
    return gl.load(at, mask=h < heads, other=0.0)


@gluon.jit
def _shares(q, q_rope, k, r, layout: gl.constexpr):
    """What each part of the columns gives to q k^T: [PARTS, HEADS, KEYS]."""
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    s = gl.zeros([k.shape[0], q_rope.shape[1], k.shape[1]], gl.float32, layout)
    k = k.permute([0, 2, 1])
    for i in gl.static_range(len(q)):
        s = mma_v2(q[i], k.slice(i * CHUNK, CHUNK, 1).load(right), s)
    return mma_v2(q_rope.load(left), r.permute([0, 2, 1]).load(right), s)


@gluon.jit
def scores_of(shares, hide, scale2, HALF: gl.constexpr, layout: gl.constexpr):
    """The sum of the shares of half of the keys, in base 2; -inf where there is no key."""
    KEYS: gl.constexpr = hide.shape[0] // 2
    PARTS: gl.constexpr = shares.shape[0]
    shares = shares.slice(HALF * KEYS, KEYS, 2)
    s = shares.slice(0, 1, 0).load(layout)
    for i in gl.static_range(1, PARTS):
        s = s + shares.slice(i, 1, 0).load(layout)
    x = hide.slice(HALF * KEYS, KEYS, 0).load(gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    return s * scale2 + gl.expand_dims(x[None, :], 1)


@gluon.jit
def _weights(p, PARTS: gl.constexpr, layout: gl.constexpr):
    """p for the products of all parts."""
    p = p.to(gl.bfloat16).broadcast_to(PARTS, p.shape[1], p.shape[2])
    return gl.convert_layout(p, layout)


@gluon.jit
def _output(o, fade, p_a, p_b, k, layout: gl.constexpr):
    """o * fade + p v.  Half of the keys at a time: fewer addresses to keep."""
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    HALF: gl.constexpr = k.shape[1] // 2
    w_a = _weights(p_a, k.shape[0], left)
    w_b = _weights(p_b, k.shape[0], left)
    k_a = k.slice(0, HALF, 1)
    k_b = k.slice(HALF, HALF, 1)
    new = ()
    for i in gl.static_range(len(o)):
        x = mma_v2(w_a, k_a.slice(i * CHUNK, CHUNK, 2).load(right), o[i] * fade)
        x = mma_v2(w_b, k_b.slice(i * CHUNK, CHUNK, 2).load(right), x)
        new = new + (x,)  # type: ignore[assignment]
    return new


@gluon.jit
def finish_and_store(
    out_ptr, lse_ptr, max_ptr, sink_ptr, o, m, l, part, head0, heads,  # noqa: E741
    SPLITS: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """`finish`, and the stores."""
    HEADS: gl.constexpr = m.shape[1]
    PARTS: gl.constexpr = o[0].shape[0]
    h = (head0 + gl.arange(0, HEADS, gl.SliceLayout(0, gl.SliceLayout(2, layout))))[None, :]
    weight, lse, largest = finish(l, m, sink_ptr, h, heads, SPLITS)
    row = part * heads + h
    gl.store(lse_ptr + row, lse, mask=h < heads)
    gl.store(max_ptr + row, largest, mask=h < heads)
    to = out_ptr + gl.expand_dims(row, 2) * RANK + columns_of(PARTS, RANK // PARTS, CHUNK, layout)
    weight = gl.expand_dims(weight, 2)
    mask = gl.expand_dims(h < heads, 2)
    for i in gl.static_range(len(o)):
        gl.store(to + i * CHUNK, (o[i] * weight).to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def divided_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, pages, lists_ptr, length_ptr, start_ptr, sink_ptr, heads,
    width, num_requests, limit, page_stride, stride_q_t, stride_q_h, stride_lists, scale,
    PAGED: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr, HEADS: gl.constexpr,
    KEYS: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    WIDE: gl.constexpr = RANK // PARTS
    THIN: gl.constexpr = ROPE // PARTS
    LANES: gl.constexpr = THIN // 8  # that copy a part of a rotated key
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, HEADS // 16, 1], [1, 16, 8])
    of_head: gl.constexpr = gl.SliceLayout(2, mma)  # [1, HEADS], the same in every part
    # Eight lanes copy a record, and the same eight its rotated key.
    copy: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 4, 8], [1, WARPS, 1], [2, 0, 1])
    copy_rope: gl.constexpr = gl.BlockedLayout(
        [1, 1, 8], [8 // LANES, 4, LANES], [1, WARPS, 1], [2, 0, 1]
    )
    of_key: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, copy))
    wide: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    thin: gl.constexpr = gl.SwizzledSharedLayout(8, 8 // LANES, LANES, [2, 1, 0])
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    blocks = (heads + HEADS - 1) // HEADS  # of a row: next to each other, they share its records
    head0 = gl.program_id(0) % blocks * HEADS
    row = gl.program_id(0) // blocks
    t = row.to(gl.int64)
    names, keys = keys_of_row(
        row, lists_ptr, length_ptr, start_ptr, width, num_requests, stride_lists, PAGED, WARPS
    )
    share = (((keys + KEYS - 1) // KEYS + SPLITS - 1) // SPLITS) * KEYS
    first = gl.minimum(gl.program_id(1) * share, keys)
    last = gl.minimum(first + share, keys)

    # Queries stay in registers but for the rotated part, which is read for each tile.
    q_row = q_ptr + t * stride_q_t
    q = ()
    for i in gl.static_range(WIDE // CHUNK):
        x = queries_of(q_row + i * CHUNK, head0, heads, stride_q_h, HEADS, PARTS, WIDE, CHUNK, copy)
        x = gl.convert_layout(x, gl.DotOperandLayout(0, mma, 2))
        q = q + (x,)  # type: ignore[assignment]
    x = queries_of(q_row + RANK, head0, heads, stride_q_h, HEADS, PARTS, THIN, THIN, copy_rope)
    q_rope = gl.allocate_shared_memory(gl.bfloat16, [PARTS, HEADS, THIN], thin, x)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, PARTS, KEYS, WIDE], wide)
    rs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, PARTS, KEYS, THIN], thin)
    hide = gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], flat)  # -inf: no key
    shares = gl.allocate_shared_memory(
        gl.float32, [PARTS, HEADS, KEYS], by_lane(PARTS, HEADS, KEYS)
    )

    o = ()
    for _ in gl.static_range(WIDE // CHUNK):
        x = gl.zeros([PARTS, HEADS, CHUNK], gl.float32, mma)
        o = o + (x,)  # type: ignore[assignment]
    m = gl.full([1, HEADS], float("-inf"), gl.float32, of_head)
    l = gl.zeros([1, HEADS], gl.float32, of_head)  # noqa: E741
    n = first + gl.arange(0, KEYS, of_key)
    name = names_of(names, n, last, limit, PAGED, PAGE)
    at = offsets_of(name, n, page_stride, PAGED, PAGE, RANK + ROPE, 8)
    hide.index(0).store(gl.where(name >= 0, 0.0, float("-inf")))
    start_copy(ks.index(0), at, name >= 0, pages, copy)
    start_copy(rs.index(0), at, name >= 0, pages + RANK, copy_rope)
    async_copy.commit_group()
    n += KEYS
    name = names_of(names, n, last, limit, PAGED, PAGE)
    for j in tl.range((last - first + KEYS - 1) // KEYS, disable_licm=True):
        stage = j % STAGES
        async_copy.wait_group(0)
        k = ks.index(stage)
        shares.store(_shares(q, q_rope, k, rs.index(stage), mma))
        other = (j + 1) % STAGES
        hide.index(other).store(gl.where(name >= 0, 0.0, float("-inf")))
        gl.barrier()
        # All warps are past the tile before this one: the next takes its place.
        at = offsets_of(name, n, page_stride, PAGED, PAGE, RANK + ROPE, 8)
        start_copy(ks.index(other), at, name >= 0, pages, copy)
        start_copy(rs.index(other), at, name >= 0, pages + RANK, copy_rope)
        async_copy.commit_group()

        s_a = scores_of(shares, hide.index(stage), scale * LOG2E, 0, mma)
        s_b = scores_of(shares, hide.index(stage), scale * LOG2E, 1, mma)
        m_new = gl.maximum(m, gl.max(gl.maximum(s_a, s_b), 2))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p_a = gl.exp2(s_a - gl.expand_dims(shift, 2))
        p_b = gl.exp2(s_b - gl.expand_dims(shift, 2))
        fade = gl.exp2(m - shift)
        l = l * fade + gl.sum(p_a + p_b, 2)  # noqa: E741
        m = m_new
        o = _output(o, gl.expand_dims(fade, 2), p_a, p_b, k, mma)
        n += KEYS
        name = names_of(names, n, last, limit, PAGED, PAGE)

    part = t * SPLITS + gl.program_id(1)
    finish_and_store(out_ptr, lse_ptr, max_ptr, sink_ptr, o, m, l, part, head0, heads, SPLITS, mma)


# ---------------------------------------------------------------- launch


def run_divided(first, q, cache, lists, stride_lists, scale, *, plan):
    p, s, (names, lengths, starts, sink, requests) = plan.problem, plan.choice.schedule, lists
    pages = cache.pages.view(torch.bfloat16)
    gapless = cache.pages.stride(0) == cache.page_size * cache.record.nbytes and not p.paged
    launch(
        divided_kernel, (p.rows * triton.cdiv(p.heads, s.block_h), plan.splits), *first, q, pages,
        names, lengths, starts, sink if plan.scratch is None else None, p.heads, p.keys, requests,
        cache.num_pages if p.paged else cache.num_slots, pages.stride(0), q.stride(0), q.stride(1),
        stride_lists, scale, choice=plan.choice, PAGED=p.paged,
        PAGE=0 if gapless else cache.page_size, SPLITS=plan.splits, HEADS=s.block_h,
        KEYS=s.block_n, PARTS=16 * s.num_warps // s.block_h, WARPS=s.num_warps,
    )  # fmt: skip
