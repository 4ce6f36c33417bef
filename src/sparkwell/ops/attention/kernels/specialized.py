"""`attention_prefill` where warps have roles: one copies keys and values, two groups multiply.

Each group of four warps keeps 64 rows.  While the tensor cores multiply its weights by one tile's
values they also multiply its queries by the next tile's keys, and its softmax runs meanwhile
(arXiv 2407.08608).  Tiles run from the last to the first, so those with a mask come first.
"""

import torch
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

from sparkwell.ops.attention.kernels.parts import (
    LN2,
    LOG2E,
    find_request,
    row_end,
    sink_share,
    softmax_step,
    span,
)
from sparkwell.ops.attention.schedule import split_width
from sparkwell.ops.launch import launch

GROUP_M: gl.constexpr = gl.constexpr(64)  # rows of a group of warps: a wgmma's
GROUPS: gl.constexpr = gl.constexpr(2)


@gluon.jit
def _load(
    q0_tiles, q1_tiles, k0_tiles, k1_tiles, v_tiles, q0s, q1s, k0s, k1s, vs, q_ready, k_ready,
    k_free, v_ready, v_free, q_row, q_col, key_row, k_col, v_col, low_tile, high_tile, partial,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, K0: gl.constexpr, K1: gl.constexpr,
    V0: gl.constexpr,
):  # fmt: skip
    """Copies queries once, then keys and values tile by tile into rings of STAGES."""
    count = high_tile - low_tile
    mbarrier.expect(q_ready, GROUPS * GROUP_M * (K0 + K1) * 2, pred=count > 0)
    for group in gl.static_range(GROUPS):
        row = q_row + group * GROUP_M
        tma.async_load(q0_tiles, [row, q_col], q_ready, q0s.index(group), pred=count > 0)
        if K1:
            tma.async_load(q1_tiles, [row, q_col + K0], q_ready, q1s.index(group), pred=count > 0)
    for i in range(count):
        stage, turn = i % STAGES, (i // STAGES) & 1
        row = key_row + (high_tile - 1 - i) * BLOCK_N
        mbarrier.wait(k_free.index(stage), turn ^ 1)
        mbarrier.expect(k_ready.index(stage), BLOCK_N * (K0 + K1) * 2)
        tma.async_load(k0_tiles, [row, k_col], k_ready.index(stage), k0s.index(stage))
        if K1:
            tma.async_load(k1_tiles, [row, k_col + K0], k_ready.index(stage), k1s.index(stage))
        mbarrier.wait(v_free.index(stage), turn ^ 1)
        mine = (i > 0) | (partial == 0)
        mbarrier.expect(v_ready.index(stage), BLOCK_N * V0 * 2, pred=mine)
        tma.async_load(v_tiles, [row, v_col], v_ready.index(stage), vs.index(stage), pred=mine)


@gluon.jit
def _multiply_keys(
    q0, q1, k0s, k1s, stage, layout: gl.constexpr, BLOCK_N: gl.constexpr, K1: gl.constexpr
):
    zeros = gl.zeros([GROUP_M, BLOCK_N], gl.float32, layout)
    k0 = k0s.index(stage).permute([1, 0])
    products = warpgroup_mma(q0, k0, zeros, use_acc=False, is_async=True)
    if K1:
        k1 = k1s.index(stage).permute([1, 0])
        products = warpgroup_mma(q1, k1, products, is_async=True)
    return products


@gluon.jit
def _hide(
    products,
    key,
    keys,
    start,
    window,
    layout: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
):
    """-inf where a row, from position `start` on, does not see a key, from `key` on."""
    here = key + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))[None, :]
    positions = start + gl.arange(0, GROUP_M, gl.SliceLayout(1, layout))[:, None]
    seen = here < keys
    if CAUSAL:
        seen = seen & (here <= positions)
    if WINDOW:
        seen = seen & (here > positions - window)
    return gl.where(seen, products, float("-inf"))


@gluon.jit
def _walk(
    q0, q1, out, weights, top, total, k0s, k1s, vs, k_ready, k_free, v_ready, v_free, scale,
    first, end, high_tile, keys, start, window,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, K1: gl.constexpr, s_layout: gl.constexpr, o_layout: gl.constexpr,
):  # fmt: skip
    """Tiles first..end-1 of the walk; `weights` are those of the tile before, not yet in `out`."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    for i in range(first, end):
        stage, turn = i % STAGES, (i // STAGES) & 1
        before, turn_before = (i - 1) % STAGES, ((i - 1) // STAGES) & 1
        mbarrier.wait(k_ready.index(stage), turn)
        products = _multiply_keys(q0, q1, k0s, k1s, stage, s_layout, BLOCK_N, K1)
        mbarrier.wait(v_ready.index(before), turn_before)
        adding = warpgroup_mma(weights, vs.index(before), out, is_async=True)
        products = warpgroup_mma_wait(1, deps=[products])
        mbarrier.arrive(k_free.index(stage), count=1)
        if MASKED:
            key = (high_tile - 1 - i) * BLOCK_N
            products = _hide(products, key, keys, start, window, s_layout, BLOCK_N, CAUSAL, WINDOW)
        new, factor, top, total = softmax_step(products, scale, top, total)
        new = gl.convert_layout(new.to(weights.dtype), p_layout)
        out = warpgroup_mma_wait(0, deps=[adding])
        mbarrier.arrive(v_free.index(before), count=1)
        factor = gl.convert_layout(factor, gl.SliceLayout(1, o_layout))
        out = out * factor[:, None]
        weights = new
    return out, weights, top, total


@gluon.jit
def _multiply(
    out_ptr, lse_ptr, sink_ptr, v_ptr, q0s, q1s, k0s, k1s, vs, q_ready, k_ready, k_free, v_ready,
    v_free, scale, low_tile, high_tile, full_low, full_high, keys, start, window, partial, num_mine,
    row, head, num_heads, stride_ot, stride_vt, d_v,
    DTYPE: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, K1: gl.constexpr, V0: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """One group's 64 rows, from the request's row `row` and position `start` on."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, V0, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    count = high_tile - low_tile
    if GROUP == 0:  # noqa: SIM102  one of the two is known when compiling
        if partial:
            # The first tile walked ends behind the request: the rows there may be another's NaN.
            copy: gl.constexpr = gl.BlockedLayout([1, 8], [256 // V0, V0 // 8], [4, 1], [1, 0])
            key = (high_tile - 1) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(1, copy))
            col = gl.arange(0, V0, gl.SliceLayout(0, copy))
            at = key.to(gl.int64)[:, None] * stride_vt + col[None, :]
            v = gl.load(v_ptr + at, mask=(key < keys)[:, None], other=0.0)
            vs.index(0).store(v)
            fence_async_shared()
            mbarrier.arrive(v_ready.index(0), count=1)
    top = gl.full([GROUP_M], float("-inf"), gl.float32, gl.SliceLayout(1, s_layout))
    total = gl.zeros([GROUP_M], gl.float32, gl.SliceLayout(1, s_layout))
    out = gl.zeros([GROUP_M, V0], gl.float32, o_layout)
    weights = gl.zeros([GROUP_M, BLOCK_N], DTYPE, p_layout)
    q0 = q0s.index(GROUP)
    q1 = q1s.index(GROUP)
    if count > 0:
        mbarrier.wait(q_ready, 0)
        mbarrier.wait(k_ready.index(0), 0)
        products = _multiply_keys(q0, q1, k0s, k1s, 0, s_layout, BLOCK_N, K1)
        products = warpgroup_mma_wait(0, deps=[products])
        mbarrier.arrive(k_free.index(0), count=1)
        key = (high_tile - 1) * BLOCK_N
        products = _hide(products, key, keys, start, window, s_layout, BLOCK_N, CAUSAL, WINDOW)
        new, factor, top, total = softmax_step(products, scale, top, total)
        weights = gl.convert_layout(new.to(DTYPE), p_layout)
    masked = gl.maximum(high_tile - full_high, 1)  # tiles at the end that need the mask
    full = gl.maximum(high_tile - full_low, masked)
    out, weights, top, total = _walk(
        q0, q1, out, weights, top, total, k0s, k1s, vs, k_ready, k_free, v_ready, v_free, scale,
        1, gl.minimum(masked, count), high_tile, keys, start, window,
        True, CAUSAL, WINDOW, BLOCK_N, STAGES, K1, s_layout, o_layout,
    )  # fmt: skip
    out, weights, top, total = _walk(
        q0, q1, out, weights, top, total, k0s, k1s, vs, k_ready, k_free, v_ready, v_free, scale,
        masked, gl.minimum(full, count), high_tile, keys, start, window,
        False, CAUSAL, WINDOW, BLOCK_N, STAGES, K1, s_layout, o_layout,
    )  # fmt: skip
    if WINDOW:
        out, weights, top, total = _walk(
            q0, q1, out, weights, top, total, k0s, k1s, vs, k_ready, k_free, v_ready, v_free, scale,
            full, count, high_tile, keys, start, window,
            True, CAUSAL, WINDOW, BLOCK_N, STAGES, K1, s_layout, o_layout,
        )  # fmt: skip
    if count > 0:
        stage, turn = (count - 1) % STAGES, ((count - 1) // STAGES) & 1
        mbarrier.wait(v_ready.index(stage), turn)
        adding = warpgroup_mma(weights, vs.index(stage), out, is_async=True)
        out = warpgroup_mma_wait(0, deps=[adding])

    share, lse = row_end(top, total)
    rows = row + gl.arange(0, GROUP_M, gl.SliceLayout(1, s_layout))
    gl.store(lse_ptr + rows.to(gl.int64) * num_heads + head, lse * LN2, mask=rows < num_mine)
    if sink_ptr is not None:
        share *= sink_share(lse, gl.load(sink_ptr + head).to(gl.float32))
    share = gl.convert_layout(share, gl.SliceLayout(1, o_layout))
    rows = row + gl.arange(0, GROUP_M, gl.SliceLayout(1, o_layout))
    cols = gl.arange(0, V0, gl.SliceLayout(0, o_layout))
    to = out_ptr + rows.to(gl.int64)[:, None] * stride_ot + head * d_v + cols[None, :]
    gl.store(
        to, (out * share[:, None]).to(out_ptr.dtype.element_ty), mask=(rows < num_mine)[:, None]
    )


@gluon.jit
def specialized_kernel(
    out_ptr, lse_ptr, q0_tiles, q1_tiles, k0_tiles, k1_tiles, v_tiles, v_ptr, query_start_ptr,
    key_start_ptr, sink_ptr, num_requests, steps, num_rows, num_keys, window, scale, stride_ot,
    stride_qh, stride_kh, stride_vt, stride_vh, d_v,
    QUERY_HEADS: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, DTYPE: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, K0: gl.constexpr, K1: gl.constexpr,
    V0: gl.constexpr,
):  # fmt: skip
    BLOCK_M: gl.constexpr = GROUPS * GROUP_M
    tile = gl.num_programs(0) - 1 - gl.program_id(0)  # the last tiles see the most keys
    request, tile = find_request(query_start_ptr, num_requests, steps, tile, 1, BLOCK_M)
    head, num_heads = gl.program_id(1), gl.num_programs(1)
    first_row, num_mine = span(query_start_ptr, request, num_rows)
    first_key, keys = span(key_start_ptr, request, num_keys)
    row = (tile * BLOCK_M).to(gl.int32)
    num_mine = num_mine.to(gl.int32)
    keys = gl.where(row < num_mine, keys, 0).to(gl.int32)  # nothing to do: no key
    start = row + keys - num_mine  # position of the tile's first row

    # Tiles that some row sees: low_tile..high_tile-1; that every row sees: full_low..full_high-1.
    low_tile, full_low, full_high = 0, 0, keys // BLOCK_N
    high_tile = (keys + BLOCK_N - 1) // BLOCK_N
    if CAUSAL:
        high = gl.maximum(gl.minimum(keys, start + BLOCK_M), 0)
        high_tile = (high + BLOCK_N - 1) // BLOCK_N
        full_high = gl.maximum(gl.minimum(keys, start + 1), 0) // BLOCK_N
    if WINDOW:
        low_tile = gl.maximum(start - window + 1, 0) // BLOCK_N
        full_low = (gl.maximum(start + BLOCK_M - window, 0) + BLOCK_N - 1) // BLOCK_N
    partial = (keys < high_tile * BLOCK_N) & (high_tile > low_tile)

    q0_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_M, K0], DTYPE)
    k0_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, K0], DTYPE)
    v_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, V0], DTYPE)
    q0s = gl.allocate_shared_memory(DTYPE, [GROUPS, GROUP_M, K0], q0_shared)
    k0s = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_N, K0], k0_shared)
    vs = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_N, V0], v_shared)
    q1s, k1s = q0s, k0s
    if K1:
        q1_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_M, K1], DTYPE)
        k1_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, K1], DTYPE)
        q1s = gl.allocate_shared_memory(DTYPE, [GROUPS, GROUP_M, K1], q1_shared)
        k1s = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_N, K1], k1_shared)
    q_ready = mbarrier.allocate_mbarrier()
    k_ready = mbarrier.allocate_mbarrier(batch=STAGES)
    k_free = mbarrier.allocate_mbarrier(batch=STAGES)
    v_ready = mbarrier.allocate_mbarrier(batch=STAGES)
    v_free = mbarrier.allocate_mbarrier(batch=STAGES)
    mbarrier.init(q_ready, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=GROUPS)
        mbarrier.init(v_free.index(stage), count=GROUPS)
    fence_async_shared()

    kv_head = head // QUERY_HEADS
    v_ptr += first_key * stride_vt + kv_head.to(gl.int64) * stride_vh
    out_ptr += first_row * stride_ot
    lse_ptr += first_row * num_heads
    q_row, key_row = first_row.to(gl.int32) + row, first_key.to(gl.int32)
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, lse_ptr, sink_ptr, v_ptr, q0s, q1s, k0s, k1s, vs, q_ready, k_ready,
                k_free, v_ready, v_free, scale, low_tile, high_tile, full_low, full_high, keys,
                start, window, partial, num_mine, row, head, num_heads, stride_ot, stride_vt, d_v,
                DTYPE, CAUSAL, WINDOW, BLOCK_N, STAGES, K1, V0, 0,
            )),
            (_multiply, (
                out_ptr, lse_ptr, sink_ptr, v_ptr, q0s, q1s, k0s, k1s, vs, q_ready, k_ready,
                k_free, v_ready, v_free, scale, low_tile, high_tile, full_low, full_high, keys,
                start + GROUP_M, window, partial, num_mine, row + GROUP_M, head, num_heads,
                stride_ot, stride_vt, d_v, DTYPE, CAUSAL, WINDOW, BLOCK_N, STAGES, K1, V0, 1,
            )),
            (_load, (
                q0_tiles, q1_tiles, k0_tiles, k1_tiles, v_tiles, q0s, q1s, k0s, k1s, vs, q_ready,
                k_ready, k_free, v_ready, v_free, q_row, head * stride_qh, key_row,
                kv_head * stride_kh, kv_head * stride_vh, low_tile, high_tile, partial, BLOCK_N,
                STAGES, K0, K1, V0,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def prefill_specialized(
    out, lse, q, k, v, query_start, key_start, *, scale, causal, window, sink, choice
):  # fmt: skip
    s, requests = choice.schedule, len(query_start) - 1
    (num_rows, heads, d_qk), (num_keys, kv_heads, d_v) = q.shape, v.shape
    k0, k1 = split_width(d_qk)
    rows = GROUP_M.value
    launch(
        specialized_kernel, (num_rows // s.block_m + requests, heads),
        out, lse, _tiles(q, rows, k0), _tiles(q, rows, k1), _tiles(k, s.block_n, k0),
        _tiles(k, s.block_n, k1), _tiles(v, s.block_n, d_v), v, query_start, key_start, sink,
        requests, requests.bit_length(), num_rows, num_keys, window or 0, scale * LOG2E.value,
        out.stride(0), q.stride(1), k.stride(1), v.stride(0), v.stride(1), d_v,
        choice=choice, QUERY_HEADS=heads // kv_heads, CAUSAL=causal, WINDOW=window is not None,
        DTYPE=getattr(gl, str(q.dtype).removeprefix("torch.")), BLOCK_N=s.block_n,
        STAGES=s.num_stages, K0=k0, K1=k1, V0=d_v,
    )  # fmt: skip


def _tiles(x: torch.Tensor, rows: int, width: int) -> TensorDescriptor | None:
    """Tiles of [rows, width] over x [S, H, d] as [S, columns]: head h begins at h * stride."""
    if not width:
        return None
    columns = (x.shape[1] - 1) * x.stride(1) + x.shape[2]
    layout = gl.NVMMASharedLayout.get_default_for(
        [rows, width], getattr(gl, str(x.dtype).removeprefix("torch."))
    )
    return TensorDescriptor(x, [x.shape[0], columns], [x.stride(0), 1], [rows, width], layout)
