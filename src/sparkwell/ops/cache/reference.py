"""Paged caches as ops, in torch: write a step's rows, gather whole contexts."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.norm import layer_norm_reference, rms_norm_reference
from sparkwell.ops.ragged import context_slots
from sparkwell.ops.rope import rope_reference


def cache_write_reference(cache: PagedCache, slots: torch.Tensor, values: torch.Tensor) -> None:
    """The meaning of `cache_write`: pack each row, store its bytes in its slot."""
    cache.write(slots, values)


def cache_gather_reference(
    cache: PagedCache, context_lens: torch.Tensor, block_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `cache_gather`.  [B], [B, P] -> fp32 [S, width], int32 [B+1]"""
    lengths = context_lens.tolist()
    if min(lengths, default=0) < 0:
        raise BadInput(f"cache_gather: context_lens is {lengths}, want no length below 0")
    slots = [
        context_slots("cache_gather", cache, block_table, i, 0, n) for i, n in enumerate(lengths)
    ]
    empty = torch.zeros(0, dtype=torch.int64, device=block_table.device)
    key_start = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=context_lens.device)
    key_start[1:] = context_lens.cumsum(0)
    return cache.read(torch.cat([empty, *slots])), key_start


def latent_write_reference(
    cache: PagedCache,
    slots: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    eps: float,
    attention_factor: float = 1.0,
    interleaved: bool,
) -> None:
    """The meaning of `latent_write`: what rms_norm and rope return, written by cache_write."""
    rank = len(weight)
    latent = rms_norm_reference(x[:, :rank], weight, eps=eps)
    key = rope_reference(
        x[:, rank:],
        positions,
        inv_freq,
        attention_factor=attention_factor,
        interleaved=interleaved,
    )
    cache_write_reference(cache, slots, torch.cat([latent, key], 1).to(x.dtype))


def index_key_write_reference(
    cache: PagedCache,
    slots: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    eps: float,
    attention_factor: float = 1.0,
    interleaved: bool,
) -> None:
    """The meaning of `index_key_write`: what layer_norm and rope return, by cache_write."""
    turned = 2 * len(inv_freq)
    key = layer_norm_reference(x, weight, bias, eps=eps).to(x.dtype)
    head = rope_reference(
        key[:, :turned],
        positions,
        inv_freq,
        attention_factor=attention_factor,
        interleaved=interleaved,
    )
    cache_write_reference(cache, slots, torch.cat([head.to(x.dtype), key[:, turned:]], 1))
