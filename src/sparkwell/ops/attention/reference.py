"""Attention in fp32 torch:  out = softmax(scale q k^T) v,  lse = ln sum exp(scale q k^T)."""

import math

import torch

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.ragged import climb, context_slots, row_blocks, shares


def softmax_values(
    scores: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out = softmax(scores) values; a score of -inf is a masked key.

    scores: [b, r, m] fp32, m >= 1.  values: [b, m, dv] fp32, finite where any score is -inf.
    Returns out [b, r, dv], lse [b, r] (natural log), max score [b, r]; a row without a key has
    out 0, lse +inf, max -inf (FlashMLA's convention).
    """
    top = scores.amax(-1)
    empty = top == -math.inf
    weights = torch.exp(scores - top.masked_fill(empty, 0.0)[..., None])
    total = weights.sum(-1).masked_fill(empty, 1.0)
    out = torch.bmm(weights, values) / total[..., None]
    lse = (top + total.log()).masked_fill(empty, math.inf)
    return out, lse, top


def apply_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """out / (1 + exp(sink - lse)): one more logit in the denominator, with no value.

    out: [T, H, dv]; lse: [T, H]; sink: [H], -inf for none.  Rows without a key stay 0.
    """
    if sink is None:
        return out
    share = torch.sigmoid(lse - sink.float()).masked_fill(lse == math.inf, 0.0)
    return out * share[..., None]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    first_position: int,
    causal: bool = True,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request: row r is at position first_position + r, key j at position j.

    q: [n, Hq, dqk]; k: [m, Hk, dqk]; v: [m, Hk, dv]; query head h reads key head h // (Hq / Hk).
    Causal rows see 0 <= position - j, with a window also position - j < window.
    Returns out fp32 [n, Hq, dv], lse fp32 [n, Hq].
    """
    (n, heads, _), (m, kv_heads, dv) = q.shape, v.shape
    q, k, v = q.float(), k.float().permute(1, 2, 0), v.float().transpose(0, 1)
    out = q.new_zeros(n, heads, dv)
    lse = q.new_full((n, heads), math.inf)
    for rows in row_blocks(slice(0, n), 4 * heads * m):
        first, count = first_position + rows.start, rows.stop - rows.start
        # Only the keys that some row of the block sees; for one row that leaves nothing to mask.
        high = min(m, max(0, first + count)) if causal else m
        low = 0 if window is None else min(high, max(0, first - window + 1))
        if low == high:
            continue
        x = q[rows].unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2)  # [Hk, n*g, dqk]
        scores = torch.bmm(x, k[..., low:high]) * scale
        if causal and count > 1:
            positions = torch.arange(first, first + count, device=q.device)[:, None]
            distance = positions - torch.arange(low, high, device=q.device)  # [n, keys]
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            by_row = scores.unflatten(1, (count, -1))
            scores = by_row.masked_fill(hidden[:, None], -math.inf).flatten(1, 2)
        o, s, _ = softmax_values(scores, v[:, low:high])
        out[rows] = o.unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)
        lse[rows] = s.unflatten(1, (count, -1)).transpose(0, 1).flatten(1)
    return out, lse


def attention_prefill_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_start: torch.Tensor,
    key_start: torch.Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `attention_prefill`.  -> fp32 [T, Hq, dv], fp32 [T, Hq]"""
    out = q.new_zeros(*q.shape[:2], v.shape[2], dtype=torch.float32)
    lse = q.new_full(q.shape[:2], math.inf, dtype=torch.float32)
    edges = climb("attention_prefill", "key_start", key_start, len(k))
    for share in shares("attention_prefill", len(q), query_start, key_start.diff()):
        rows, keys = share.rows, slice(edges[share.request], edges[share.request + 1])
        out[rows], lse[rows] = attend(
            q[rows],
            k[keys],
            v[keys],
            scale=scale,
            first_position=share.first_position,
            causal=causal,
            window=window,
        )
    return apply_sink(out, lse, sink), lse


def attention_paged_reference(
    q: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    num_kv_heads: int,
    scale: float,
    window: int | None = None,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `attention_paged`.  -> fp32 [T, Hq, d], fp32 [T, Hq]"""
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = q.new_full(q.shape[:2], math.inf, dtype=torch.float32)
    for share in shares("attention_paged", len(q), query_start, context_lens):
        # Pages that the window has left behind may already belong to another request.
        first = 0 if window is None else max(0, share.first_position - window + 1)
        slots = context_slots(
            "attention_paged", cache, block_table, share.request, first, share.length
        )
        k, v = cache.read(slots).unflatten(1, (2, num_kv_heads, -1)).unbind(1)
        out[share.rows], lse[share.rows] = attend(
            q[share.rows],
            k,
            v,
            scale=scale,
            first_position=share.first_position - first,
            window=window,
        )
    return apply_sink(out, lse, sink), lse
