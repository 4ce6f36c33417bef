"""Paged caches as ops, in torch: write a step's rows, gather whole contexts."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.ragged import context_slots


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
