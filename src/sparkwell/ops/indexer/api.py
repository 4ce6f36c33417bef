"""Public indexer ops: shapes checked, backend chosen, positions and slots as int32."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.indexer.reference import (
    index_select_reference,
    logical_to_physical_reference,
    topk_select_reference,
)
from sparkwell.ops.ragged import check_batch, check_integers, shown


def index_select(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    topk: int,
    fp8_query: bool,
    backend: str = "auto",
) -> torch.Tensor:
    """The topk keys s <= t of largest I(t, s) = sum_h weights[t, h] max(0, q[t, h] . k[s]).

    q: [T, Hi, D] float, any strides.
    weights: [T, Hi] fp32, of either sign, all constant factors folded in.
    cache: `index_key_record`, width D; scores use the values it holds, quantized ones included.
    query_start: [B+1] int32, request i owns rows query_start[i]:query_start[i+1], its last ones.
    context_lens: [B] int32, keys of each request, this step's included.
    block_table: [B, P] int32, physical page of each logical page; anything past the last one.
    topk: at least 1.
    fp8_query: round q to e4m3 with a power-of-two scale per head, as an FP8 kernel reads it.

    Returns int32 [T, topk], positions in the row's request, ascending, then -1.  A row that sees
    at most topk keys keeps them all, unscored; otherwise ties go to the lower position and a NaN
    score is never kept.  Source: DeepSeek-V3.2, arXiv 2512.02556.
    Raises BadInput where shapes do not fit, starts do not cover q, or a needed page is missing.
    """
    choose("index_select", q, backend)
    if q.ndim != 3 or q.shape[2] != cache.record.width or not q.is_floating_point():
        raise BadInput(
            f"index_select: q is {shown(q)}, want float [T, heads, {cache.record.width}] for "
            f"record {cache.record.name}"
        )
    if weights.shape != q.shape[:2]:
        raise BadInput(f"index_select: weights is {shown(weights)}, want {list(q.shape[:2])}")
    _check_topk("index_select", topk)
    check_batch("index_select", query_start, context_lens, block_table)
    return index_select_reference(
        q,
        weights,
        cache,
        query_start,
        context_lens,
        block_table,
        topk=topk,
        fp8_query=fp8_query,
    )


def topk_select(
    scores: torch.Tensor, visible: torch.Tensor, *, topk: int, backend: str = "auto"
) -> torch.Tensor:
    """Columns of the topk largest of scores[t, :visible[t]], ascending, then -1.

    scores: [T, S] float; NaN counts as -inf, which is never chosen; columns from visible[t] on may
    hold anything.
    visible: [T] int32, any value; clamped to 0..S.
    topk: at least 1, may exceed S.

    Returns int32 [T, topk]; of equal scores (0.0 equals -0.0) the lower column wins.
    Raises BadInput where shapes do not fit.
    """
    choose("topk_select", scores, backend)
    if scores.ndim != 2 or not scores.is_floating_point():
        raise BadInput(f"topk_select: scores is {shown(scores)}, want float [T, S]")
    check_integers("topk_select", "visible", visible, 1)
    if len(visible) != len(scores):
        raise BadInput(f"topk_select: visible is {shown(visible)}, want [{len(scores)}]")
    _check_topk("topk_select", topk)
    return topk_select_reference(scores, visible, topk=topk)


def logical_to_physical(
    indices: torch.Tensor,
    request_of_token: torch.Tensor,
    block_table: torch.Tensor,
    *,
    page_size: int,
    backend: str = "auto",
) -> torch.Tensor:
    """slot = block_table[request, position // page_size] * page_size + position % page_size.

    indices: [T, topk] int32, positions in the row's request; negative: none.
    request_of_token: [T] int64, the request of each row.
    block_table: [B, P] int32.
    page_size: tokens per page, at least 1.

    Returns int32 [T, topk] slots; -1 where the position is negative or past the table, the
    request or its page is not one, or the slot is past int32.
    Raises BadInput where shapes do not fit.
    """
    choose("logical_to_physical", indices, backend)
    check_integers("logical_to_physical", "indices", indices, 2)
    check_integers("logical_to_physical", "request_of_token", request_of_token, 1)
    check_integers("logical_to_physical", "block_table", block_table, 2)
    if len(request_of_token) != len(indices):
        raise BadInput(
            f"logical_to_physical: request_of_token is {shown(request_of_token)}, want "
            f"[{len(indices)}], one request per row of indices"
        )
    if page_size < 1:
        raise BadInput(f"logical_to_physical: page_size is {page_size}, want at least 1")
    return logical_to_physical_reference(
        indices, request_of_token, block_table, page_size=page_size
    )


def _check_topk(op: str, topk: int) -> None:
    if topk < 1:
        raise BadInput(f"{op}: topk is {topk}, want at least 1")
