"""The calls of DeepGEMM 2.8.1 (vLLM's copy) whose arguments differ from those of June 2026.

GEMMs take an `alpha` and an `epilogue`, which are refused.  Logits are always "compressed": row m
has max_seqlen_k columns, column j is key start[m] + j.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from sparkwell.compat.deep_gemm import gemm, logits
from sparkwell.errors import Unsupported

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


def _later(june: Callable[..., None], *more: str) -> Callable[..., None]:
    """June's function with the arguments that came after it, all of which must be None."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = inspect.signature(june).parameters.values()
    signature = inspect.Signature(
        [*known, *(inspect.Parameter(n, kind, default=None) for n in more)]
    )

    def call(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        for name in more:
            if given.pop(name, None) is not None:
                raise Unsupported(
                    june.__name__,
                    f"{name} given",
                    {"grouped_linear": f"has no {name}"},
                    f"leave {name} out and apply it to d",
                )
        june(**given)

    call.__name__, call.__doc__ = june.__name__, june.__doc__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


fp8_fp4_gemm_nt = fp8_gemm_nt = _later(gemm.fp8_fp4_gemm_nt, "alpha", "epilogue")
fp8_fp4_gemm_nn = fp8_gemm_nn = _later(gemm.fp8_fp4_gemm_nn, "alpha", "epilogue")
fp8_fp4_gemm_tn = fp8_gemm_tn = _later(gemm.fp8_fp4_gemm_tn, "alpha", "epilogue")
fp8_fp4_gemm_tt = fp8_gemm_tt = _later(gemm.fp8_fp4_gemm_tt, "alpha", "epilogue")
m_grouped_fp8_fp4_gemm_nt_contiguous = _later(gemm.m_grouped_fp8_fp4_gemm_nt_contiguous, "epilogue")
m_grouped_fp8_fp4_gemm_nn_contiguous = _later(gemm.m_grouped_fp8_fp4_gemm_nn_contiguous, "epilogue")
m_grouped_fp8_fp4_gemm_nt_masked = _later(gemm.m_grouped_fp8_fp4_gemm_nt_masked, "epilogue")
m_grouped_fp8_gemm_nt_contiguous = m_grouped_fp8_fp4_gemm_nt_contiguous
m_grouped_fp8_gemm_nn_contiguous = m_grouped_fp8_fp4_gemm_nn_contiguous
m_grouped_fp8_gemm_nt_masked = m_grouped_fp8_fp4_gemm_nt_masked
k_grouped_fp8_gemm_nt_contiguous = _later(gemm.k_grouped_fp8_gemm_nt_contiguous, "epilogue")
