"""Launches of the kernels that score keys."""

from typing import cast

import torch
import triton

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.device import device_of
from sparkwell.ops.indexer.kernels.logits import paged_kernel, ragged_kernel
from sparkwell.ops.indexer.kernels.tiled import tiled_kernel
from sparkwell.ops.indexer.schedule import SCORES, Problem, Walk, padded, queries, shared, walk
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8"}


def _choose(
    op: str, q: torch.Tensor, key: torch.dtype, rows: int, paged: bool, copyable: bool
) -> tuple[Choice, dict[str, int]]:
    """The row and the constants that both kernels of plain tiles share."""
    heads, d = q.shape[-2:]
    fp8 = key == q.dtype == torch.float8_e4m3fn
    problem = Problem(rows, heads, d, KINDS.get(key, "fp16"), fp8, paged, copyable)
    choice = pick(op, SCORES, problem, device_of(q.device).target, shared=shared)
    s = choice.schedule
    block_r, heads, width = padded(problem, s)
    return choice, {
        "WIDEN": s.operand == "fp16", "R": block_r, "HEADS": heads, "BLOCK_N": s.block_n,
        "BLOCK_D": width,
    }  # fmt: skip


def _bytes(x: torch.Tensor, widen: bool) -> torch.Tensor:
    return x.view(torch.uint8) if widen else x


def _copyable(q: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor | None) -> bool:
    """Whether the copy engine reads queries (a copy of them, if scattered), keys, scales."""
    steps = [q.data_ptr() if q.is_contiguous() else 0, keys.data_ptr(), keys.stride(0)]
    steps += [] if scales is None else [scales.data_ptr()]
    return len(q) > 0 and len(keys) > 0 and all(step % 16 == 0 for step in steps)


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
    readable = width is None and _copyable(q, k, key_scales)
    share = rows if width is None else 1  # rows that start apart share no keys
    choice, constants = _choose("index_logits", q, k.dtype, share, False, readable)
    if choice.schedule.operand == "fp8":
        return _walk_ragged(out, q, k, weights, start, end, key_scales, width, choice)
    if width is not None:
        constants |= {"R": 1, "HEADS": max(16, constants["HEADS"])}
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


def _walk(out: torch.Tensor, q: torch.Tensor, choice: Choice, r: int | None = None) -> Walk:
    """How blocks walk over the keys.  r: queries of a block; None: as the schedule says."""
    problem, s = cast(Problem, choice.problem), choice.schedule
    r = r or queries(problem, s, padded(problem, s)[1])
    return walk(problem, s, r, len(q), out.shape[1], device_of(q.device).sms)


def _walk_ragged(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    key_scales: torch.Tensor | None,
    width: int | None,
    choice: Choice,
) -> torch.Tensor:
    if choice.schedule.groups and not interpreting():
        from sparkwell.ops.indexer.kernels.specialized import score_ragged

        batch = (weights, start, end, key_scales)
        score_ragged(out, q.contiguous(), k, *batch, choice=choice, walk=_walk(out, q, choice))
        return out
    s, (_, heads, d) = choice.schedule, padded(cast(Problem, choice.problem), choice.schedule)
    if width is not None:  # rows that start apart share no keys
        heads = max(16, heads)
        out.fill_(-float("inf"))
    plan = _walk(out, q, choice, None if width is None else 1)
    launch(
        tiled_kernel, plan.grid,
        out, q, weights, k, key_scales, None, None, start, end, len(q), 1, q.shape[1], q.shape[2],
        len(k), out.shape[1], plan.chunk, 0, 0, out.stride(0), q.stride(0), q.stride(1),
        weights.stride(0), 0, k.stride(0), 0, choice=choice, PAGED=False, PAGE=1, TOKEN=0,
        RELATIVE=width is not None, R=plan.r, HEADS=heads, BLOCK_K=s.block_n, BLOCK_D=d,
    )  # fmt: skip
    return out


def _walk_paged(
    out: torch.Tensor,
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    request: torch.Tensor | None,
    each: int,
    visible: torch.Tensor,
    block_table: torch.Tensor,
    choice: Choice,
) -> torch.Tensor:
    plan = _walk(out, q, choice)
    if choice.schedule.groups and not interpreting():
        from sparkwell.ops.indexer.kernels.specialized import score_paged

        batch = (cache, request, each, visible, block_table)
        score_paged(out, q.contiguous(), weights, *batch, choice=choice, walk=plan)
        return out
    s, (_, heads, d) = choice.schedule, padded(cast(Problem, choice.problem), choice.schedule)
    keys, scales = cache.pages.view(torch.float8_e4m3fn), cache.pages.view(torch.float32)
    launch(
        tiled_kernel, plan.grid,
        out, q, weights, keys, scales, block_table, request, None, visible, len(q), each,
        q.shape[1], q.shape[2], out.shape[1], out.shape[1], plan.chunk, cache.num_pages,
        block_table.shape[1], out.stride(0), q.stride(0), q.stride(1), weights.stride(0),
        block_table.stride(0), keys.stride(0), scales.stride(0), choice=choice, PAGED=True,
        PAGE=cache.page_size, TOKEN=cache.record.fields[0].count, RELATIVE=False, R=plan.r,
        HEADS=heads, BLOCK_K=s.block_n, BLOCK_D=d,
    )  # fmt: skip
    return out


def paged_scores(
    op: str,
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    request: torch.Tensor | None,
    visible: torch.Tensor,
    block_table: torch.Tensor,
    columns: int,
    rows_share: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores of row t against the first visible[t] keys of request[t], -inf after them.

    q: [T, H, D].  rows_share: rows of one request, about: more of them share a block's keys.
    request: None: each request has rows_share rows, one after the other.
    """
    q, weights, block_table = map(unit_stride, (q, weights, block_table))
    visible = unit_stride(visible)
    request = None if request is None else unit_stride(request)
    field = cache.record.fields[0]
    out = torch.empty(len(q), columns, device=q.device) if out is None else out
    readable = cache.page_size % 64 == 0 and _copyable(q, cache.pages, None)
    choice, constants = _choose(op, q, field.dtype, rows_share, True, readable)
    if choice.schedule.operand == "fp8":
        batch = (cache, request, rows_share, visible, block_table)
        return _walk_paged(out, q, weights, *batch, choice)
    if request is None:
        row = torch.arange(len(q), dtype=torch.int32, device=q.device)
        request = (row // rows_share).int()
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
