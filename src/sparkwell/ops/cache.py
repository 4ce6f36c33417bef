"""Paged caches as ops: write a step's rows, gather whole contexts."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.ragged import check_integers, context_slots

# ---------------------------------------------------------------- reference


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


# ---------------------------------------------------------------- launch


def cache_write(
    cache: PagedCache, slots: torch.Tensor, values: torch.Tensor, *, backend: str = "auto"
) -> None:
    """cache[slots[t]] = pack(values[t]), in place.

    cache: any record of `sparkwell.formats.kv`.
    slots: [T] int64; -1 skips the row (padding).
    values: [T, width] float, what the record holds for one token.

    Raises BadInput, and writes nothing, where shapes do not fit or a slot is out of range.
    """
    choose("cache_write", cache.pages, backend)
    cache_write_reference(cache, slots, values)


def cache_gather(
    cache: PagedCache,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """All requests' contexts, one after the other: values[key_start[i] + p] = position p of i.

    context_lens: [B] int32, keys of each request.
    block_table: [B, P] int32, physical page of each logical page; anything past the last one.

    Returns values fp32 [S, width], S = sum of context_lens, and key_start int32 [B+1].
    Raises BadInput where shapes do not fit, or a table is too short or names an absent page.
    """
    choose("cache_gather", cache.pages, backend)
    check_integers("cache_gather", "context_lens", context_lens, 1)
    check_integers("cache_gather", "block_table", block_table, 2)
    if len(block_table) != len(context_lens):
        raise BadInput(
            f"cache_gather: block_table is {list(block_table.shape)} for {len(context_lens)} "
            "context_lens, want one row per request"
        )
    return cache_gather_reference(cache, context_lens, block_table)
