"""Public MLA ops: shapes checked, backend chosen, result in the query's dtype."""

from typing import Any

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.mla.reference import mla_paged_reference, mla_sparse_reference
from sparkwell.ops.ragged import check_batch, check_integers, shown, unit_stride


def mla_paged(
    q: torch.Tensor,
    cache: PagedCache,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    scale: float,
    d_v: int = 512,
    max_query_len: int | None = None,
    max_context_len: int | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out = softmax(scale q kv^T) kv[:, :d_v] over each request's whole context, causal.

    q: [T, H, d_c + d_r] float, any strides: q_nope W_UK, then the rotated part.
    cache: `latent_record`, width d_c + d_r: the normed latent, then the rotated key.
    query_start: [B+1] int32, request i owns rows query_start[i]:query_start[i+1], its last ones.
    context_lens: [B] int32, keys of each request, this step's included.
    block_table: [B, P] int32, physical page of each logical page; anything past the last one.
    scale: multiplies q kv^T; the model's, not width^-0.5.
    max_query_len, max_context_len: no request has more; they size a kernel's grid, None: by shapes.

    Returns out [T, H, d_v] in q's dtype, lse [T, H] fp32, natural log; a row that sees no key has
    out 0 and lse +inf.  Source: DeepSeek-V2, arXiv 2405.04434; conventions of FlashMLA.
    Raises BadInput where shapes do not fit; the reference also where starts do not cover q or a
    needed page is missing (a kernel skips the keys of a page that the cache does not have).
    """
    served_by = choose("mla_paged", q, backend)
    _check_q("mla_paged", q, cache, d_v)
    check_batch("mla_paged", query_start, context_lens, block_table)
    if served_by == "reference":
        out, lse = mla_paged_reference(
            q, cache, query_start, context_lens, block_table, scale=scale, d_v=d_v
        )
        return out.to(q.dtype), lse
    from sparkwell.ops.mla.plan import plan_mla

    keys = block_table.shape[1] * cache.page_size
    keys = keys if max_context_len is None else min(keys, max_context_len)
    plan = plan_mla(
        "mla_paged",
        **_sizes(q, cache, keys, d_v),
        requests=len(context_lens),
        max_query_len=max_query_len,
        page_size=cache.page_size if _in_rows(cache) else 1,
        aligned=_in_sixteens(cache),
    )
    into = _outputs(q, d_v)
    plan.run_paged(
        into,
        unit_stride(q),
        cache,
        unit_stride(query_start),
        unit_stride(context_lens),
        unit_stride(block_table),
        scale=scale,
    )
    return into[:2]


def mla_sparse(
    q: torch.Tensor,
    cache: PagedCache,
    slots: torch.Tensor,
    *,
    scale: float,
    d_v: int = 512,
    topk_length: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out = softmax(scale q kv^T) kv[:, :d_v] over each row's own list of slots.

    q: [T, H, d_c + d_r] float, any strides.
    cache: `latent_record`, width d_c + d_r.
    slots: [T, topk] int32, any order; negative or beyond the cache: skipped; twice: counted twice.
    scale: multiplies q kv^T.
    topk_length: [T] int32, only the first topk_length[t] slots of row t count; None: all.
    sink: [H] float, a logit without a value: out /= 1 + exp(sink - lse); lse is without it.

    Returns out [T, H, d_v] in q's dtype, lse [T, H] fp32 (natural log), max_logits [T, H] fp32
    (largest scaled score); a row without a valid slot has out 0, lse +inf, max_logits -inf.
    Source: DeepSeek-V3.2, arXiv 2512.02556; conventions of FlashMLA.
    Raises BadInput where shapes do not fit.
    """
    served_by = choose("mla_sparse", q, backend)
    _check_q("mla_sparse", q, cache, d_v)
    check_integers("mla_sparse", "slots", slots, 2)
    if len(slots) != len(q):
        raise BadInput(f"mla_sparse: slots is {shown(slots)}, want [{len(q)}, topk]")
    if topk_length is not None:
        check_integers("mla_sparse", "topk_length", topk_length, 1)
        if len(topk_length) != len(q):
            raise BadInput(f"mla_sparse: topk_length is {shown(topk_length)}, want [{len(q)}]")
    if sink is not None and sink.shape != q.shape[1:2]:
        raise BadInput(f"mla_sparse: sink is {shown(sink)}, want [{q.shape[1]}], one per head")
    if served_by == "reference":
        out, lse, max_logits = mla_sparse_reference(
            q, cache, slots, scale=scale, d_v=d_v, topk_length=topk_length, sink=sink
        )
        return out.to(q.dtype), lse, max_logits
    from sparkwell.ops.mla.plan import plan_mla

    sizes = _sizes(q, cache, slots.shape[1], d_v)
    plan = plan_mla("mla_sparse", **sizes, aligned=_in_sixteens(cache))
    into = _outputs(q, d_v)
    optional = {
        name: None if x is None else unit_stride(x)
        for name, x in (("topk_length", topk_length), ("sink", sink))
    }
    plan.run_sparse(into, unit_stride(q), cache, unit_stride(slots), scale=scale, **optional)
    return into


def _check_q(op: str, q: torch.Tensor, cache: PagedCache, d_v: int) -> None:
    width = cache.record.width
    if q.ndim != 3 or q.shape[2] != width or not q.is_floating_point():
        raise BadInput(
            f"{op}: q is {shown(q)}, want float [T, heads, {width}] for record {cache.record.name}"
        )
    if not 1 <= d_v <= width:
        raise BadInput(f"{op}: d_v is {d_v}, want 1..{width}, the leading part of the record")


def _sizes(q: torch.Tensor, cache: PagedCache, keys: int, d_v: int) -> dict[str, Any]:
    """What a plan needs to know."""
    sizes = {"rows": q.shape[0], "heads": q.shape[1], "keys": keys, "d_v": d_v}
    return sizes | {"record": cache.record, "query": q.dtype, "device": q.device}


def _outputs(q: torch.Tensor, d_v: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out, lse, max_logits, not yet written."""
    lse, largest = q.new_empty(2, *q.shape[:2], dtype=torch.float32)
    return q.new_empty(*q.shape[:2], d_v), lse, largest


def _in_sixteens(cache: PagedCache) -> bool:
    """Whether every record starts at a multiple of 16 bytes."""
    sizes = (cache.pages.data_ptr(), cache.pages.stride(0), cache.record.nbytes)
    return all(size % 16 == 0 for size in sizes)


def _in_rows(cache: PagedCache) -> bool:
    """Whether all pages are rows of one matrix, as copies of whole tiles need."""
    return cache.pages.stride(0) % cache.record.nbytes == 0 and cache.pages.data_ptr() % 16 == 0
