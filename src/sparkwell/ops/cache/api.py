"""Public cache ops: shapes checked, backend chosen."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.backend import choose
from sparkwell.ops.cache.reference import (
    cache_gather_reference,
    cache_write_reference,
    index_key_write_reference,
    latent_write_reference,
)
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
    if choose("cache_write", cache.pages, backend) == "reference":
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
    served_by = choose("cache_gather", cache.pages, backend)
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


def latent_write(
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
    backend: str = "auto",
) -> None:
    """cache[slots[t]] = pack([rms_norm(x[t, :rank]), rope(x[t, rank:])]), in place (MLA's keys).

    cache: `latent_record` of rank and rope dimensions.
    slots: [T] int64; -1 skips the row (padding).
    x: [T, rank + rope_dim] fp32/bf16/fp16.
    weight: [rank], any float type.
    positions: [T] int64 (or int32).
    inv_freq: [rope_dim/2] fp32, from `rope_frequencies`.
    eps: added to the mean square.  attention_factor, interleaved: of the rotation.

    The same bytes as `rms_norm`, `rope` and `cache_write` one after the other: values round to x's
    type after the norm and after the rotation.
    Raises BadInput where shapes do not fit; the reference also where a slot is out of range (a
    kernel skips such a row).
    """
    served_by = choose("latent_write", cache.pages, backend)
    _check_rows("latent_write", cache, slots, x, positions)
    rank, rope_dim = len(weight), 2 * len(inv_freq)
    counts = [cache.record.field(part.field).count for part in cache.record.parts]
    if weight.ndim != 1 or inv_freq.ndim != 1 or counts != [n for n in (rank, rope_dim) if n]:
        raise BadInput(
            f"latent_write: weight is {shown(weight)} and inv_freq {shown(inv_freq)} for fields "
            f"of {counts} in {cache.record.name}, want [rank] and [rope_dim/2]"
        )
    if served_by == "reference":
        latent_write_reference(
            cache,
            slots,
            x,
            weight,
            positions,
            inv_freq,
            eps=eps,
            attention_factor=attention_factor,
            interleaved=interleaved,
        )
        return
    from sparkwell.ops.cache.kernels.fused import write_latents

    rotation = (positions, inv_freq, eps, attention_factor, interleaved)
    write_latents(cache, slots, x, weight, *rotation)


def index_key_write(
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
    backend: str = "auto",
) -> None:
    """cache[slots[t]] = pack(rope(layer_norm(x[t]))), in place (the indexer's keys).

    cache: `index_key_record` of width d.
    slots: [T] int64; -1 skips the row (padding).
    x: [T, d] fp32/bf16/fp16.
    weight, bias: [d], any float type.
    positions: [T] int64 (or int32).
    inv_freq: [r/2] fp32: the first r <= d dimensions turn, the others stay.
    eps: added to the variance.  attention_factor, interleaved: of the rotation.

    The same bytes as `layer_norm`, `rope` and `cache_write` one after the other: values round to
    x's type after the norm and after the rotation.
    Raises BadInput where shapes do not fit; the reference also where a slot is out of range (a
    kernel skips such a row).
    """
    served_by = choose("index_key_write", cache.pages, backend)
    _check_rows("index_key_write", cache, slots, x, positions)
    width = (cache.record.width,)
    if weight.shape != width or bias.shape != width or len(cache.record.parts) != 1:
        raise BadInput(
            f"index_key_write: weight is {shown(weight)}, bias {shown(bias)}, want {list(width)} "
            f"each, for a record of one part, {cache.record.name}"
        )
    if inv_freq.ndim != 1 or not 0 < 2 * len(inv_freq) <= width[0]:
        raise BadInput(
            f"index_key_write: inv_freq is {shown(inv_freq)}, want half of the dimensions that "
            f"turn, 1 to {width[0] // 2}"
        )
    if served_by == "reference":
        index_key_write_reference(
            cache,
            slots,
            x,
            weight,
            bias,
            positions,
            inv_freq,
            eps=eps,
            attention_factor=attention_factor,
            interleaved=interleaved,
        )
        return
    from sparkwell.ops.cache.kernels.fused import write_index_keys

    rotation = (positions, inv_freq, eps, attention_factor, interleaved)
    write_index_keys(cache, slots, x, weight, bias, *rotation)


def _check_rows(
    op: str, cache: PagedCache, slots: torch.Tensor, x: torch.Tensor, positions: torch.Tensor
) -> None:
    check_integers(op, "slots", slots, 1)
    check_integers(op, "positions", positions, 1)
    if x.shape != (len(slots), cache.record.width) or not x.is_floating_point():
        raise BadInput(
            f"{op}: x is {shown(x)}, want float [{len(slots)}, {cache.record.width}] for "
            f"{len(slots)} slots of {cache.record.name}"
        )
    if len(positions) != len(slots):
        raise BadInput(f"{op}: positions is {shown(positions)}, want one per row, {len(slots)}")
