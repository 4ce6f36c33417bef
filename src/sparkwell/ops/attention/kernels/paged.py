"""Causal attention over a paged cache:  out = softmax(scale q k^T) v,  lse = ln sum exp(...).

A tile's rows are (token, head) pairs of one request and one key head, so that a decode step fills
a tile with the group's heads; its keys may be split over blocks, whose parts are then merged.
e4m3 keys and values are exact in bfloat16; their scales multiply products and weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparkwell.errors import BadInput
from sparkwell.formats.kv import Record
from sparkwell.formats.paged import PagedCache
from sparkwell.hardware.targets import Feature
from sparkwell.ops.attention.kernels.merge import merge
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
    widen,
)
from sparkwell.ops.attention.schedule import (
    PAGED,
    PagedProblem,
    paged_shared,
    split_width,
)
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.schedule import Choice, pick

KEYS_A_PART = 256  # fewer keys are not worth a part of their own
BLOCKS_AN_SM = 1  # parts are made until every multiprocessor has so many
FP8_BLOCKS_AN_SM = 2  # converting e4m3 leaves memory idle in one block: two take turns
MOST_PARTS = 64

# ---------------------------------------------------------------- kernel


@triton.jit
def _rows(ptr, at, loaded, cols, D: tl.constexpr, FP8: tl.constexpr, DTYPE: tl.constexpr):
    """Elements at[j] + cols of a plane, 0 where not loaded or past D.  [BLOCK_N, len(cols)]"""
    mask = loaded[:, None] & (cols < D)[None, :]
    if ptr.dtype.element_ty == tl.uint8:
        x = tl.load(ptr + at[:, None] + cols[None, :], mask=mask, other=0)
    else:
        x = tl.load(ptr + at[:, None] + cols[None, :], mask=mask, other=0.0)
    return widen(x, FP8, DTYPE)


@triton.jit
def _queries(q_ptr, q_at, in_rows, cols, D: tl.constexpr, DTYPE: tl.constexpr):
    mask = in_rows[:, None] & (cols < D)[None, :]
    return tl.load(q_ptr + q_at[:, None] + cols[None, :], mask=mask, other=0.0).to(DTYPE)


@triton.jit
def _step(
    q0, q1, out0, out1, top, total, scale2, q_ptr, q_at, in_rows, tile, low, high, positions,
    window, table_ptr, num_pages, table_width, pages_ptr, scale_ptr, page_stride, scale_stride,
    kv_head, MASKED: tl.constexpr, WINDOW: tl.constexpr, FP8: tl.constexpr, DTYPE: tl.constexpr,
    V_DTYPE: tl.constexpr, EXACT: tl.constexpr, PAGE_SIZE: tl.constexpr, V_PLANE: tl.constexpr,
    K_SCALE_PLANE: tl.constexpr, V_SCALE_PLANE: tl.constexpr, HEADS: tl.constexpr,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr,
):  # fmt: skip
    """Tile number `tile` of the request's keys into (out0, out1, top, total)."""
    here = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    page, slot = here // PAGE_SIZE, here % PAGE_SIZE
    seen = (here >= low) & (here < high) & (page < table_width)
    page = tl.load(table_ptr + page, mask=seen, other=-1).to(tl.int64)
    seen = seen & (page >= 0) & (page < num_pages)  # a page the cache lacks: its keys are skipped
    page = tl.where(seen, page, 0)
    k_at = page * page_stride + slot * (HEADS * D) + kv_head * D  # elements
    cols = tl.arange(0, D0)
    more = D0 + tl.arange(0, D1 if D1 else 16)
    if EXACT:
        products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, D, CHUNK):  # a whole fp32 row would not fit in registers
            some = first + tl.arange(0, CHUNK)
            q = _queries(q_ptr, q_at, in_rows, some, D, DTYPE)
            k = _rows(pages_ptr, k_at, seen, some, D, FP8, DTYPE)
            products = tl.dot(q, k.T, products, input_precision="ieee")
        products = tl.where(scale2 < 0, -products, products)
    else:
        k0 = _rows(pages_ptr, k_at, seen, cols, D, FP8, DTYPE)  # [BLOCK_N, D0]
        products = tl.dot(q0, k0.T)  # [BLOCK_M, BLOCK_N]
        if D1:
            k1 = _rows(pages_ptr, k_at, seen, more, D, FP8, DTYPE)
            products = tl.dot(q1, k1.T, products)
    if FP8:
        scale_at = page * scale_stride + slot * HEADS + kv_head
        k_scale = tl.load(scale_ptr + scale_at + K_SCALE_PLANE, mask=seen, other=0.0)
        v_scale = tl.load(scale_ptr + scale_at + V_SCALE_PLANE, mask=seen, other=0.0)
        products = products * k_scale[None, :]
    visible = seen[None, :]
    if MASKED:
        visible = visible & (here[None, :] <= positions[:, None])
        if WINDOW:
            visible = visible & (here[None, :] > positions[:, None] - window)
    products = tl.where(visible, products, float("-inf"))
    weights, factor, top, total = softmax_step(products, positive(scale2), top, total)
    if FP8:
        weights = weights * v_scale[None, :]
    weights = weights.to(V_DTYPE)
    v_at = k_at + V_PLANE
    v0 = _rows(pages_ptr, v_at, seen, cols, D, FP8, V_DTYPE)  # [BLOCK_N, D0]
    out0 = tl.dot(weights, v0, out0 * factor[:, None], input_precision="ieee")
    if D1:
        v1 = _rows(pages_ptr, v_at, seen, more, D, FP8, V_DTYPE)
        out1 = tl.dot(weights, v1, out1 * factor[:, None], input_precision="ieee")
    return out0, out1, top, total


@triton.jit
def paged_kernel(
    out_ptr, lse_ptr, q_ptr, pages_ptr, scale_ptr, query_start_ptr, context_lens_ptr, table_ptr,
    sink_ptr, num_requests, steps, num_rows, num_pages, table_width, window, scale2, stride_ot,
    stride_oh, stride_qt, stride_qh, page_stride, scale_stride, table_stride,
    GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, PAGE_SIZE: tl.constexpr,
    V_PLANE: tl.constexpr, K_SCALE_PLANE: tl.constexpr, V_SCALE_PLANE: tl.constexpr,
    WINDOW: tl.constexpr, FP8: tl.constexpr, SPLIT: tl.constexpr, TWO_LOOPS: tl.constexpr,
    DTYPE: tl.constexpr, V_DTYPE: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    # A request's last tiles see the most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, part = tl.program_id(1), tl.program_id(2)
    request, tile = find_request(query_start_ptr, num_requests, steps, tile, GROUP, BLOCK_M)
    first_row, count = span(query_start_ptr, request, num_rows)
    tile, count = (tile * BLOCK_M).to(tl.int32), count.to(tl.int32)
    if tile >= count * GROUP:
        return
    pairs = tile + tl.arange(0, BLOCK_M)  # [BLOCK_M]: token * GROUP + head in the group
    tokens, heads = pairs // GROUP, kv_head * GROUP + pairs % GROUP
    in_rows = tokens < count
    context = tl.maximum(tl.load(context_lens_ptr + request), 0).to(tl.int32)
    offset = context - count  # position of the request's first row
    positions = offset + tokens
    first = offset + tile // GROUP  # position of the tile's first row
    last = offset + tl.minimum(count - 1, (tile + BLOCK_M - 1) // GROUP)

    # Keys that some row sees: low..high-1, in tiles low_tile..high_tile-1; this part's share of
    # them; those that every row sees: full_low..full_high-1.
    low, high = 0, tl.maximum(last + 1, 0)
    if WINDOW:
        low = tl.maximum(first - window + 1, 0)
    low_tile, high_tile = low // BLOCK_N, tl.cdiv(high, BLOCK_N)
    share = tl.cdiv(high_tile - low_tile, tl.num_programs(2))
    low_tile += part * share
    high_tile = tl.minimum(low_tile + share, high_tile)
    full_high = tl.minimum(tl.maximum(first + 1, 0) // BLOCK_N, high_tile)
    full_low = low_tile
    if WINDOW:
        full_low = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N)
    full_low = tl.minimum(tl.maximum(full_low, low_tile), tl.maximum(full_high, low_tile))
    full_high = tl.maximum(full_high, full_low)

    q_ptr += first_row * stride_qt
    q_at = tokens.to(tl.int64) * stride_qt + heads.to(tl.int64) * stride_qh
    cols = tl.arange(0, D0)
    more = D0 + tl.arange(0, D1 if D1 else 16)
    q0, q1 = 0.0, 0.0
    if not EXACT:
        q0 = signed(_queries(q_ptr, q_at, in_rows, cols, D, DTYPE), scale2)  # [BLOCK_M, D0]
        if D1:
            q1 = signed(_queries(q_ptr, q_at, in_rows, more, D, DTYPE), scale2)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out0 = tl.zeros([BLOCK_M, D0], tl.float32)
    out1 = tl.zeros([BLOCK_M, D1 if D1 else 16], tl.float32)
    table_ptr += request.to(tl.int64) * table_stride

    if TWO_LOOPS:
        for n in range(full_low, full_high):
            out0, out1, top, total = _step(
                q0, q1, out0, out1, top, total, scale2, q_ptr, q_at, in_rows, n, low, high,
                positions, window, table_ptr, num_pages, table_width, pages_ptr, scale_ptr,
                page_stride, scale_stride, kv_head,
                False, WINDOW, FP8, DTYPE, V_DTYPE, EXACT, PAGE_SIZE, V_PLANE,
                K_SCALE_PLANE, V_SCALE_PLANE, HEADS, D, BLOCK_M, BLOCK_N, D0, D1,
            )  # fmt: skip
    else:
        full_high = full_low
    before = full_low - low_tile
    for i in range(before + tl.maximum(high_tile - full_high, 0)):
        n = tl.where(i < before, low_tile + i, full_high + i - before)
        out0, out1, top, total = _step(
            q0, q1, out0, out1, top, total, scale2, q_ptr, q_at, in_rows, n, low, high, positions,
            window, table_ptr, num_pages, table_width, pages_ptr, scale_ptr, page_stride,
            scale_stride, kv_head,
            True, WINDOW, FP8, DTYPE, V_DTYPE, EXACT, PAGE_SIZE, V_PLANE,
            K_SCALE_PLANE, V_SCALE_PLANE, HEADS, D, BLOCK_M, BLOCK_N, D0, D1,
        )  # fmt: skip

    share, lse = row_end(top, total)
    at = tokens * (HEADS * GROUP) + heads
    lse_ptr += first_row * (HEADS * GROUP)
    out_ptr += first_row * stride_ot
    if SPLIT:
        lse_ptr += part.to(tl.int64) * num_rows * (HEADS * GROUP)
        out_ptr += part.to(tl.int64) * num_rows * stride_ot
        tl.store(lse_ptr + at, lse, mask=in_rows)  # base 2, for the merge
    else:
        tl.store(lse_ptr + at, lse * LN2, mask=in_rows)
        if sink_ptr is not None:
            sink = tl.load(sink_ptr + heads, mask=in_rows, other=0.0).to(tl.float32)
            share *= sink_share(lse, sink)
    out_at = tokens.to(tl.int64) * stride_ot + heads.to(tl.int64) * stride_oh
    out0 = (out0 * share[:, None]).to(out_ptr.dtype.element_ty)
    mask = in_rows[:, None] & (cols < D)[None, :]
    tl.store(out_ptr + out_at[:, None] + cols[None, :], out0, mask=mask)
    if D1:
        out1 = (out1 * share[:, None]).to(out_ptr.dtype.element_ty)
        mask = in_rows[:, None] & (more < D)[None, :]
        tl.store(out_ptr + out_at[:, None] + more[None, :], out1, mask=mask)


# ---------------------------------------------------------------- plan and run


@dataclass(frozen=True)
class PagedPlan:
    """A planned `attention_paged` for fixed shapes, types and device; made by `plan_paged`.

    parts: how many blocks share a tile's keys; part, part_lse: their results, None for one.
    """

    choice: Choice
    problem: PagedProblem
    record: Record
    page_size: int
    scale: float
    window: int | None
    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    widths: tuple[int, int]
    parts: int
    part: torch.Tensor | None
    part_lse: torch.Tensor | None

    def run(
        self,
        q: torch.Tensor,
        cache: PagedCache,
        query_start: torch.Tensor,
        context_lens: torch.Tensor,
        block_table: torch.Tensor,
        *,
        out: torch.Tensor,
        lse: torch.Tensor,
        sink: torch.Tensor | None = None,
    ) -> None:
        """Writes out [T, Hq, d] and lse [T, Hq]; allocates, waits for and checks nothing.

        The last dimension of q, of block_table and of out is contiguous, as lse and the others are.
        """
        s, problem = self.choice.schedule, self.problem
        fp8, size, field = problem.fp8, self.page_size, self.record.field
        planes = {"V_PLANE": size * field("v").offset // field("v").dtype.itemsize}
        for name in ("k_scale", "v_scale"):
            planes[f"{name.upper()}_PLANE"] = size * field(name).offset // 4 if fp8 else 0
        values, scales = _views(cache, problem.bytes)
        scale_stride = 0 if scales is None else scales.stride(0)
        to, to_lse = out, lse
        if self.part is not None and self.part_lse is not None:
            to, to_lse = self.part, self.part_lse
        first, second = self.widths
        group, requests = self.heads // self.kv_heads, len(context_lens)
        operand = tl.float32 if problem.exact else triton_type(q.dtype)
        # As many tiles as `find_request` may give to the requests.
        tiles = self.rows * group // s.block_m + requests
        launch(
            paged_kernel, (tiles, self.kv_heads, self.parts),
            to, to_lse, q, values, scales, query_start, context_lens, block_table, sink, requests,
            requests.bit_length(), self.rows, cache.num_pages, block_table.shape[1],
            self.window or 0, self.scale * LOG2E.value, to.stride(-3), to.stride(-2), q.stride(0),
            q.stride(1), values.stride(0), scale_stride, block_table.stride(0),
            choice=self.choice, GROUP=group, HEADS=self.kv_heads, D=self.head_dim, PAGE_SIZE=size,
            **planes, WINDOW=self.window is not None, FP8=fp8, SPLIT=self.parts > 1,
            TWO_LOOPS=s.two_loops, DTYPE=operand,
            V_DTYPE=tl.bfloat16 if fp8 and not problem.exact else operand, EXACT=problem.exact,
            BLOCK_M=s.block_m, BLOCK_N=s.block_n, D0=first, D1=second,
        )  # fmt: skip
        if self.part is not None and self.part_lse is not None:
            merge(out, lse, self.part, self.part_lse, sink)


def _views(cache: PagedCache, as_bytes: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pages as the type of their values, e4m3 `as_bytes` if asked, and as fp32 for scales."""
    dtype = cache.record.field("k").dtype
    if dtype != torch.float8_e4m3fn:
        return cache.pages.view(dtype), None
    return cache.pages if as_bytes else cache.pages.view(dtype), cache.pages.view(torch.float32)


def plan_paged(
    record: Record,
    page_size: int,
    page_stride: int,
    *,
    rows: int,
    heads: int,
    num_kv_heads: int,
    requests: int,
    table_width: int,
    dtype: torch.dtype,
    device: torch.device,
    scale: float,
    window: int | None = None,
    max_query_len: int | None = None,
    max_context_len: int | None = None,
) -> PagedPlan:
    """Chooses the row, how many blocks share a tile's keys, and allocates room for their parts.

    record: a `gqa_record`.  page_stride: bytes from page to page.  rows, heads, dtype: of q.
    requests, table_width: of block_table.
    max_query_len, max_context_len: of any request, known on the host; None: no bound but shapes.
    Raises Unsupported where no row serves, BadInput for a record that is no GQA record.
    """
    if record.name.split("_")[0] != "gqa":
        raise BadInput(f"attention_paged: the cache holds {record.name}, want a gqa_record")
    head_dim, group = record.width // (2 * num_kv_heads), heads // num_kv_heads
    device_here = device_of(device)
    stored = record.field("k").dtype
    fp8 = stored == torch.float8_e4m3fn
    exact = dtype == torch.float32 or (not fp8 and stored != dtype)
    exact = exact or bool(head_dim % 16) or bool(page_stride // stored.itemsize % 16)
    widths = split_width(head_dim)
    queries = max_query_len or -(-rows // max(requests, 1))
    problem = PagedProblem(
        width=sum(widths),
        widest=max(widths),
        rows=queries * group,
        exact=exact,
        fp8=fp8,
        bytes=fp8 and bool(device_here.target.missing(Feature.FP8_CONVERT)),
    )
    choice = pick("attention_paged", PAGED, problem, device_here.target, shared=paged_shared)
    context = min(max_context_len or table_width * page_size, table_width * page_size)
    if window is not None:
        context = min(context, window + queries)
    blocks = requests * -(-problem.rows // choice.schedule.block_m) * num_kv_heads
    room = device_here.sms * (FP8_BLOCKS_AN_SM if fp8 else BLOCKS_AN_SM)
    parts = min(room // max(blocks, 1), context // KEYS_A_PART)
    parts = max(1, min(parts, MOST_PARTS))
    part = part_lse = None
    if parts > 1:
        shape = (parts, rows, heads)
        part = torch.empty(*shape, head_dim, dtype=torch.float32, device=device)
        part_lse = torch.empty(shape, dtype=torch.float32, device=device)
    return PagedPlan(
        choice, problem, record, page_size, scale, window, rows, heads, num_kv_heads, head_dim,
        widths, parts, part, part_lse,
    )  # fmt: skip


def attend_paged(
    q: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    num_kv_heads: int,
    scale: float,
    window: int | None,
    sink: torch.Tensor | None,
    max_query_len: int | None,
    max_context_len: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan and run.  -> out [T, Hq, d] in q's dtype, lse fp32 [T, Hq]"""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    if not len(context_lens) or not out.numel():
        return out, lse
    plan = plan_paged(
        cache.record, cache.page_size, cache.pages.stride(0), rows=q.shape[0], heads=q.shape[1],
        num_kv_heads=num_kv_heads, requests=len(context_lens), table_width=block_table.shape[1],
        dtype=q.dtype, device=q.device, scale=scale, window=window, max_query_len=max_query_len,
        max_context_len=max_context_len,
    )  # fmt: skip
    rows_apart = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, block_table))
    q, block_table = rows_apart
    query_start, context_lens = query_start.contiguous(), context_lens.contiguous()
    sink = None if sink is None else sink.contiguous()
    plan.run(q, cache, query_start, context_lens, block_table, out=out, lse=lse, sink=sink)
    return out, lse
