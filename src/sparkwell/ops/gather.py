"""cache_gather: the records of each request's context, one request after the other."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.kv import PagedCache
from sparkwell.ops.backend import choose

# ---------------------------------------------------------------- reference


def cache_gather_reference(
    cache: PagedCache, context_lens: torch.Tensor, block_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `cache_gather`: values in fp32, and where each request's rows start."""
    lens = context_lens.to(torch.int64)
    key_start = torch.zeros(len(lens) + 1, dtype=torch.int32, device=lens.device)
    key_start[1:] = lens.cumsum(0)
    request = torch.repeat_interleave(torch.arange(len(lens), device=lens.device), lens)
    position = torch.arange(len(request), device=lens.device) - key_start[request]
    # Only the entries that hold a context are read: beyond it the table may hold anything.
    pages = block_table[request, position // cache.page_size].to(torch.int64)
    return cache.read(pages * cache.page_size + position % cache.page_size), key_start


# ---------------------------------------------------------------- launch


def cache_gather(
    cache: PagedCache,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """values[key_start[i] + p] = unpack(cache[block_table[i, p // page], p % page])

    Args:
        cache: any record of `sparkwell.formats.kv`.
        context_lens: [B] int32, keys of each request.
        block_table: [B, P] integers; entries past a context are not read.

    Returns:
        values [S, width] fp32 with S = sum(context_lens), and key_start [B+1] int32.

    Raises:
        BadInput: the table is too narrow for a context, or names a page the cache has not.
    """
    choose("cache_gather", cache.pages, backend)
    longest = int(context_lens.max()) if len(context_lens) else 0
    if longest > block_table.shape[1] * cache.page_size:
        raise BadInput(
            f"cache_gather: a context has {longest} keys, the block table {block_table.shape[1]} "
            f"pages of {cache.page_size}; widen the table"
        )
    return cache_gather_reference(cache, context_lens, block_table)
