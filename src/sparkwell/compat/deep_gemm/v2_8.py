"""The calls of DeepGEMM 2.8.1 (vLLM's copy) whose arguments differ from those of June 2026.

Logits are always "compressed": row m has max_seqlen_k columns, column j is key start[m] + j.
"""

import torch

from sparkwell.compat.deep_gemm import logits

get_num_sms = logits.get_num_sms
get_paged_mqa_logits_metadata = logits.get_paged_mqa_logits_metadata


def get_mqa_logits_metadata(
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    num_kv_tokens: int,
    num_heads: int,
) -> torch.Tensor:
    """An opaque schedule, empty: nothing is scheduled ahead here."""
    return cu_seq_len_k_start.new_empty(0, dtype=torch.int32)


def fp8_fp4_mqa_logits(
    q: logits.Query,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    max_seqlen_k: int,
    schedule_meta: torch.Tensor | None = None,
) -> torch.Tensor:
    """June's function, compressed and not cleaned; logits in the type of `weights`."""
    return logits.fp8_fp4_mqa_logits(
        q,
        kv,
        weights,
        cu_seq_len_k_start,
        cu_seq_len_k_end,
        clean_logits=False,
        max_seqlen_k=max_seqlen_k,
        logits_dtype=weights.dtype,
    )


def fp8_fp4_paged_mqa_logits(
    q: logits.Query,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """June's function; logits in the type of `weights`."""
    return logits.fp8_fp4_paged_mqa_logits(
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        schedule_meta,
        max_context_len,
        logits_dtype=weights.dtype,
    )
