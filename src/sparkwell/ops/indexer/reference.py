"""The indexer of DeepSeek sparse attention in fp32 torch (DeepSeek-V3.2, arXiv 2512.02556).

I(t, s) = sum_h w[t, h] max(0, q[t, h] . k[s])  for s <= t;   S(t) = the top-k s of I(t, .)

w may be negative, so a score of 0 is an ordinary score: what is masked is -inf.
"""

import math

import torch

from sparkwell.formats.fp8 import quantize_fp8_rows
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.ragged import context_slots, row_blocks, shares

INT32_MAX = 2**31 - 1


def quantize_index_query(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q = values * scale per (token, head), scale = 2^ceil(log2(max(amax, 1e-4) / 448)).

    q: [T, Hi, D] float.  Returns e4m3 [T, Hi, D], fp32 [T, Hi].  Source: DeepSeek-V3.2's reference.
    """
    values, scales = quantize_fp8_rows(q, group=q.shape[-1], pow2=True)
    return values, scales[..., 0]


def index_scores_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    *,
    key_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """scores[t, s] = key_scales[s] * sum_h weights[t, h] * max(0, q[t, h] . k[s]), all in fp32.

    q: [T, Hi, D]; k: [S, D]; weights: [T, Hi], the query's scale folded in; key_scales: [S] > 0.
    Any dtype, e4m3 included.  Returns fp32 [T, S], no key masked.
    """
    (num_rows, heads, _), num_keys = q.shape, len(k)
    q, k, weights = q.float(), k.float(), weights.float()
    scores = q.new_empty(num_rows, num_keys)
    for keys in row_blocks(slice(0, num_keys), 4 * heads):
        for rows in row_blocks(slice(0, num_rows), 4 * heads * (keys.stop - keys.start)):
            dots = (q[rows].flatten(0, 1) @ k[keys].T).relu_().unflatten(0, (-1, heads))
            scores[rows, keys] = torch.bmm(weights[rows, None], dots)[:, 0]
    return scores if key_scales is None else scores * key_scales.float()


def index_logits_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    *,
    key_scales: torch.Tensor | None = None,
    width: int | None = None,
) -> torch.Tensor:
    """The meaning of `index_logits`.  -> fp32 [M, N or width]"""
    scores = index_scores_reference(q, k, weights, key_scales=key_scales)
    keys = torch.arange(len(k), device=q.device)
    seen = (keys >= start[:, None]) & (keys < end[:, None])
    scores = scores.masked_fill(~seen, -math.inf)
    if width is None:
        return scores
    padded = torch.nn.functional.pad(scores, (0, 1), value=-math.inf)  # column N: no key
    at = start[:, None].long() + torch.arange(width, device=q.device)
    return padded.gather(1, at.clamp(0, len(k)))


def index_logits_paged_reference(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    max_context_len: int,
) -> torch.Tensor:
    """The meaning of `index_logits_paged`.  -> fp32 [B * n, max_context_len]"""
    (requests, rows, heads, _), lengths = q.shape, context_lens.tolist()
    weights = weights.view(requests, rows, heads)
    out = q.new_full((requests, rows, max_context_len), -math.inf, dtype=torch.float32)
    for i, lens in enumerate(lengths):
        length = min(max(lens, default=0), max_context_len)
        if length <= 0:
            continue
        slots = context_slots("index_logits_paged", cache, block_table, i, 0, length)
        scores = index_scores_reference(q[i], cache.read(slots), weights[i])
        for j, n in enumerate(lens):
            out[i, j, : max(0, min(n, length))] = scores[j, : max(0, min(n, length))]
    return out.flatten(0, 1)


def topk_select_reference(
    scores: torch.Tensor, visible: torch.Tensor, *, topk: int
) -> torch.Tensor:
    """The meaning of `topk_select`.  [T, S], [T] -> int32 [T, topk]"""
    num_rows, num_keys = scores.shape
    out = torch.full((num_rows, topk), -1, dtype=torch.int32, device=scores.device)
    count = min(topk, num_keys)
    if not count:
        return out
    seen = torch.arange(num_keys, device=scores.device) < visible[:, None]
    scores = scores.float().masked_fill(~seen | scores.isnan(), -math.inf)
    threshold = scores.topk(count).values[:, -1:]
    above = scores > threshold
    ties = (scores == threshold) & (threshold > -math.inf)
    chosen = above | (ties & (ties.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    row, column = chosen.nonzero(as_tuple=True)
    out[row, chosen.cumsum(-1)[chosen] - 1] = column.int()
    return out


def index_select_reference(
    q: torch.Tensor,
    weights: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    topk: int,
    fp8_query: bool,
) -> torch.Tensor:
    """The meaning of `index_select`.  -> int32 [T, topk]"""
    if fp8_query:
        q, scales = quantize_index_query(q)
        weights = weights.float() * scales
    out = torch.full((len(q), topk), -1, dtype=torch.int32, device=q.device)
    columns = torch.arange(topk, dtype=torch.int32, device=q.device)
    for share in shares("index_select", len(q), query_start, context_lens):
        start, stop, first = share.rows.start, share.rows.stop, share.first_position
        visible = torch.arange(first + 1, share.length + 1, device=q.device)  # keys each row sees
        out[share.rows] = columns.where(columns < visible[:, None], -1)
        scored = slice(max(start, start + topk - first), stop)  # rows that see more than topk
        if scored.start >= stop:
            continue
        slots = context_slots("index_select", cache, block_table, share.request, 0, share.length)
        # The stored scale comes multiplied into the key: the same score, since it is positive.
        keys = cache.read(slots)
        for rows in row_blocks(scored, 4 * share.length):
            scores = index_scores_reference(q[rows], keys, weights[rows])
            out[rows] = topk_select_reference(
                scores, visible[rows.start - start : rows.stop - start], topk=topk
            )
    return out


def logical_to_physical_reference(
    indices: torch.Tensor,
    request_of_token: torch.Tensor,
    block_table: torch.Tensor,
    *,
    page_size: int,
) -> torch.Tensor:
    """The meaning of `logical_to_physical`.  [T, topk], [T], [B, P] -> int32 [T, topk]"""
    positions, requests = indices.long(), request_of_token.long()[:, None].expand(indices.shape)
    num_requests, num_pages = block_table.shape
    logical = positions // page_size
    known = (positions >= 0) & (logical < num_pages) & (requests >= 0) & (requests < num_requests)
    pages = block_table[requests[known], logical[known]].long()
    slots = pages * page_size + positions[known] % page_size
    out = torch.full_like(indices, -1, dtype=torch.int32)
    out[known] = slots.masked_fill((pages < 0) | (slots > INT32_MAX), -1).int()
    return out
