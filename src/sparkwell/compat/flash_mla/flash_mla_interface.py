"""FlashMLA's functions over `mla_paged`, `mla_sparse` and `attention_prefill`: use as `flash_mla`.

The signatures are those of FlashMLA's September 2026 interface; calls written for an older one fit.
Wider than theirs: every GPU target, head counts from 1, any top-k, any page size, CPU tensors.
Refused, with the reason: cache layouts of other models (DeepSeek-V4, NVFP4), a second cache,
batch-invariant decoding, gradients.  Checks raise BadInput or Unsupported, not AssertionError.
"""

from dataclasses import dataclass

import torch

from sparkwell.compat.flash_mla.mapping import (
    as_cache,
    dense_decode,
    holds_bytes,
    into,
    refuse_decode,
    sparse_decode,
)
from sparkwell.errors import BadInput, Unsupported
from sparkwell.ops.attention import attention_prefill
from sparkwell.ops.mla import mla_sparse
from sparkwell.ops.ragged import shown


@dataclass
class FlashMLASchedMeta:
    """What FlashMLA keeps between decode calls.  Nothing is scheduled ahead here: it only checks,
    as theirs does, that the calls it is passed to have one shape."""

    @dataclass
    class Config:
        """What must not change from one call to the next."""

        b: int
        s_q: int
        h_q: int
        page_block_size: int
        h_k: int
        causal: bool
        is_fp8_kvcache: bool
        topk: int | None
        extra_page_block_size: int | None
        extra_topk: int | None
        enable_batch_invariant: bool

    have_initialized: bool = False
    config: Config | None = None
    tile_scheduler_metadata: torch.Tensor | None = None
    num_splits: torch.Tensor | None = None

    def agree(self, config: Config) -> None:
        """Keeps the first call's shape.  Raises BadInput where a later call's differs."""
        if not self.have_initialized:
            self.have_initialized, self.config = True, config
        if self.config != config:
            raise BadInput(
                f"flash_mla_with_kvcache: this call is {config}, the first one with this metadata "
                f"was {self.config}; call get_mla_metadata() once per shape"
            )


def get_mla_metadata(*args, **kwargs) -> tuple[FlashMLASchedMeta, None]:  # type: ignore[no-untyped-def]
    """An empty FlashMLASchedMeta, and None; arguments are ignored, as FlashMLA ignores them."""
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    enable_batch_invariant: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode: `mla_sparse` where `indices` is given, else `mla_paged`.

    q: [b, s_q, h_q, d] float, any strides.  k_cache: [num_blocks, page, h_k, d] bf16 or fp32, or
    [num_blocks, page, 1, 656] bytes; tokens of a page contiguous, pages at any distance.
    block_table, cache_seqlens: [b, P], [b] int32, dense only; h_k divides h_q.
    softmax_scale: default d^-0.5, seldom the model's.  causal: dense only, bottom-right aligned.
    indices: [b, s_q, topk] int32 slots; those outside the cache are skipped.
    attn_sink: [h_q] fp32; topk_length: [b] int32; both sparse only.  out: written where given.
    num_splits, extra_k_cache, extra_indices_in_kvcache, extra_topk_length: None;
    enable_batch_invariant: False; is_fp8_kvcache: what k_cache is, checked.

    Returns out [b, s_q, h_q, head_dim_v] in q's dtype, lse [b, h_q, s_q] fp32, natural log, without
    the sink; a row without keys has out 0 and lse +inf.
    """
    extra = (extra_k_cache, extra_indices_in_kvcache, extra_topk_length)
    refuse_decode(q, k_cache, num_splits, extra, enable_batch_invariant)
    if is_fp8_kvcache != holds_bytes(k_cache):
        raise BadInput(f"is_fp8_kvcache is {is_fp8_kvcache}, but k_cache is {shown(k_cache)}")
    (b, s_q, h_q, d), topk = q.shape, None if indices is None else indices.shape[-1]
    fixed = (k_cache.shape[1], k_cache.shape[2], causal, is_fp8_kvcache, topk)
    tile_scheduler_metadata.agree(
        FlashMLASchedMeta.Config(b, s_q, h_q, *fixed, None, None, enable_batch_invariant)
    )
    scale = d**-0.5 if softmax_scale is None else softmax_scale
    if indices is not None:
        if causal:
            raise BadInput("flash_mla_with_kvcache: causal is True with indices, want False")
        result, lse = sparse_decode(
            q, k_cache, indices, topk_length, attn_sink, scale=scale, d_v=head_dim_v
        )
    else:
        if block_table is None or cache_seqlens is None:
            raise BadInput(
                "flash_mla_with_kvcache: without indices, want block_table and cache_seqlens"
            )
        if attn_sink is not None or topk_length is not None:
            raise BadInput(
                "flash_mla_with_kvcache: attn_sink and topk_length need indices; leave them out"
            )
        result, lse = dense_decode(
            q, k_cache, block_table, cache_seqlens, causal=causal, scale=scale, d_v=head_dim_v
        )
    return into(out, result), lse


def flash_mla_sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prefill: `mla_sparse` over rows of one tensor.

    q: [s_q, h_q, d] float.  kv: [s_kv, 1, d] bf16 or fp32, rows at any distance.
    indices: [s_q, 1, topk] int32 rows of kv; those outside it are skipped.
    attn_sink: [h_q] fp32; topk_length: [s_q] int32.  out: written where given.

    Returns out [s_q, h_q, d_v] in q's dtype, max_logits [s_q, h_q], lse [s_q, h_q], both fp32, the
    latter in natural log, without the sink; a row without keys has 0, -inf and +inf.
    """
    if kv.ndim != 3 or kv.shape[1] != 1 or indices.ndim != 3 or indices.shape[1] != 1:
        raise BadInput(
            f"flash_mla_sparse_fwd: kv is {shown(kv)}, indices {shown(indices)}, want [s_kv, 1, d] "
            "and [s_q, 1, topk]"
        )
    result, lse, max_logits = mla_sparse(
        q,
        as_cache(kv[:, None], kv.shape[2]),  # every row a page of one token
        indices[:, 0],
        scale=sm_scale,
        d_v=d_v,
        topk_length=topk_length,
        sink=attn_sink,
    )
    return into(out, result), max_logits, lse


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_prefill`, forward only: out [T, Hq, dv], lse [T, Hq].  dropout_p must be 0."""
    if any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled():
        reason = "attention here has a forward pass only"
        raise Unsupported(
            "flash_attn_varlen_func", "gradients", {"backward": reason}, "use no_grad"
        )
    if dropout_p != 0.0:
        raise BadInput(f"flash_attn_varlen_func: dropout_p is {dropout_p}, want 0")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return attention_prefill(q, k, v, cu_seqlens_qo, cu_seqlens_kv, scale=scale, causal=causal)


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` on qkv [T, H, 2 head_dim_qk + dv]."""
    q, k, v = qkv.tensor_split((head_dim_qk, 2 * head_dim_qk), dim=-1)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    return flash_attn_varlen_func(q, k, v, *lengths, dropout_p, softmax_scale, causal)


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` on kv [S, Hk, head_dim_qk + dv]."""
    k, v = kv.tensor_split((head_dim_qk,), dim=-1)
    lengths = (cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv)
    return flash_attn_varlen_func(q, k, v, *lengths, dropout_p, softmax_scale, causal)
