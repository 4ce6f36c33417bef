"""Indexer scores of e4m3 queries and keys where warps have roles: one copies, the others score.

A group of four warps multiplies a tile of 64 keys by a few queries with all their heads, so that a
sum over heads stays within four lanes.  The tile's next keys are copied meanwhile; while one group
sums its heads the tensor cores work for another.
"""

import torch
import triton
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

from sparkwell.ops.kernels.barriers import settled
from sparkwell.ops.launch import launch

GROUPS: gl.constexpr = gl.constexpr(3)  # of four warps that score: 160 registers a thread
TILE: gl.constexpr = gl.constexpr(64)  # keys of a tile: a wgmma's rows


@gluon.jit
def _share(columns, chunk, APART: gl.constexpr, R: gl.constexpr):
    """The block's first row, and the keys low..high-1 that are its own."""
    low = gl.program_id(1) * chunk
    first_row = gl.program_id(0) * (GROUPS * R if APART else R)
    return first_row, low, gl.minimum(low + chunk, columns)


@gluon.jit
def _request(request_ptr, each, row, mask, other):
    """Requests of rows: as listed, or `each` rows one after the other."""
    if request_ptr is None:
        return gl.where(mask, row // each, other)
    else:
        return gl.load(request_ptr + row, mask=mask, other=other)


@gluon.jit
def _span(
    request_ptr, each, start_ptr, end_ptr, first_row, rows, owner, low, high,
    PAGED: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Tiles of keys low..high-1 that one of the block's rows sees, of request `owner`."""
    row = first_row + gl.arange(0, ROWS, layout)
    mine = row < rows
    end = gl.load(end_ptr + row, mask=mine, other=0)
    if PAGED:
        mine = mine & (_request(request_ptr, each, row, mine, -1) == owner)
        start = low
    else:
        start = gl.min(gl.load(start_ptr + row, mask=mine, other=2147483647), 0)
        start = gl.maximum(start, low)
    end = gl.minimum(gl.max(gl.where(mine, end, 0), 0), high)
    first = start // TILE
    return first, gl.maximum((end + TILE - 1) // TILE, first)


@gluon.jit
def _owners(
    request_ptr, each, first_row, rows,
    PAGED: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """First and last request of the block's rows; one only where keys are not paged."""
    if PAGED:
        row = first_row + gl.arange(0, ROWS, layout)
        request = _request(request_ptr, each, row, row < rows, 2147483647)
        first = gl.min(request, 0)
        last = gl.max(gl.where(row < rows, request, -1), 0)
        return gl.maximum(first, 0), last
    else:
        return 0, 0


@gluon.jit
def _page(table_ptr, owner, tile, table_width, stride_table, PAGE: gl.constexpr):
    """The page that holds a tile of keys; -1: none."""
    logical = tile * TILE // PAGE
    at = table_ptr + gl.to_tensor(owner).to(gl.int64) * stride_table + logical
    return gl.load(at, mask=logical < table_width, other=-1)


@gluon.jit
def _copy(
    q_tiles, k_tiles, scale_tiles, table_ptr, request_ptr, start_ptr, end_ptr, qs, ks, scales,
    q_ready, k_ready, k_free, rows, each, columns, chunk, table_width, stride_table, scale_at,
    PAGED: gl.constexpr, SCALED: gl.constexpr, PAGE: gl.constexpr, APART: gl.constexpr,
    R: gl.constexpr, HEADS: gl.constexpr, ROWS: gl.constexpr, BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Copies the queries once, then tile after tile of keys into a ring of STAGES."""
    first_row, low, high = _share(columns, chunk, APART, R)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    Q: gl.constexpr = GROUPS if APART else 1
    mbarrier.expect(q_ready, Q * R * HEADS * BLOCK_D)
    for group in gl.static_range(Q):
        tma.async_load(q_tiles, [(first_row + group * R) * HEADS, 0], q_ready, qs.index(group))
    owner, last = _owners(request_ptr, each, first_row, rows, PAGED, ROWS, layout)
    i = 0
    while owner <= last:
        tile, end = _span(
            request_ptr, each, start_ptr, end_ptr, first_row, rows, owner, low, high, PAGED, ROWS,
            layout,
        )  # fmt: skip
        while tile < end:
            stage, turn = i % STAGES, (i // STAGES) & 1
            page = 0
            if PAGED:
                page = _page(table_ptr, owner, tile, table_width, stride_table, PAGE)
            mbarrier.wait(k_free.index(stage), turn ^ 1)
            ready = k_ready.index(stage)
            mbarrier.expect(ready, TILE * (BLOCK_D + (4 if SCALED else 0)))
            if PAGED:  # a page that is none reads as zeros
                key = tile * TILE % PAGE
                tma.async_load(k_tiles, [page, key, 0], ready, ks.index(stage))
                tma.async_load(scale_tiles, [page, scale_at + key], ready, scales.index(stage))
            else:
                tma.async_load(k_tiles, [tile * TILE, 0], ready, ks.index(stage))
                if SCALED:
                    tma.async_load(scale_tiles, [0, tile * TILE], ready, scales.index(stage))
            tile += 1
            i += 1
        owner += 1


@gluon.jit
def _halves(x, DEPTH: gl.constexpr):
    """Even and odd entries of the last axis of [TILE, R, 4, 2**DEPTH]."""
    if DEPTH > 1:
        x = gl.reshape(x, [x.shape[0], x.shape[1], x.shape[2], 1 << (DEPTH - 1), 2])
    return gl.split(x)


@gluon.jit
def _chain(x, w, total, DEPTH: gl.constexpr):
    """total + the last axis' sum of max(0, x) w, one multiply-add after the other."""
    if DEPTH == 0:
        return total + gl.maximum(x, 0.0) * w
    else:
        x0, x1 = _halves(x, DEPTH)
        w0, w1 = _halves(w, DEPTH)
        return _chain(x1, w1, _chain(x0, w0, total, DEPTH - 1), DEPTH - 1)


@gluon.jit
def _by_lane(x, R: gl.constexpr, HEADS: gl.constexpr):
    """[TILE, R * HEADS] -> [TILE, R, 4, HEADS // 4]: a thread holds whole last axes."""
    x = gl.permute(gl.reshape(x, [TILE, R, HEADS // 8, 4, 2]), [0, 1, 3, 2, 4])
    return gl.reshape(x, [TILE, R, 4, HEADS // 4])


@gluon.jit
def _score(
    out_ptr, weight_ptr, table_ptr, request_ptr, start_ptr, end_ptr, qs, ks, scales, q_ready,
    k_ready, k_free, rows, each, columns, chunk, num_pages, table_width, stride_out, stride_weight,
    stride_table,
    PAGED: gl.constexpr, SCALED: gl.constexpr, PAGE: gl.constexpr, APART: gl.constexpr,
    R: gl.constexpr, HEADS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr,
    GROUP: gl.constexpr,
):  # fmt: skip
    """One group's rows against every tile (APART), or all rows against every GROUPS-th tile.

    A stage is always read by the same group: a barrier's parity tells a group its next turn from
    its last one, but not from one that another group waits for.
    """
    first_row, low, high = _share(columns, chunk, APART, R)
    N: gl.constexpr = R * HEADS
    matrix: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 32])
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    STEP: gl.constexpr = 1 if APART else GROUPS
    BEGIN: gl.constexpr = 0 if APART else GROUP
    gl.static_assert(STAGES % STEP == 0)
    zeros = gl.zeros([TILE, N], gl.float32, matrix)
    DEPTH: gl.constexpr = (HEADS // 4).bit_length() - 1

    my_row = first_row + (GROUP * R if APART else 0)
    column = gl.arange(0, N, gl.SliceLayout(0, matrix))
    at = (my_row + column // HEADS).to(gl.int64) * stride_weight + column % HEADS
    weight = gl.load(weight_ptr + at, mask=my_row + column // HEADS < rows, other=0.0)
    weight = _by_lane(zeros + weight[None, :], R, HEADS)
    shape = gl.sum(_chain(weight, weight, 0.0, DEPTH), 2)  # for its layout
    by_key: gl.constexpr = gl.SliceLayout(1, shape.type.layout)
    by_row: gl.constexpr = gl.SliceLayout(0, shape.type.layout)
    row = my_row + gl.arange(0, R, by_row)
    of_row = row < rows
    start = gl.zeros([R], gl.int32, by_row)
    if not PAGED:
        start = gl.maximum(gl.load(start_ptr + row, mask=of_row, other=2147483647), 0)
    stop = gl.minimum(gl.load(end_ptr + row, mask=of_row, other=0), high)
    n = gl.arange(0, TILE, by_key)
    since = n[:, None] - start[None, :]
    out = out_ptr + row.to(gl.int64)[None, :] * stride_out + n[:, None]
    q = qs.index(GROUP if APART else 0).permute([1, 0])
    mbarrier.wait(q_ready, 0)
    owner, last = _owners(request_ptr, each, first_row, rows, PAGED, ROWS, flat)
    i = 0
    while owner <= last:
        first, end = _span(
            request_ptr, each, start_ptr, end_ptr, first_row, rows, owner, low, high, PAGED, ROWS,
            flat,
        )  # fmt: skip
        mine = stop
        if PAGED:
            request = _request(request_ptr, each, row, of_row, -1)
            mine = gl.where(request == owner, stop, 0)
        span = gl.maximum(mine - start, 0).to(gl.uint32, bitcast=True)
        tile = first + (BEGIN + (STEP - 1) * i) % STEP  # i + tile - first is BEGIN, mod STEP
        while tile < end:
            place = i + tile - first
            stage, turn = place % STAGES, (place // STAGES) & 1
            page = 0
            if PAGED:  # known once the products are
                page = _page(table_ptr, owner, tile, table_width, stride_table, PAGE)
            mbarrier.wait(k_ready.index(stage), turn)
            k = ks.index(stage)
            if PAGED:
                k = k.reshape([TILE, k.shape[2]])
            dots = warpgroup_mma(k, q, zeros, use_acc=False, is_async=True)
            if SCALED:
                factor = scales.index(stage).reshape([TILE]).load(by_key)
            dots = warpgroup_mma_wait(0, deps=[dots])
            if SCALED:
                settled(factor)
            mbarrier.arrive(k_free.index(stage), count=1)
            score = gl.sum(_chain(_by_lane(dots, R, HEADS), weight, 0.0, DEPTH), 2)
            if SCALED:
                score = score * factor[:, None]
            key = tile * TILE
            # One comparison a score: keys before `start` are large when read without a sign.
            seen = (key + since).to(gl.uint32, bitcast=True) < span[None, :]
            if PAGED:
                ok = (page >= 0) & (page < num_pages)
                score = gl.where(ok, score, float("-inf"))
            gl.store(out + key, score, mask=seen)
            tile += STEP
        i += end - first
        owner += 1
    _fill(out_ptr, start_ptr, end_ptr, my_row, rows, low, high, stride_out, PAGED, R, STEP, BEGIN)


@gluon.jit
def _fill(
    out_ptr, start_ptr, end_ptr, first_row, rows, low, high, stride_out,
    PAGED: gl.constexpr, R: gl.constexpr, STEP: gl.constexpr, BEGIN: gl.constexpr,
):  # fmt: skip
    """-inf where a row does not look."""
    WIDE: gl.constexpr = 512
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [1, 4], [1, 0])
    row = first_row + gl.arange(0, R, gl.SliceLayout(1, layout))
    of_row = row < rows
    end = gl.load(end_ptr + row, mask=of_row, other=2147483647)
    wide = gl.arange(0, WIDE, gl.SliceLayout(0, layout))
    out = out_ptr + row.to(gl.int64)[:, None] * stride_out
    nothing = gl.full([R, WIDE], float("-inf"), gl.float32, layout)
    if not PAGED:
        start = gl.load(start_ptr + row, mask=of_row, other=-1)
        at = low + BEGIN * WIDE
        until = gl.minimum(gl.max(start, 0), high)
        while at < until:
            n = (at + wide)[None, :]
            gone = of_row[:, None] & (n < start[:, None]) & (n < high)
            gl.store(out + n, nothing, mask=gone)
            at += STEP * WIDE
    at = gl.maximum(gl.min(end, 0), low) // WIDE * WIDE + BEGIN * WIDE
    while at < high:
        n = (at + wide)[None, :]
        gone = of_row[:, None] & (n >= end[:, None]) & (n >= low) & (n < high)
        gl.store(out + n, nothing, mask=gone)
        at += STEP * WIDE


@gluon.jit
def specialized_kernel(
    out_ptr, q_tiles, weight_ptr, k_tiles, scale_tiles, table_ptr, request_ptr, start_ptr, end_ptr,
    rows, each, columns, chunk, num_pages, table_width, stride_out, stride_weight, stride_table,
    scale_at,
    PAGED: gl.constexpr, SCALED: gl.constexpr, PAGE: gl.constexpr, APART: gl.constexpr,
    R: gl.constexpr, HEADS: gl.constexpr, ROWS: gl.constexpr, BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    # Else a group that runs ahead would take the end of a stage's last turn but one for its turn's.
    gl.static_assert(APART or STAGES % GROUPS == 0)
    qs = gl.allocate_shared_memory(
        gl.float8e4nv, [GROUPS if APART else 1, R * HEADS, BLOCK_D], q_tiles.layout
    )
    if PAGED:
        ks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 1, TILE, BLOCK_D], k_tiles.layout)
    else:
        ks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, TILE, BLOCK_D], k_tiles.layout)
    scales = ks
    if SCALED:
        scales = gl.allocate_shared_memory(gl.float32, [STAGES, 1, TILE], scale_tiles.layout)
    q_ready = mbarrier.allocate_mbarrier()
    k_ready = mbarrier.allocate_mbarrier(batch=STAGES)
    k_free = mbarrier.allocate_mbarrier(batch=STAGES)
    mbarrier.init(q_ready, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=GROUPS if APART else 1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_score, (
                out_ptr, weight_ptr, table_ptr, request_ptr, start_ptr, end_ptr, qs, ks,
                scales, q_ready, k_ready, k_free, rows, each, columns, chunk, num_pages,
                table_width, stride_out, stride_weight, stride_table, PAGED, SCALED, PAGE,
                APART, R, HEADS, ROWS, STAGES, 0,
            )),
            (_score, (
                out_ptr, weight_ptr, table_ptr, request_ptr, start_ptr, end_ptr, qs, ks,
                scales, q_ready, k_ready, k_free, rows, each, columns, chunk, num_pages,
                table_width, stride_out, stride_weight, stride_table, PAGED, SCALED, PAGE,
                APART, R, HEADS, ROWS, STAGES, 1,
            )),
            (_score, (
                out_ptr, weight_ptr, table_ptr, request_ptr, start_ptr, end_ptr, qs, ks,
                scales, q_ready, k_ready, k_free, rows, each, columns, chunk, num_pages,
                table_width, stride_out, stride_weight, stride_table, PAGED, SCALED, PAGE,
                APART, R, HEADS, ROWS, STAGES, 2,
            )),
            (_copy, (
                q_tiles, k_tiles, scale_tiles, table_ptr, request_ptr, start_ptr, end_ptr, qs,
                ks, scales, q_ready, k_ready, k_free, rows, each, columns, chunk, table_width,
                stride_table, scale_at, PAGED, SCALED, PAGE, APART, R, HEADS, ROWS, BLOCK_D,
                STAGES,
            )),
        ],
        [4, 4, 1],
        [160, 160, 24],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def score_ragged(out, q, k, weights, start, end, key_scales, *, choice, walk):
    """`index_logits` without `width`.  walk: `schedule.Walk`."""
    (rows, heads, d), (num_keys, columns) = q.shape, (len(k), out.shape[1])
    tiles = _tiles(k, [num_keys, d], [k.stride(0), 1], [TILE.value, d])
    scales = None
    if key_scales is not None:
        scales = _tiles(key_scales, [1, num_keys], [-(-num_keys // 4) * 4, 1], [1, TILE.value])
    launch(
        specialized_kernel, walk.grid,
        out, _queries(q, walk.r), weights, tiles, scales, None, None, start, end, rows, 1, columns,
        walk.chunk, 0, 0, out.stride(0), weights.stride(0), 0, 0, choice=choice, PAGED=False,
        SCALED=scales is not None, PAGE=TILE.value, **_constants(choice, heads, walk.r),
    )  # fmt: skip


def score_paged(out, q, weights, cache, request, each, visible, block_table, *, choice, walk):
    """`run.paged_scores` of pages that hold whole tiles."""
    rows, heads, d = q.shape
    pages, size = cache.pages, cache.page_size
    keys, floats = pages.view(torch.float8_e4m3fn), pages.view(torch.float32)
    tiles = _tiles(keys, [len(pages), size, d], [pages.stride(0), d, 1], [1, TILE.value, d])
    scales = _tiles(floats, list(floats.shape), [floats.stride(0), 1], [1, TILE.value])
    launch(
        specialized_kernel, walk.grid,
        out, _queries(q, walk.r), weights, tiles, scales, block_table, request, None, visible,
        rows, each, out.shape[1], walk.chunk, len(pages), block_table.shape[1], out.stride(0),
        weights.stride(0), block_table.stride(0), size * d // 4, choice=choice, PAGED=True,
        SCALED=True, PAGE=size, **_constants(choice, heads, walk.r),
    )  # fmt: skip


def _constants(choice, heads, r):
    s, d = choice.schedule, choice.problem.d
    rows = triton.next_power_of_2(r * s.groups if s.apart else r)
    return {
        "APART": s.apart, "R": r, "HEADS": heads, "ROWS": rows, "BLOCK_D": d,
        "STAGES": s.num_stages,
    }  # fmt: skip


def _queries(q, r):
    rows, heads, d = q.shape
    return _tiles(q, [rows * heads, d], [d, 1], [r * heads, d])


def _tiles(x, shape, strides, box):
    """What the copy engine reads of `x`, box by box."""
    if x.dtype == torch.float32:
        layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
    else:
        layout = gl.NVMMASharedLayout.get_default_for(box, gl.float8e4nv)
    return TensorDescriptor(x, shape, strides, box, layout)
