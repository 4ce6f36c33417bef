"""Absorbed MLA in fp32 torch:  out = softmax(scale q [c | k_r]^T) c   (arXiv 2405.04434, 2.1)."""

import math

import torch

from sparkwell.formats.paged import PagedCache
from sparkwell.ops.attention.reference import apply_sink, attend, softmax_values
from sparkwell.ops.ragged import context_slots, row_blocks, shares


def mla_paged_reference(
    q: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    scale: float,
    d_v: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `mla_paged`.  -> fp32 [T, H, d_v], fp32 [T, H]"""
    out = q.new_zeros(*q.shape[:2], d_v, dtype=torch.float32)
    lse = q.new_full(q.shape[:2], math.inf, dtype=torch.float32)
    for share in shares("mla_paged", len(q), query_start, context_lens):
        slots = context_slots("mla_paged", cache, block_table, share.request, 0, share.length)
        kv = cache.read(slots)[:, None]  # [m, 1, width]: one key head for all query heads
        out[share.rows], lse[share.rows] = attend(
            q[share.rows], kv, kv[..., :d_v], scale=scale, first_position=share.first_position
        )
    return out, lse


def mla_sparse_reference(
    q: torch.Tensor,
    cache: PagedCache,
    slots: torch.Tensor,
    *,
    scale: float,
    d_v: int = 512,
    topk_length: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The meaning of `mla_sparse`.  -> fp32 [T, H, d_v], fp32 [T, H], fp32 [T, H]"""
    (num_rows, heads, width), topk = q.shape, slots.shape[1]
    slots = slots.long()
    valid = (slots >= 0) & (slots < cache.num_pages * cache.page_size)
    if topk_length is not None:
        valid &= torch.arange(topk, device=slots.device) < topk_length[:, None]
    kept = valid.any(0).nonzero()[:, 0]  # columns some row uses: a short context pads with -1
    slots, valid = slots[:, kept], valid[:, kept]

    out = q.new_zeros(num_rows, heads, d_v, dtype=torch.float32)
    lse = q.new_full((num_rows, heads), math.inf, dtype=torch.float32)
    max_logits = q.new_full((num_rows, heads), -math.inf, dtype=torch.float32)
    if not len(kept):
        return out, lse, max_logits
    slots = slots.where(valid, slots[valid][0])  # any slot that exists
    for rows in row_blocks(slice(0, num_rows), 4 * len(kept) * max(heads, width)):
        skipped = ~valid[rows]
        kv = cache.read(slots[rows].flatten())
        # Zeros, not what that slot happens to hold: 0 * NaN would reach the sum.
        kv.index_fill_(0, skipped.flatten().nonzero()[:, 0], 0.0)
        kv = kv.unflatten(0, skipped.shape)  # [t, topk, width]
        scores = torch.bmm(q[rows].float(), kv.transpose(1, 2)) * scale  # [t, H, topk]
        scores = scores.masked_fill(skipped[:, None], -math.inf)
        out[rows], lse[rows], max_logits[rows] = softmax_values(scores, kv[..., :d_v])
    return apply_sink(out, lse, sink), lse, max_logits
