"""Launches of the kernels that score keys."""

import torch
import triton

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.device import device_of
from sparkwell.ops.indexer.kernels.logits import paged_kernel, ragged_kernel
from sparkwell.ops.indexer.schedule import SCORES, Problem, padded, shared
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

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
