"""Public indexer ops: shapes checked, backend chosen, positions and slots as int32."""

from collections.abc import Sequence

import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.indexer.reference import (
    index_logits_paged_reference,
    index_logits_reference,
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
    max_query_len: int | None = None,
    max_context_len: int | None = None,
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
    max_query_len, max_context_len: no request has more; they size a kernel's grid, None: by shapes.

    Returns int32 [T, topk], positions in the row's request, ascending, then -1.  A row that sees
    at most topk keys keeps them all, unscored; otherwise ties go to the lower position and a NaN
    score is never kept.  Source: DeepSeek-V3.2, arXiv 2512.02556.
    Raises BadInput where shapes do not fit; the reference also where starts do not cover q or a
    needed page is missing (a kernel never keeps the keys of such a page).
    """
    served_by = choose("index_select", q, backend)
    if q.ndim != 3 or q.shape[2] != cache.record.width or not q.is_floating_point():
        raise BadInput(
            f"index_select: q is {shown(q)}, want float [T, heads, {cache.record.width}] for "
            f"record {cache.record.name}"
        )
    if weights.shape != q.shape[:2]:
        raise BadInput(f"index_select: weights is {shown(weights)}, want {list(q.shape[:2])}")
    _check_topk("index_select", topk)
    check_batch("index_select", query_start, context_lens, block_table)
    batch = (cache, query_start, context_lens, block_table)
    if served_by == "reference":
        return index_select_reference(q, weights, *batch, topk=topk, fp8_query=fp8_query)
    from sparkwell.ops.indexer.select import select_keys

    if not fp8_query and cache.record.fields[0].dtype == torch.float8_e4m3fn:
        raise Unsupported(
            "index_select",
            f"{shown(q)} over {cache.record.name}",
            {"kernel": "multiplies e4m3 keys by e4m3 queries only"},
            'pass fp8_query=True, or backend="reference"',
        )
    bounds = (max_query_len, max_context_len)
    return select_keys(q, weights, *batch, topk, fp8_query, *bounds)


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
    served_by = choose("topk_select", scores, backend)
    if scores.ndim != 2 or not scores.is_floating_point():
        raise BadInput(f"topk_select: scores is {shown(scores)}, want float [T, S]")
    check_integers("topk_select", "visible", visible, 1)
    if len(visible) != len(scores):
        raise BadInput(f"topk_select: visible is {shown(visible)}, want [{len(scores)}]")
    _check_topk("topk_select", topk)
    if served_by == "reference":
        return topk_select_reference(scores, visible, topk=topk)
    from sparkwell.ops.indexer.select import select_columns

    return select_columns("topk_select", scores, visible, topk, keep_all=False)


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
    served_by = choose("logical_to_physical", indices, backend)
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
    if served_by == "reference":
        return logical_to_physical_reference(
            indices, request_of_token, block_table, page_size=page_size
        )
    from sparkwell.ops.indexer.select import physical_slots

    return physical_slots(indices, request_of_token, block_table, page_size)


def index_logits(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    *,
    key_scales: torch.Tensor | None = None,
    width: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """logits[m, n] = key_scales[n] sum_h weights[m, h] max(0, q[m, h] . k[n]), start <= n < end.

    q: [M, H, D] e4m3, or fp32/bf16.
    k: [N, D] of the same type.
    weights: [M, H] fp32, the query's scale folded in.
    start, end: [M] int32, the keys that row m sees.
    key_scales: [N] fp32 > 0, or None for 1.
    width: None: column n is key n.  Else column j of row m is key start[m] + j, j < width.

    Returns fp32 [M, N or width], -inf where a row does not look.  Source: DeepSeek-V3.2, arXiv
    2512.02556; conventions of DeepGEMM.  Raises BadInput where shapes do not fit.
    """
    served_by = choose("index_logits", q, backend)
    if q.ndim != 3 or k.ndim != 2 or k.shape[1] != q.shape[2] or k.dtype != q.dtype:
        raise BadInput(
            f"index_logits: q is {shown(q)} and k {shown(k)}, want [M, H, D] and [N, D] of one type"
        )
    _check_weights("index_logits", weights, q.shape[:2])
    for name, bound in (("start", start), ("end", end)):
        check_integers("index_logits", name, bound, 1)
        if len(bound) != len(q):
            raise BadInput(f"index_logits: {name} is {shown(bound)}, want [{len(q)}]")
    if key_scales is not None and key_scales.shape != k.shape[:1]:
        raise BadInput(f"index_logits: key_scales is {shown(key_scales)}, want [{len(k)}]")
    bounds = (start, end)
    if served_by == "reference":
        return index_logits_reference(q, k, weights, *bounds, key_scales=key_scales, width=width)
    from sparkwell.ops.indexer.run import ragged_scores

    return ragged_scores(q, k, weights, *bounds, key_scales, width)


def index_logits_paged(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    max_context_len: int,
    backend: str = "auto",
) -> torch.Tensor:
    """`index_logits` of row (b, j) against the first context_lens[b, j] keys of request b.

    q: [B, n, H, D] e4m3 for an FP8 cache, else fp32/bf16.
    weights: [B * n, H] fp32.
    cache: `index_key_record`, width D.
    context_lens: [B, n] int32.  block_table: [B, P] int32.
    max_context_len: columns of the result.

    Returns fp32 [B * n, max_context_len], -inf from context_lens on.
    Raises BadInput where shapes do not fit.
    """
    served_by = choose("index_logits_paged", q, backend)
    if q.ndim != 4 or q.shape[3] != cache.record.width:
        raise BadInput(
            f"index_logits_paged: q is {shown(q)}, want [B, n, H, {cache.record.width}] for "
            f"record {cache.record.name}"
        )
    check_integers("index_logits_paged", "context_lens", context_lens, 2)
    check_integers("index_logits_paged", "block_table", block_table, 2)
    if context_lens.shape != q.shape[:2] or len(block_table) != len(q):
        raise BadInput(
            f"index_logits_paged: context_lens is {shown(context_lens)}, block_table "
            f"{shown(block_table)}, want {list(q.shape[:2])} and [{len(q)}, P]"
        )
    _check_weights("index_logits_paged", weights, (q.shape[0] * q.shape[1], q.shape[2]))
    batch = (cache, context_lens, block_table)
    if served_by == "reference":
        return index_logits_paged_reference(q, weights, *batch, max_context_len=max_context_len)
    from sparkwell.ops.indexer.run import paged_scores

    visible = context_lens.flatten().int()
    rows, size = q.flatten(0, 1), (max_context_len, q.shape[1])
    return paged_scores(
        "index_logits_paged", rows, weights, cache, None, visible, block_table, *size
    )


def _check_weights(op: str, weights: torch.Tensor, want: Sequence[int]) -> None:
    if tuple(weights.shape) != tuple(want) or weights.dtype != torch.float32:
        raise BadInput(f"{op}: weights is {shown(weights)}, want float32 {list(want)}")


def _check_topk(op: str, topk: int) -> None:
    if topk < 1:
        raise BadInput(f"{op}: topk is {topk}, want at least 1")
