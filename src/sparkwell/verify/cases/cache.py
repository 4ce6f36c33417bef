"""Cache writes and gathers: every record, bytes equal to the reference's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sparkwell.formats.kv import Record, gqa_record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.verify.case import Case, Inputs, Maker

RECORDS: dict[str, Callable[[], Record]] = {
    "latent-fp32": lambda: latent_record("fp32", kv_lora_rank=40, rope_dim=8),
    "latent-bf16": lambda: latent_record("bf16"),
    "latent-fp8-pow2": lambda: latent_record("fp8"),
    "latent-fp8-fp32": lambda: latent_record("fp8", scale="fp32"),
    "index-fp32": lambda: index_key_record("fp32"),
    "index-fp8": lambda: index_key_record("fp8"),
    "index-fp8-fp32": lambda: index_key_record("fp8", scale="fp32", head_dim=64),
    "gqa-bf16": lambda: gqa_record(3, 80, "bf16"),
    "gqa-fp8": lambda: gqa_record(2, 96, "fp8"),
    "gqa-fp8-wide": lambda: gqa_record(1, 320, "fp8"),  # more values a scale than a warp holds
}


def _cache(make: Maker, record: Record, pages: int, page_size: int) -> PagedCache:
    cache = PagedCache.allocate(record, pages, page_size, make.device)
    if make.device.type != "meta":
        cache.pages.fill_(0xA5)  # what no write may touch
    return cache


def _write(make: Maker, *, record: str, rows: int, page_size: int, pages: int) -> Inputs:
    cache = _cache(make, RECORDS[record](), pages, page_size)
    slots = make.permutation(cache.num_slots)[:rows]
    values = make.randn(rows, cache.record.width)
    if make.device.type != "meta" and rows > 5:
        slots[3] = -1
        values[0] *= 1e-7  # below the floor of every scale
        values[1] *= 1e5
        values[2] = 0.0
        values[4, ::3] *= 1e-3  # subnormal codes
        values[5, 1] = float("inf")
        # With 448 in every group the scale is 1, and these lie halfway between two codes.
        values[6] = 448.0
        values[6, 1::4] = 1.0625  # to the even code below
        values[6, 3::4] = 1.1875  # to the even code above
        values[6, 2::4] = 3 * 2.0**-10
    return {"cache": cache, "slots": slots, "values": values}


def _same_bytes(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    wrong = (got != want.to(got.device)).nonzero()
    assert not len(wrong), f"cache_write: {len(wrong)} bytes differ, first at {wrong[0].tolist()}"


def _gather(make: Maker, *, record: str, lengths: tuple[int, ...], page_size: int) -> Inputs:
    needed = [-(-n // page_size) for n in lengths]
    cache = PagedCache.allocate(RECORDS[record](), sum(needed) + 1, page_size, make.device)
    if make.device.type != "meta":
        slots = torch.arange(cache.num_slots, device=make.device)
        cache.write(slots, make.randn(len(slots), cache.record.width))
    order, first = make.permutation(cache.num_pages), 0
    table = make.tensor([[-5] * (max(needed) + 1)] * len(lengths), torch.int32)
    for i, count in enumerate(needed):
        table[i, :count] = order[first : first + count].int()
        first += count
    lens = make.tensor(list(lengths), torch.int32)
    inputs: dict[str, Any] = {"cache": cache, "context_lens": lens, "block_table": table}
    return inputs | {"num_keys": sum(lengths)}


def _same_values(inputs: Inputs, got: Any, want: Any) -> None:
    for name, g, w in zip(("values", "key_start"), got, want, strict=True):
        w = w.to(g.device)
        assert g.dtype == w.dtype and torch.equal(g, w), f"cache_gather: {name} differ"


CASES: tuple[Case, ...] = (
    *(
        Case(
            "cache_write",
            record,
            partial(_write, record=record, rows=9, page_size=5, pages=4),
            check=_same_bytes,
            mutates="cache",
        )
        for record in RECORDS
    ),
    *(
        Case(
            "cache_gather",
            record,
            partial(_gather, record=record, lengths=(7, 0, 1, 10), page_size=5),
            check=_same_values,
        )
        for record in RECORDS
    ),
    *(
        Case(
            "cache_write",
            f"step-{record}",
            partial(_write, record=record, rows=512, page_size=64, pages=64),
            "model",
            check=_same_bytes,
            mutates="cache",
        )
        for record in ("latent-bf16", "latent-fp8-pow2", "index-fp8")
    ),
)
