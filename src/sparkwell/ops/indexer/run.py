"""Launches of the indexer's kernels: scores, selection in bounded memory, slots."""

import torch
import triton

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.device import device_of
from sparkwell.ops.indexer.kernels.logits import paged_kernel, ragged_kernel
from sparkwell.ops.indexer.kernels.topk import slots_kernel, topk_kernel
from sparkwell.ops.indexer.schedule import (
    SCORES,
    SELECT,
    SLOTS,
    Problem,
    SelectProblem,
    padded,
    select_shared,
    shared,
)
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

SCORE_BYTES = 256 << 20  # scores that exist at one time, whatever the context
KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8"}


def _choose(
    op: str, q: torch.Tensor, key: torch.dtype, rows: int, paged: bool
) -> tuple[Choice, dict[str, int]]:
    """The row and the constants that both score kernels share."""
    heads, d = q.shape[-2:]
    fp8 = key == q.dtype == torch.float8_e4m3fn
    problem = Problem(rows, heads, d, KINDS.get(key, "fp16"), fp8, paged)
    choice = pick(op, SCORES, problem, device_of(q.device).target, shared=shared)
    s = choice.schedule
    block_r, heads, width = padded(problem, s)
    return choice, {
        "WIDEN": s.operand == "fp16", "R": block_r, "HEADS": heads, "BLOCK_N": s.block_n,
        "BLOCK_D": width,
    }  # fmt: skip


def _bytes(x: torch.Tensor, widen: bool) -> torch.Tensor:
    return x.view(torch.uint8) if widen else x


def ragged_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    key_scales: torch.Tensor | None,
    width: int | None,
) -> torch.Tensor:
    """`index_logits` of checked operands.  -> fp32 [M, N or width]"""
    q, k, weights, start, end = map(unit_stride, (q, k, weights, start, end))
    key_scales = None if key_scales is None else unit_stride(key_scales)
    rows, columns = len(q), len(k) if width is None else width
    out = torch.empty(rows, columns, dtype=torch.float32, device=q.device)
    choice, constants = _choose("index_logits", q, k.dtype, rows, False)
    if width is not None:
        constants["R"] = triton.cdiv(16, constants["HEADS"])  # rows of one tile start apart
        out.fill_(-float("inf"))
    widen = bool(constants["WIDEN"])
    launch(
        ragged_kernel,
        (triton.cdiv(rows, constants["R"]), triton.cdiv(columns, constants["BLOCK_N"])),
        out, _bytes(q, widen), weights, _bytes(k, widen), key_scales, start, end, rows,
        q.shape[1], q.shape[2], len(k), columns, out.stride(0), q.stride(0), q.stride(1),
        weights.stride(0), k.stride(0), choice=choice, RELATIVE=width is not None, **constants,
    )  # fmt: skip
    return out


def paged_scores(
    op: str,
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    request: torch.Tensor,
    visible: torch.Tensor,
    block_table: torch.Tensor,
    columns: int,
    rows_share: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores of row t against the first visible[t] keys of request[t], -inf after them.

    q: [T, H, D].  rows_share: rows of one request, about: more of them share a block's keys.
    """
    q, weights, block_table = map(unit_stride, (q, weights, block_table))
    field = cache.record.fields[0]
    out = torch.empty(len(q), columns, device=q.device) if out is None else out
    choice, constants = _choose(op, q, field.dtype, rows_share, True)
    widen = bool(constants["WIDEN"])
    keys = cache.pages if widen else cache.pages.view(field.dtype)
    scales = cache.pages.view(torch.float32) if widen else keys
    launch(
        paged_kernel,
        (triton.cdiv(len(q), constants["R"]), triton.cdiv(columns, constants["BLOCK_N"])),
        out, _bytes(q, widen), weights, keys, scales, block_table, request, visible, len(q),
        q.shape[1], q.shape[2], columns, cache.num_pages, block_table.shape[1], out.stride(0),
        q.stride(0), q.stride(1), weights.stride(0), block_table.stride(0), keys.stride(0),
        scales.stride(0), choice=choice, PAGE=cache.page_size, TOKEN=field.count, **constants,
    )  # fmt: skip
    return out


def select_columns(
    op: str, scores: torch.Tensor, visible: torch.Tensor, topk: int, *, keep_all: bool
) -> torch.Tensor:
    """Top-k columns of each row.  keep_all: rows that see at most topk keep them, unscored."""
    scores, visible = unit_stride(scores), unit_stride(visible)
    rows, columns = scores.shape
    out = torch.empty(rows, topk, dtype=torch.int32, device=scores.device)
    target = device_of(scores.device).target
    problem = SelectProblem(columns, topk)
    choice = pick(op, SELECT, problem, target, shared=select_shared)
    launch(
        topk_kernel, (rows,), out, scores, visible, columns, topk, scores.stride(0),
        choice=choice, KEEP_ALL=keep_all, BLOCK=choice.schedule.block,
    )  # fmt: skip
    return out


def select_keys(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    topk: int,
    max_query_len: int | None,
    max_context_len: int | None,
) -> torch.Tensor:
    """`index_select` of checked operands, a bounded number of rows at a time."""
    rows = len(q)
    columns = block_table.shape[1] * cache.page_size
    columns = columns if max_context_len is None else min(columns, max_context_len)
    # Each row's request and the keys it sees, on the device.
    t = torch.arange(rows, device=q.device, dtype=torch.int32)
    request = torch.searchsorted(query_start[1:].int(), t, right=True)
    request = request.clamp(max=max(0, len(context_lens) - 1)).int()
    ends = query_start[1:].int()
    visible = context_lens.int()[request] - ends[request] + t + 1
    if columns <= topk:
        wide = torch.arange(topk, device=q.device, dtype=torch.int32)
        return torch.where(wide < visible.clamp(max=columns)[:, None], wide, -1).int()
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
        out[part] = select_columns("index_select", scores, visible[part], topk, keep_all=True)
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
