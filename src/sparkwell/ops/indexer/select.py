"""Launches of the indexer's selection: exact top-k, keys in bounded memory, slots."""

import torch
import triton

from sparkwell.formats.fp8 import AMAX_FLOOR
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.device import device_of
from sparkwell.ops.indexer.kernels.queries import queries_kernel
from sparkwell.ops.indexer.kernels.topk import mark_kernel, slots_kernel, topk_kernel
from sparkwell.ops.indexer.run import paged_scores
from sparkwell.ops.indexer.schedule import (
    QUERIES,
    SELECT,
    SLOTS,
    SelectProblem,
    select_shared,
)
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

SCORE_BYTES = 256 << 20  # scores that exist at one time, whatever the context
BLOCKS_AN_SM = 2  # that share the rows of a small batch
MOST_SPLITS = 32


def select_columns(
    op: str,
    scores: torch.Tensor,
    visible: torch.Tensor,
    topk: int,
    *,
    keep_all: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Top-k columns of each row.  keep_all: rows that see at most topk keep them, unscored."""
    scores, visible = unit_stride(scores), unit_stride(visible)
    rows, columns = scores.shape
    out = scores.new_empty(rows, topk, dtype=torch.int32) if out is None else out
    device = device_of(scores.device)
    choice = pick(op, SELECT, SelectProblem(columns, topk), device.target, shared=select_shared)
    s = choice.schedule
    fits = columns <= s.keep
    splits = min(BLOCKS_AN_SM * device.sms // max(1, rows), columns // (2 * s.block), MOST_SPLITS)
    splits = 1 if fits else max(1, splits)
    # Odd strides: what starts at no multiple of 16 bytes is read one entry a thread, which is how
    # it is written to where it belongs.
    words = triton.cdiv(columns, s.block) * s.block // 32
    marks = out.new_empty(0 if fits else rows, words + 1)
    index = out.new_empty(0 if fits else rows, s.keep + 1)
    sizes = (scores, visible, columns, topk, scores.stride(0), marks.stride(0))
    constants = {"KEEP_ALL": keep_all, "SAMPLE": s.sample, "KEEP": s.keep, "BLOCK": s.block}
    if splits > 1:
        launch(mark_kernel, (rows, splits), marks, *sizes, splits, choice=choice, **constants)
    launch(
        topk_kernel, (rows,), out, index, marks, *sizes, index.stride(0), choice=choice,
        WORDS=s.words, FITS=fits, MARKED=splits > 1, **constants,
    )  # fmt: skip
    return out


def prepared(
    q: torch.Tensor,
    weights: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    fp8: bool,
) -> tuple[torch.Tensor, ...]:
    """Queries and weights, e4m3 and scaled if `fp8`; each row's request, and the keys it sees."""
    q, weights, starts, lens = map(unit_stride, (q, weights, query_start, context_lens))
    rows, heads, d = q.shape
    choice = pick("index_select", QUERIES, SelectProblem(d, heads), device_of(q.device).target)
    block_h = choice.schedule.block_h
    request, visible = (torch.empty(rows, dtype=torch.int32, device=q.device) for _ in range(2))
    codes = q.new_empty(q.shape if fp8 else (0,), dtype=torch.uint8)
    scaled = q.new_empty(weights.shape if fp8 else (0,), dtype=torch.float32)
    launch(
        queries_kernel, (rows, triton.cdiv(heads, block_h) if fp8 else 1), codes, scaled, request,
        visible, q, weights, starts, lens, len(lens), heads, d, q.stride(0), q.stride(1),
        weights.stride(0), AMAX_FLOOR, choice=choice, FP8=fp8, BLOCK_H=block_h,
        BLOCK_D=triton.next_power_of_2(d),
    )  # fmt: skip
    return (codes.view(torch.float8_e4m3fn), scaled, request, visible) if fp8 else (
        q, weights, request, visible,
    )  # fmt: skip


def select_keys(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    topk: int,
    fp8_query: bool,
    max_query_len: int | None,
    max_context_len: int | None,
) -> torch.Tensor:
    """`index_select` of checked operands, a bounded number of rows at a time."""
    rows = len(q)
    columns = block_table.shape[1] * cache.page_size
    columns = columns if max_context_len is None else min(columns, max_context_len)
    scored = columns > topk
    q, weights, request, visible = prepared(
        q, weights, query_start, context_lens, fp8_query and scored
    )
    if not scored:
        wide = torch.arange(topk, device=q.device, dtype=torch.int32)
        return torch.where(wide < visible.clamp(max=columns)[:, None], wide, -1).int()
    if fp8_query and cache.record.fields[0].dtype != torch.float8_e4m3fn:
        q = q.float()
    out = torch.empty(rows, topk, dtype=torch.int32, device=q.device)
    step = max(1, min(rows, SCORE_BYTES // (4 * columns)))
    scratch = torch.empty(step, columns, dtype=torch.float32, device=q.device)
    share = rows if max_query_len is None else max_query_len
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        scores = paged_scores(
            "index_select", q[part], weights[part], cache, request[part], visible[part],
            block_table, columns, min(share, step), out=scratch[: part.stop - first],
        )  # fmt: skip
        select_columns("index_select", scores, visible[part], topk, keep_all=True, out=out[part])
    return out


def physical_slots(
    indices: torch.Tensor, request: torch.Tensor, block_table: torch.Tensor, page_size: int
) -> torch.Tensor:
    """`logical_to_physical` of checked operands.  [T, topk], [T], [B, P] -> int32 [T, topk]"""
    rows, topk = indices.shape
    indices, request, block_table = map(unit_stride, (indices, request, block_table))
    out = torch.empty(rows, topk, dtype=torch.int32, device=indices.device)
    target = device_of(indices.device).target
    choice = pick("logical_to_physical", SLOTS, SelectProblem(topk, topk), target)
    block = choice.schedule.block
    launch(
        slots_kernel, (rows, triton.cdiv(topk, block)), out, indices, request, block_table, topk,
        page_size, len(block_table), block_table.shape[1], indices.stride(0),
        block_table.stride(0), choice=choice, BLOCK=block,
    )  # fmt: skip
    return out
