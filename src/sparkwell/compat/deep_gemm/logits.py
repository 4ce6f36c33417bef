"""DeepGEMM's indexer logits over `index_logits` and `index_logits_paged`; its June 2026 names.

logits[m, n] = scale[n] * sum_h weights[m, h] * max(0, q[m, h] . k[n])
Wider than theirs: every GPU target, any head count, any page size, CPU tensors.
Refused, with the reason: FP4 operands (a query that comes with scales).
"""

from functools import cache

import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import Record, index_key_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.device import DEFAULT_SMS, device_of
from sparkwell.ops.indexer import index_logits, index_logits_paged
from sparkwell.ops.ragged import shown

Query = tuple[torch.Tensor, torch.Tensor | None]  # values, scales


def get_num_sms() -> int:
    """Multiprocessors of the current GPU; 132 without one."""
    return device_of(torch.device("cuda")).sms if torch.cuda.is_available() else DEFAULT_SMS


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor,
    block_kv: int,
    num_sms: int,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """A schedule of their shape, int32 [num_sms + 1, 2], all 0: nothing is scheduled ahead here."""
    return context_lens.new_zeros((num_sms + 1, 2), dtype=torch.int32)


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    """`fp8_fp4_mqa_logits` with an FP8 query and fp32 logits."""
    bounds = (cu_seq_len_k_start, cu_seq_len_k_end)
    return fp8_fp4_mqa_logits((q, None), kv, weights, *bounds, clean_logits, max_seqlen_k)


def fp8_fp4_mqa_logits(
    q: Query,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    logits_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits of row m for the keys start[m] <= n < end[m] of one tensor.

    q: ([M, H, D] e4m3, None).  kv: [N, D] e4m3, [N] fp32.  weights: [M, H] fp32 or bf16.
    cu_seq_len_k_start, cu_seq_len_k_end: [M] int32.
    clean_logits: -inf outside those keys; otherwise anything there.
    max_seqlen_k: 0: [M, N].  Else [M, max_seqlen_k], column j is key start[m] + j, not cleaned.
    """
    values = _fp8("fp8_fp4_mqa_logits", q)
    if max_seqlen_k and clean_logits:
        raise BadInput("fp8_fp4_mqa_logits: clean_logits with max_seqlen_k, want one of them")
    logits = index_logits(
        values,
        kv[0],
        weights.float(),
        cu_seq_len_k_start,
        cu_seq_len_k_end,
        key_scales=kv[1],
        width=max_seqlen_k or None,
    )
    return logits.to(logits_dtype)


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """`fp8_fp4_paged_mqa_logits` with an FP8 query and fp32 logits."""
    batch = (context_lens, block_table, schedule_meta, max_context_len, clean_logits)
    return fp8_fp4_paged_mqa_logits((q, None), kv_cache, weights, *batch, indices=indices)


def fp8_fp4_paged_mqa_logits(
    q: Query,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    logits_dtype: torch.dtype = torch.float32,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of row (b, j) for the first context_lens[b, j] keys of request b.

    q: ([B, next_n, H, D] e4m3, None).  kv_cache: [num_blocks, page, 1, D + 4] uint8, a block its
    tokens' values, then their fp32 scales; blocks at any distance.  weights: [B * next_n, H].
    context_lens: [B, next_n] int32.  block_table: [B, P] int32.
    schedule_meta, indices: not looked at; they only order the work.
    clean_logits: False; columns from context_lens on hold anything.

    Returns [B * next_n, max_context_len].
    """
    values = _fp8("fp8_fp4_paged_mqa_logits", q)
    if clean_logits:
        raise BadInput("fp8_fp4_paged_mqa_logits: clean_logits with 2-D context_lens, want False")
    if values.ndim != 4 or context_lens.shape != values.shape[:2]:
        raise BadInput(
            f"fp8_fp4_paged_mqa_logits: q is {shown(values)}, context_lens {shown(context_lens)}, "
            "want [B, next_n, H, D] and [B, next_n]"
        )
    logits = index_logits_paged(
        values,
        weights.float(),
        _cache(kv_cache, values.shape[3]),
        context_lens,
        block_table,
        max_context_len=max_context_len,
    )
    return logits.to(logits_dtype)


def _fp8(op: str, q: Query) -> torch.Tensor:
    """The query's values.  Raises Unsupported for FP4, which comes with scales."""
    values, scales = q
    if scales is not None:
        reason = "no kernel here multiplies FP4 operands"
        raise Unsupported(
            op, f"q {shown(values)} with scales", {"FP4": reason}, "quantize q to e4m3, scales None"
        )
    return values


@cache
def _record(head_dim: int) -> Record:
    """A token's bytes; read with whatever scale is stored."""
    return index_key_record("fp8", scale="fp32", head_dim=head_dim)


def _cache(kv_cache: torch.Tensor, head_dim: int) -> PagedCache:
    """[num_blocks, page, 1, head_dim + 4] -> the same memory as pages of index keys."""
    record = _record(head_dim)
    if kv_cache.ndim != 4 or kv_cache.shape[2:] != (1, record.nbytes):
        raise BadInput(
            f"deep_gemm: kv_cache is {shown(kv_cache)}, want [num_blocks, page, 1, {record.nbytes}]"
        )
    num_blocks, page = kv_cache.shape[:2]
    if kv_cache.stride(3) != 1 or (page > 1 and kv_cache.stride(1) != record.nbytes):
        raise BadInput(
            f"deep_gemm: kv_cache has strides {list(kv_cache.stride())}, want whole blocks"
        )
    pages = kv_cache.view(torch.uint8).view(num_blocks, page * record.nbytes)
    return PagedCache(record, page, pages)
