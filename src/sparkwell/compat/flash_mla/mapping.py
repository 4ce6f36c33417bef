"""How FlashMLA's tensors become ours: caches to pages of records, requests to ragged rows."""

from functools import cache

import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import Record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.mla import mla_paged, mla_sparse
from sparkwell.ops.ragged import shown

_LATENT = 512  # values of a record that are the latent; those after them are the rotated key
_PLAIN = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_BYTES = (torch.uint8, torch.int8, torch.float8_e4m3fn)
_FOREIGN = {  # (head_dim, bytes a token) -> the layout
    (576, 352): "NVFP4 latent",
    (512, 584): "DeepSeek-V4",
    (512, 528): "DeepSeek-V4.1",
    (512, 288): "DeepSeek-V4.1 with FP4",
}


def holds_bytes(k_cache: torch.Tensor) -> bool:
    """Whether the cache is quantized: bytes, whose meaning their number tells."""
    return k_cache.dtype in _BYTES


def sparse_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    indices: torch.Tensor,
    topk_length: torch.Tensor | None,
    sink: torch.Tensor | None,
    *,
    scale: float,
    d_v: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of all requests side by side."""
    b, s_q, h_q, d = q.shape
    if indices.ndim != 3 or indices.shape[:2] != q.shape[:2]:
        raise BadInput(
            f"flash_mla_with_kvcache: indices is {shown(indices)}, want [{b}, {s_q}, topk]"
        )
    if topk_length is not None:
        topk_length = topk_length[:, None].expand(b, s_q).flatten().contiguous()
    out, lse, _ = mla_sparse(
        q.flatten(0, 1),
        as_cache(k_cache, d),
        indices.flatten(0, 1),
        scale=scale,
        d_v=d_v,
        topk_length=topk_length,
        sink=sink,
    )
    return out.unflatten(0, (b, s_q)), lse.unflatten(0, (b, s_q)).transpose(1, 2)


def dense_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    d_v: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request per key head.  Rows that all see the same keys (not causal) count as heads."""
    b, s_q, h_q, d = q.shape
    page, h_k = k_cache.shape[1:3]
    if h_q % h_k:
        raise BadInput(f"flash_mla_with_kvcache: {h_q} query heads over {h_k} key heads")
    if h_k == 1:
        pages = as_cache(k_cache, d)
    else:  # pages of one record; key head g of a block's token t is its record t * h_k + g
        pages = as_cache(_merged(k_cache), d)
        records = torch.arange(page * h_k, device=q.device).unflatten(0, (page, h_k)).T
        # In int64: a block that does not exist stays one in records.
        blocks = block_table.long()[:, None, :, None] * (page * h_k)
        block_table = (blocks + records[:, None]).flatten(2).flatten(0, 1)
        cache_seqlens = cache_seqlens[:, None].expand(b, h_k).flatten().contiguous()
    group = (b, h_k, s_q, h_q // h_k)
    rows, heads = group[2:] if causal else (1, s_q * group[3])
    starts = torch.arange(b * h_k + 1, device=q.device, dtype=torch.int32) * rows
    out, lse = mla_paged(
        q.unflatten(2, (h_k, -1)).transpose(1, 2).reshape(b * h_k * rows, heads, d),
        pages,
        starts,
        cache_seqlens,
        block_table,
        scale=scale,
        d_v=d_v,
    )
    out = out.reshape(*group, d_v).transpose(1, 2).flatten(2, 3)
    return out, lse.reshape(group).transpose(2, 3).flatten(1, 2)


def _merged(k_cache: torch.Tensor) -> torch.Tensor:
    """[num_blocks, page, h_k, d] -> [num_blocks * page * h_k, 1, 1, d], a view."""
    if not k_cache.is_contiguous():
        raise Unsupported(
            "flash_mla_with_kvcache",
            f"k_cache {shown(k_cache)} with strides {k_cache.stride()}",
            {"mla_paged": "several key heads are served from a contiguous cache only"},
            "pass a contiguous k_cache, or one key head per cache",
        )
    return k_cache.view(-1, 1, 1, k_cache.shape[3])


def as_cache(k_cache: torch.Tensor, d: int) -> PagedCache:
    """[num_blocks, page, 1, d or 656] -> the same memory as pages of latent records."""
    num_blocks, page, h_k, last = k_cache.shape
    record = _record(k_cache.dtype, last, d)
    if h_k != 1:
        raise BadInput(f"flash_mla: {h_k} key heads in {shown(k_cache)}, want 1")
    strides = k_cache.stride()
    if strides[3] != 1 or (page > 1 and strides[1] != last):
        raise BadInput(
            f"flash_mla: cache {shown(k_cache)} has strides {list(strides)}, want the tokens of a "
            "page side by side"
        )
    pages = k_cache.view(torch.uint8)
    return PagedCache(record, page, pages.view(num_blocks, page * record.nbytes))


@cache
def _record(dtype: torch.dtype, last: int, d: int) -> Record:
    """What a token's bytes mean, from the cache's type and last dimension."""
    plain = _PLAIN.get(dtype)
    if plain is not None and last == d >= _LATENT:
        return latent_record(plain, kv_lora_rank=_LATENT, rope_dim=d - _LATENT)
    if dtype in _BYTES and (d, last) == (576, 656):
        return latent_record("fp8", scale="fp32")  # read with whatever scale is stored
    layout = _FOREIGN.get((d, last), "unknown")
    raise Unsupported(
        "flash_mla",
        f"k_cache {dtype} [.., {last}] for head_dim {d}: layout {layout}",
        {
            "latent_bf16, latent_fp32": "want bfloat16 or float32 [.., d], d the query's, >= 512",
            "latent_fp8": "want 656 bytes a token, head_dim 576",
        },
        "write the cache in one of these layouts",
    )


def refuse_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    num_splits: None,
    extra: tuple[torch.Tensor | None, ...],
    batch_invariant: bool,
) -> None:
    """Raises for what no op here computes, and for tensors that are not four-dimensional."""
    refused = {}
    if any(tensor is not None for tensor in extra):
        refused["extra_k_cache"] = "no op reads two caches; only DeepSeek-V4 models have a second"
    if batch_invariant:
        refused["enable_batch_invariant"] = "keys are split over blocks by the size of the batch"
    if refused:
        do = "leave these arguments out"
        raise Unsupported("flash_mla_with_kvcache", f"{', '.join(refused)}", refused, do)
    if num_splits is not None or q.ndim != 4 or k_cache.ndim != 4:
        raise BadInput(
            f"flash_mla_with_kvcache: q is {shown(q)}, k_cache {shown(k_cache)}, num_splits "
            f"{num_splits}; want [b, s_q, h_q, d], [num_blocks, page, h_k, d] and None"
        )


def into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """`result`, copied into the caller's tensor where there is one."""
    return result if out is None else out.copy_(result)
