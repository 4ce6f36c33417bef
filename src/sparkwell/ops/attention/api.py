"""Public attention ops: shapes checked, backend chosen, result in the query's dtype."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.attention.reference import (
    attention_paged_reference,
    attention_prefill_reference,
)
from sparkwell.ops.backend import choose
from sparkwell.ops.ragged import check_batch, check_integers, shown


def attention_prefill(
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
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out = softmax(scale q k^T) v per request, bottom-right aligned (arXiv 1706.03762).

    q: [T, Hq, dqk] float; k: [S, Hk, dqk]; v: [S, Hk, dv]; Hk divides Hq; any strides.
    query_start, key_start: [B+1] int32, request i owns rows start[i]:start[i+1]; 0 rows allowed.
    scale: multiplies q k^T.
    causal: row r of n sees keys up to m - n + r of m.
    window: with causal; a row sees the last `window` of those keys, its own included.
    sink: [Hq] float, a logit without a value: out /= 1 + exp(sink - lse); lse is without it.

    Returns out [T, Hq, dv] in q's dtype, lse [T, Hq] fp32, natural log; a row that sees no key
    has out 0 and lse +inf.  A NaN among a request's keys may reach all its rows, no other's.
    Raises BadInput where shapes do not fit or the starts do not cover the rows; a kernel reads no
    value to raise, and no row out of bounds.
    """
    served_by = choose("attention_prefill", q, backend)
    _check_heads("attention_prefill", q, k.shape[1] if k.ndim == 3 else 0, sink)
    if k.ndim != 3 or k.shape[2] != q.shape[2] or v.ndim != 3 or v.shape[:2] != k.shape[:2]:
        raise BadInput(
            f"attention_prefill: k is {shown(k)}, v is {shown(v)}, want [S, Hk, {q.shape[2]}] and "
            "[S, Hk, dv]"
        )
    check_integers("attention_prefill", "query_start", query_start, 1)
    check_integers("attention_prefill", "key_start", key_start, 1)
    if not len(query_start) or query_start.shape != key_start.shape:
        raise BadInput(
            f"attention_prefill: query_start is {shown(query_start)}, key_start is "
            f"{shown(key_start)}; want [B+1] both"
        )
    _check_window("attention_prefill", window, causal)
    if served_by == "kernel":
        from sparkwell.ops.attention.kernels.prefill import prefill

        return prefill(
            q, k, v, query_start, key_start, scale=scale, causal=causal, window=window, sink=sink
        )
    out, lse = attention_prefill_reference(
        q, k, v, query_start, key_start, scale=scale, causal=causal, window=window, sink=sink
    )
    return out.to(q.dtype), lse


def attention_paged(
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
    max_query_len: int | None = None,
    max_context_len: int | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out = softmax(scale q k^T) v, causal, keys and values from a paged cache (arXiv 2309.06180).

    q: [T, Hq, d] float, any strides; its rows are their request's last positions.
    cache: `gqa_record(num_kv_heads, d, ...)`; num_kv_heads divides Hq.
    query_start: [B+1] int32, request i owns rows query_start[i]:query_start[i+1]; 0 rows allowed.
    context_lens: [B] int32, keys of each request, this step's included.
    block_table: [B, P] int32, physical page of each logical page; entries past the last page, or
    wholly before the window, are not looked at.
    scale, window, sink: as for `attention_prefill`.
    max_query_len, max_context_len: bounds of a request's rows and keys, where the host knows them;
        a kernel shares its work out by them, the result is the same.

    Returns out [T, Hq, d] in q's dtype, lse [T, Hq] fp32, natural log; no key: 0 and +inf.
    Raises BadInput where shapes do not fit, starts do not cover q, or a needed page is missing;
    a kernel reads no value to raise: it skips the keys of a missing page.
    """
    served_by = choose("attention_paged", q, backend)
    _check_heads("attention_paged", q, num_kv_heads, sink)
    if cache.record.width != 2 * num_kv_heads * q.shape[2]:
        raise BadInput(
            f"attention_paged: q is {shown(q)} over {num_kv_heads} key heads, which needs a record "
            f"of width {2 * num_kv_heads * q.shape[2]}; {cache.record.name} has width "
            f"{cache.record.width}"
        )
    check_batch("attention_paged", query_start, context_lens, block_table)
    _check_window("attention_paged", window, causal=True)
    if served_by == "kernel":
        from sparkwell.ops.attention.kernels.paged import attend_paged

        return attend_paged(
            q,
            cache,
            query_start,
            context_lens,
            block_table,
            num_kv_heads=num_kv_heads,
            scale=scale,
            window=window,
            sink=sink,
            max_query_len=max_query_len,
            max_context_len=max_context_len,
        )
    out, lse = attention_paged_reference(
        q,
        cache,
        query_start,
        context_lens,
        block_table,
        num_kv_heads=num_kv_heads,
        scale=scale,
        window=window,
        sink=sink,
    )
    return out.to(q.dtype), lse


def _check_heads(op: str, q: torch.Tensor, kv_heads: int, sink: torch.Tensor | None) -> None:
    if q.ndim != 3 or not q.is_floating_point():
        raise BadInput(f"{op}: q is {shown(q)}, want float [T, heads, head_dim]")
    if kv_heads < 1 or q.shape[1] % kv_heads:
        raise BadInput(
            f"{op}: {q.shape[1]} query heads over {kv_heads} key heads; want a multiple of them"
        )
    if sink is not None and sink.shape != q.shape[1:2]:
        raise BadInput(f"{op}: sink is {shown(sink)}, want [{q.shape[1]}], one logit per head")


def _check_window(op: str, window: int | None, causal: bool) -> None:
    if window is not None and (window < 1 or not causal):
        raise BadInput(
            f"{op}: window is {window} with causal={causal}; want at least 1 and causal attention, "
            "or None for no window"
        )
