"""Attention over ragged tensors:  out = softmax(scale q k^T) v,  lse = ln sum exp(scale q k^T).

A block takes BLOCK_M rows of one head and walks over the keys they see, keeping each row's largest
score, sum of weights and weighted sum of values (arXiv 2205.14135).  Keys that all its rows see
need no mask.  `specialized` is the same for tensors that Hopper's copy engine can read.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.attention.kernels.parts import (
    CHUNK,
    LN2,
    LOG2E,
    find_request,
    positive,
    row_end,
    signed,
    sink_share,
    softmax_step,
    span,
    triton_type,
)
from sparkwell.ops.attention.schedule import (
    PREFILL,
    PrefillProblem,
    prefill_shared,
    split_width,
)
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.schedule import Choice, pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _load_rows(ptr, rows, in_rows, stride, width, first, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """Columns first..first+BLOCK-1 of some rows, 0 outside.  [len(rows), BLOCK]"""
    cols = first + tl.arange(0, BLOCK)
    mask = in_rows[:, None] & (cols < width)[None, :]
    at = rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def _store_rows(ptr, value, rows, in_rows, stride, width, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    cols = FIRST + tl.arange(0, BLOCK)
    mask = in_rows[:, None] & (cols < width)[None, :]
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :], value, mask=mask)


@triton.jit
def _step(
    q0, q1, out0, out1, top, total, scale2, key, keys, positions, window, q_ptr, rows, in_rows,
    k_ptr, v_ptr, stride_qt, stride_kt, stride_vt, d_qk, d_v, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, EXACT: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
):  # fmt: skip
    """One tile of keys, from `key` on, into (out0, out1, top, total)."""
    here = key + tl.arange(0, BLOCK_N)
    exists = here < keys
    if EXACT:
        products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, d_qk, CHUNK):  # a whole fp32 row would not fit in registers
            q = _load_rows(q_ptr, rows, in_rows, stride_qt, d_qk, first, CHUNK, DTYPE)
            k = _load_rows(k_ptr, here, exists, stride_kt, d_qk, first, CHUNK, DTYPE)
            products = tl.dot(q, k.T, products, input_precision="ieee")
        products = tl.where(scale2 < 0, -products, products)
        scale = positive(scale2)
    else:
        k0 = _load_rows(k_ptr, here, exists, stride_kt, d_qk, 0, K0, DTYPE)  # [BLOCK_N, K0]
        products = tl.dot(q0, k0.T)  # [BLOCK_M, BLOCK_N]
        if K1:
            k1 = _load_rows(k_ptr, here, exists, stride_kt, d_qk, K0, K1, DTYPE)
            products = tl.dot(q1, k1.T, products)
        scale = positive(scale2)
    if MASKED:
        seen = exists[None, :]
        if CAUSAL:
            seen = seen & (here[None, :] <= positions[:, None])
        if WINDOW:
            seen = seen & (here[None, :] > positions[:, None] - window)
        products = tl.where(seen, products, float("-inf"))
    weights, factor, top, total = softmax_step(products, scale, top, total)
    weights = weights.to(DTYPE)
    out0 = out0 * factor[:, None]
    v0 = _load_rows(v_ptr, here, exists, stride_vt, d_v, 0, V0, DTYPE)  # [BLOCK_N, V0]
    out0 = tl.dot(weights, v0, out0, input_precision="ieee")
    if V1:
        v1 = _load_rows(v_ptr, here, exists, stride_vt, d_v, V0, V1, DTYPE)
        out1 = tl.dot(weights, v1, out1 * factor[:, None], input_precision="ieee")
    return out0, out1, top, total


@triton.jit
def _prefill_kernel(
    out_ptr, lse_ptr, q_ptr, k_ptr, v_ptr, query_start_ptr, key_start_ptr, sink_ptr, num_requests,
    steps, num_rows, num_keys, window, scale2, stride_ot, stride_qt, stride_qh, stride_kt,
    stride_kh, stride_vt, stride_vh, d_qk, d_v,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DTYPE: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
):  # fmt: skip
    # Causal rows near a request's end see the most keys: the last tiles start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    request, tile = find_request(query_start_ptr, num_requests, steps, tile, 1, BLOCK_M)
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    first_row, num_mine = span(query_start_ptr, request, num_rows)
    first_key, keys = span(key_start_ptr, request, num_keys)
    row, num_mine = (tile * BLOCK_M).to(tl.int32), num_mine.to(tl.int32)
    keys = tl.where(row < num_mine, keys, 0).to(tl.int32)  # nothing to do: no key
    rows = row + tl.arange(0, BLOCK_M)  # [BLOCK_M], in the request
    in_rows = rows < num_mine
    start = row + keys - num_mine  # position of the tile's first row
    positions = start + tl.arange(0, BLOCK_M)

    # Keys that some row sees: low..high-1; that every row sees: full_low..full_high-1.
    low, high, full_low, full_high = 0, keys, 0, keys
    if CAUSAL:
        high = tl.maximum(tl.minimum(keys, start + BLOCK_M), 0)
        full_high = tl.maximum(tl.minimum(keys, start + 1), 0)
    full_high = full_high // BLOCK_N * BLOCK_N
    if WINDOW:
        low = tl.maximum(start - window + 1, 0) // BLOCK_N * BLOCK_N
        full_low = tl.cdiv(tl.maximum(start + BLOCK_M - window, 0), BLOCK_N) * BLOCK_N
        full_low = tl.minimum(full_low, full_high)

    kv_head = head // GROUP
    q_ptr += first_row * stride_qt + head.to(tl.int64) * stride_qh
    k_ptr += first_key * stride_kt + kv_head.to(tl.int64) * stride_kh
    v_ptr += first_key * stride_vt + kv_head.to(tl.int64) * stride_vh
    q0, q1 = 0.0, 0.0
    if not EXACT:
        q0 = _load_rows(q_ptr, rows, in_rows, stride_qt, d_qk, 0, K0, DTYPE)  # [BLOCK_M, K0]
        q0 = signed(q0, scale2)
        if K1:
            q1 = signed(_load_rows(q_ptr, rows, in_rows, stride_qt, d_qk, K0, K1, DTYPE), scale2)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out0 = tl.zeros([BLOCK_M, V0], tl.float32)
    out1 = tl.zeros([BLOCK_M, V1 if V1 else 16], tl.float32)

    for key in range(full_low, full_high, BLOCK_N):
        out0, out1, top, total = _step(
            q0, q1, out0, out1, top, total, scale2, key, keys, positions, window, q_ptr, rows,
            in_rows, k_ptr, v_ptr, stride_qt, stride_kt, stride_vt, d_qk, d_v, False, CAUSAL,
            WINDOW, EXACT, DTYPE, BLOCK_M, BLOCK_N, K0, K1, V0, V1,
        )  # fmt: skip
    # The other tiles: those before the full ones, then those after.
    before = (full_low - low) // BLOCK_N
    for i in range(before + tl.cdiv(high - full_high, BLOCK_N)):
        key = tl.where(i < before, low + i * BLOCK_N, full_high + (i - before) * BLOCK_N)
        out0, out1, top, total = _step(
            q0, q1, out0, out1, top, total, scale2, key, keys, positions, window, q_ptr, rows,
            in_rows, k_ptr, v_ptr, stride_qt, stride_kt, stride_vt, d_qk, d_v, True, CAUSAL,
            WINDOW, EXACT, DTYPE, BLOCK_M, BLOCK_N, K0, K1, V0, V1,
        )  # fmt: skip

    share, lse = row_end(top, total)
    to = (first_row + rows) * num_heads + head
    tl.store(lse_ptr + to, lse * LN2, mask=in_rows)
    if sink_ptr is not None:
        share *= sink_share(lse, tl.load(sink_ptr + head).to(tl.float32))
    out_ptr += first_row * stride_ot + head.to(tl.int64) * d_v
    _store_rows(out_ptr, out0 * share[:, None], rows, in_rows, stride_ot, d_v, 0, V0)
    if V1:
        _store_rows(out_ptr, out1 * share[:, None], rows, in_rows, stride_ot, d_v, V0, V1)


# ---------------------------------------------------------------- launch


def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_start: torch.Tensor,
    key_start: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's `attention_prefill`.  -> out [T, Hq, dv] in q's dtype, lse fp32 [T, Hq]"""
    out = q.new_empty(*q.shape[:2], v.shape[2])
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    requests = len(query_start) - 1
    if not requests or not out.numel():
        return out, lse
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    query_start, key_start = query_start.contiguous(), key_start.contiguous()
    sink = None if sink is None else sink.contiguous()
    choice = _choose(q, k, v, requests, scale, window)
    options = {"causal": causal, "window": window, "sink": sink, "choice": choice}
    if choice.schedule.specialize and not interpreting():
        from sparkwell.ops.attention.kernels.specialized import prefill_specialized

        prefill_specialized(out, lse, q, k, v, query_start, key_start, scale=scale, **options)
    else:
        _prefill_tiled(out, lse, q, k, v, query_start, key_start, scale=scale, **options)
    return out, lse


def _prefill_tiled(
    out, lse, q, k, v, query_start, key_start, *, scale, causal, window, sink, choice
):  # fmt: skip
    s, exact, requests = choice.schedule, choice.problem.exact, len(query_start) - 1
    (num_rows, heads, d_qk), (num_keys, kv_heads, d_v) = q.shape, v.shape
    (k0, k1), (v0, v1) = split_width(d_qk), split_width(d_v)
    launch(
        _prefill_kernel, (num_rows // s.block_m + requests, heads),
        out, lse, q, k, v, query_start, key_start, sink, requests, requests.bit_length(), num_rows,
        num_keys, window or 0, scale * LOG2E.value, out.stride(0), q.stride(0), q.stride(1),
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), d_qk, d_v,
        choice=choice, GROUP=heads // kv_heads, CAUSAL=causal, WINDOW=window is not None,
        DTYPE=tl.float32 if exact else triton_type(q.dtype), EXACT=exact,
        BLOCK_M=s.block_m, BLOCK_N=s.block_n, K0=k0, K1=k1, V0=v0, V1=v1,
    )  # fmt: skip


def _choose(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    requests: int,
    scale: float,
    window: int | None,
) -> Choice:
    """The row for these operands; fp32, mixed or unaligned ones are multiplied in fp32."""
    exact = q.dtype == torch.float32 or not q.dtype == k.dtype == v.dtype
    exact = exact or not (_aligned(k) and _aligned(v))
    keys, values = split_width(k.shape[2]), split_width(v.shape[2])
    problem = PrefillProblem(
        keys=sum(keys),
        values=sum(values),
        widest=max(*keys, *values),
        rows=-(-q.shape[0] // requests),
        exact=exact,
        copyable=scale > 0 and not values[1] and all(_copyable(x) for x in (q, k, v)),
        windowed=window is not None,
    )
    target = device_of(q.device).target
    return pick("attention_prefill", PREFILL, problem, target, shared=prefill_shared)


def _aligned(x: torch.Tensor) -> bool:
    """Whether rows of x [S, H, d] are read in 16-byte pieces, as Triton knows it."""
    steps = (x.data_ptr(), x.stride(0), x.stride(1), x.shape[2])
    return all(step % 16 == 0 for step in steps)


def _copyable(x: torch.Tensor) -> bool:
    """Whether the tensor copy engine reads x [S, H, d]: 16-byte steps, widths without padding."""
    steps = (x.data_ptr(), x.stride(0) * x.itemsize, x.stride(1) * x.itemsize)
    exact = sum(split_width(x.shape[2])) == x.shape[2] >= 64
    return exact and x.shape[0] > 0 and all(step % 16 == 0 for step in steps)
