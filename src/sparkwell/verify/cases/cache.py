"""Cache writes and gathers: every record, bytes equal to the reference's, or to several ops'."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from sparkwell.formats.kv import Record, gqa_record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache import cache_write
from sparkwell.ops.device import as_target
from sparkwell.ops.norm import layer_norm, rms_norm
from sparkwell.ops.rope import rope, rope_frequencies
from sparkwell.verify.case import Case, Inputs, Maker

RECORDS: dict[str, Callable[[], Record]] = {
    "latent-fp32": lambda: latent_record("fp32", kv_lora_rank=40, rope_dim=8),
    "latent-bf16": lambda: latent_record("bf16"),
    "latent-fp8-pow2": lambda: latent_record("fp8"),
    "latent-fp8-fp32": lambda: latent_record("fp8", scale="fp32"),
    "latent-fp8-384": lambda: latent_record("fp8", kv_lora_rank=384, rope_dim=0),
    "latent-wide": lambda: latent_record("bf16", kv_lora_rank=1024),
    "index-fp32": lambda: index_key_record("fp32"),
    "index-fp8": lambda: index_key_record("fp8"),
    "index-fp8-fp32": lambda: index_key_record("fp8", scale="fp32", head_dim=64),
    "index-fp8-96": lambda: index_key_record("fp8", head_dim=96),
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


def _made(
    make: Maker,
    *,
    op: str,
    record: str,
    rows: int,
    page_size: int,
    pages: int,
    dtype: torch.dtype = torch.bfloat16,
    turned: int = 64,
    interleaved: bool = True,
) -> Inputs:
    """Rows that are normed and rotated on the way.  turned: dimensions that rotate."""
    cache = _cache(make, RECORDS[record](), pages, page_size)
    width = cache.record.width
    slots = make.permutation(cache.num_slots)[:rows]
    x = make.randn(rows, width, dtype=dtype)
    if make.device.type != "meta":
        slots[3] = -1
        x[0] *= 1e-3  # eps counts
        x[1] += 3.0  # a mean to take off
        x[4] = 0.0
    inv_freq, factor = rope_frequencies(turned, theta=1e4) if turned else (torch.ones(0), 1.0)
    inputs: Inputs = {
        "cache": cache,
        "slots": slots,
        "x": x,
        "weight": make.randn(width - turned if op == "latent_write" else width),
        "positions": make.randint(0, 5000, rows, dtype=torch.int64),
        "inv_freq": inv_freq.to(make.device),
        "eps": 1e-5,
        "attention_factor": 1.25 * factor,
        "interleaved": interleaved,
    }
    return inputs | ({"bias": make.randn(width)} if op == "index_key_write" else {})


def _apart(inputs: Inputs, backend: str) -> torch.Tensor:
    """The bytes that the ops leave one after the other."""
    x, weight, cache = inputs["x"], inputs["weight"], inputs["cache"]
    pages = torch.full_like(cache.pages, 0xA5)
    turn = {k: inputs[k] for k in ("attention_factor", "interleaved")}
    rotation = (inputs["positions"], inputs["inv_freq"])
    if "bias" in inputs:
        turned = 2 * len(inputs["inv_freq"])
        y = layer_norm(x, weight, inputs["bias"], eps=inputs["eps"], backend=backend)
        parts = [rope(y[:, :turned], *rotation, **turn, backend=backend), y[:, turned:]]
    else:
        rank = len(weight)
        parts = [rms_norm(x[:, :rank], weight, eps=inputs["eps"], backend=backend)]
        if len(inputs["inv_freq"]):
            parts.append(rope(x[:, rank:], *rotation, **turn, backend=backend))
    other = PagedCache(cache.record, cache.page_size, pages)
    cache_write(other, inputs["slots"], torch.cat(parts, 1), backend=backend)
    return pages


def _as_apart(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    """Bytes as the ops leave them; values near the reference's, whose sums differ in rounding."""
    with nullcontext() if got.is_cuda else as_target("sm_90"):
        wrong = (got != _apart(inputs, "kernel")).nonzero()
    assert not len(wrong), f"{len(wrong)} bytes differ, first at {wrong[0].tolist()}"
    cache, slots = inputs["cache"], inputs["slots"]
    slots = slots[slots >= 0]
    values = [
        PagedCache(cache.record, cache.page_size, pages.to(got.device)).read(slots)
        for pages in (got, want)
    ]
    fp8 = any(part.scale for part in cache.record.parts)
    limit = 2.0**-3 if fp8 else 2.0**-7 if inputs["x"].dtype != torch.float32 else 1e-4
    far = (values[0] - values[1]).abs() > limit * values[1].abs() + 1e-2 * limit
    assert not far.any(), f"{int(far.sum())} values are not the reference's"


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


def _made_case(op: str, name: str, size: str = "small", **sizes: Any) -> Case:
    shape = {"rows": 9, "page_size": 5, "pages": 4} | sizes
    make = partial(_made, op=op, **shape)
    return Case(op, name, make, size, check=_as_apart, mutates="cache")


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
    _made_case("latent_write", "fp32", record="latent-fp32", dtype=torch.float32, turned=8),
    _made_case("latent_write", "bf16", record="latent-bf16"),
    _made_case("latent_write", "halves", record="latent-bf16", interleaved=False),
    _made_case("latent_write", "fp8-pow2", record="latent-fp8-pow2"),
    _made_case("latent_write", "fp8-fp32", record="latent-fp8-fp32", dtype=torch.float16),
    _made_case("latent_write", "fp8-384", record="latent-fp8-384", turned=0, dtype=torch.float32),
    _made_case("index_key_write", "fp32", record="index-fp32", dtype=torch.float32, turned=6),
    _made_case("index_key_write", "fp8", record="index-fp8", interleaved=False),
    _made_case("index_key_write", "fp8-all", record="index-fp8-fp32", turned=64),
    _made_case("index_key_write", "fp8-96", record="index-fp8-96", turned=32),
    _made_case("index_key_write", "halves", record="index-fp32", turned=12, interleaved=False),
    *(
        _made_case(op, f"step-{record}", "model", record=record, rows=512, page_size=64, pages=64)
        for op, record in (
            ("latent_write", "latent-bf16"),
            ("latent_write", "latent-fp8-pow2"),
            ("latent_write", "latent-wide"),
            ("index_key_write", "index-fp8"),
        )
    ),
)
