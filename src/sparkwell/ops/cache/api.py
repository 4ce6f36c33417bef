"""Public cache ops: shapes checked, backend chosen."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.cache.reference import cache_gather_reference, cache_write_reference
from sparkwell.ops.ragged import check_integers, shown


def cache_write(
    cache: PagedCache, slots: torch.Tensor, values: torch.Tensor, *, backend: str = "auto"
) -> None:
    """cache[slots[t]] = pack(values[t]), in place.

    cache: any record of `sparkwell.formats.kv`.
    slots: [T] int64; -1 skips the row (padding).
    values: [T, width] float, what the record holds for one token.

    Raises BadInput, and writes nothing, where shapes do not fit; the reference also where a slot is
    out of range (a kernel skips such a row).
    """
    if choose("cache_write", cache.pages, backend, kernel=True) == "reference":
        cache_write_reference(cache, slots, values)
        return
    check_integers("cache_write", "slots", slots, 1)
    width = cache.record.width
    if values.shape != (len(slots), width) or not values.is_floating_point():
        raise BadInput(
            f"cache_write: values is {shown(values)}, want float [{len(slots)}, {width}] for "
            f"{len(slots)} slots of {cache.record.name}"
        )
    from sparkwell.ops.cache.kernel import write_rows

    write_rows(cache, slots, values)


def cache_gather(
    cache: PagedCache,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    num_keys: int | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """All requests' contexts, one after the other: values[key_start[i] + p] = position p of i.

    context_lens: [B] int32, keys of each request.
    block_table: [B, P] int32, physical page of each logical page; anything past the last one.

    num_keys: the sum of context_lens, if the host knows it; None: a kernel waits for the device.

    Returns values fp32 [S, width], S = sum of context_lens, and key_start int32 [B+1].
    Raises BadInput where shapes do not fit; the reference also where a table is too short or names
    an absent page (a kernel gathers zeros from there).
    """
    served_by = choose("cache_gather", cache.pages, backend, kernel=True)
    check_integers("cache_gather", "context_lens", context_lens, 1)
    check_integers("cache_gather", "block_table", block_table, 2)
    if len(block_table) != len(context_lens):
        raise BadInput(
            f"cache_gather: block_table is {list(block_table.shape)} for {len(context_lens)} "
            "context_lens, want one row per request"
        )
    if served_by == "reference":
        return cache_gather_reference(cache, context_lens, block_table)
    from sparkwell.ops.cache.kernel import gather_rows

    return gather_rows(cache, context_lens, block_table, num_keys)
