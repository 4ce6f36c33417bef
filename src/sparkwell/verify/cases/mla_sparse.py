"""Sparse MLA: every record, ragged lists, sinks, invalid and repeated slots, odd sizes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sparkwell.formats.kv import latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.launch import interpreting, recording
from sparkwell.ops.mla import mla_sparse
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """One call: sizes, dtypes, and which optional arguments come with it."""

    rows: int = 2
    heads: int = 16
    topk: int = 40
    record: str = "fp8"
    query: str = "bf16"
    scale: str = "fp32"  # how the FP8 writer rounds its scales
    rank: int = 512
    rope: int = 64
    d_v: int = 512
    page_size: int = 5
    pages: int = 20
    gap: int = 0  # bytes between pages
    sink: bool = False
    lengths: bool = False
    values: float = 0.25  # size of the cached values
    strided: bool = False
    growing: bool = False  # later slots hold larger values: FP8 scales climb from tile to tile
    sharp: float = 1.0  # size of the queries: large ones show what rounding them would do


def _cache(make: Maker, s: Shape) -> PagedCache:
    record = latent_record(s.record, scale=s.scale, kv_lora_rank=s.rank, rope_dim=s.rope)
    size = record.page_nbytes(s.page_size)
    pages = torch.zeros(s.pages, size + s.gap, dtype=torch.uint8, device=make.device)
    cache = PagedCache(record, s.page_size, pages[:, :size])
    if make.device.type != "meta":
        step = 1 << 16
        for start in range(0, cache.num_slots, step):
            count = min(step, cache.num_slots - start)
            slots = torch.arange(start, start + count, device=make.device)
            values = make.randn(count, record.width, scale=s.values)
            if s.growing:
                values = values * torch.exp2(6.0 * slots / cache.num_slots - 6.0)[:, None]
            cache.write(slots, values)
    return cache


def _inputs(make: Maker, s: Shape) -> Inputs:
    cache = _cache(make, s)
    q = make.randn(s.rows, s.heads, record_width(s), dtype=DTYPES[s.query], scale=s.sharp)
    if s.strided:
        q = q.transpose(0, 1).contiguous().transpose(0, 1)
    # From below zero to past the end, so some are invalid; few pages, so some come twice.
    spare = max(2, cache.num_slots // 8) if s.topk < cache.num_slots * 8 else 0
    slots = make.randint(-spare, cache.num_slots + spare, s.rows, s.topk)
    if s.growing:
        slots = slots.sort(-1).values
    if s.rows > 1 and make.device.type != "meta":
        slots[1] = -1  # a row without a key
        if s.rows > 2:
            slots[2, 1:] = cache.num_slots
    inputs: Inputs = {"q": q, "cache": cache, "slots": slots, "scale": 0.0625, "d_v": s.d_v}
    if s.sink:
        sink = make.randn(s.heads)
        if make.device.type != "meta":
            sink[0] = -float("inf")
        inputs["sink"] = sink
    if s.lengths:
        inputs["topk_length"] = make.randint(-1, s.topk + 3, s.rows)
    return inputs


def record_width(s: Shape) -> int:
    """Values of a record."""
    return s.rank + s.rope


def check(inputs: Inputs, got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    """out, lse and max_logits, each as close as the arithmetic of the row that serves."""
    if _rounds(inputs):
        want = _on_rounded(inputs)
    exact = torch.float32 in (inputs["q"].dtype, inputs["cache"].record.fields[0].dtype)
    limits = (("attention", "fp32" if exact else "bf16"), ("lse", "fp32"), ("lse", "fp32"))
    for name, g, w, limit in zip(("out", "lse", "max_logits"), got, want, limits, strict=True):
        assert_matches(g, w.to(g.device), *limit, label=f"mla_sparse {name}")


def _rounds(inputs: Inputs) -> bool:
    """Whether FP8 latents become BF16, as `ops/mla/kernels/records.py` has it."""
    fp8 = inputs["cache"].record.fields[0].dtype == torch.float8_e4m3fn
    if interpreting() or inputs["q"].device.type != "cuda" or not fp8:
        return False
    with recording() as launches:
        mla_sparse(**inputs, backend="kernel")
    return any(x.choice.schedule.algorithm in ("gathered", "turned") for x in launches[:1])


def _on_rounded(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The reference over a cache whose latents are BF16."""
    cache = inputs["cache"]
    latent, width = cache.record.fields[0].count, cache.record.width
    record = latent_record("bf16", kv_lora_rank=latent, rope_dim=width - latent)
    twin = PagedCache.allocate(record, cache.num_pages, cache.page_size, cache.pages.device)
    for slots in torch.arange(cache.num_slots, device=cache.pages.device).split(1 << 16):
        twin.write(slots, cache.read(slots))
    return mla_sparse(**{**inputs, "cache": twin}, backend="reference")


def _case(name: str, s: Shape, size: str = "small") -> Case:
    return Case("mla_sparse", name, partial(_inputs, s=s), size, check=check)


def _many(record: str, name: str, rows: int, heads: int, topk: int, **more: Any) -> Case:
    shape = Shape(rows, heads, topk, record, pages=300, **more)
    return _case(f"{record}-many-heads{name}", shape, "model")


def _model(rows: int, heads: int, record: str) -> Shape:
    return Shape(rows, heads, 2048, record, page_size=64, pages=1024)


CASES: tuple[Case, ...] = (
    _case("fp8", Shape(rows=4)),
    _case("fp8-sink-lengths", Shape(rows=5, heads=17, topk=75, sink=True, lengths=True)),
    _case("fp8-one-head-pow2", Shape(heads=1, topk=33, scale="pow2", page_size=64, pages=3)),
    _case("fp8-strided-gap", Shape(rows=3, heads=20, topk=37, strided=True, gap=48)),
    _case("fp8-growing", Shape(rows=1, topk=96, growing=True)),
    _case(
        "bf16-sharp",
        Shape(1, record="bf16", query="fp16", rank=256, d_v=256, sharp=60.0, values=0.1),
    ),
    _case("fp8-tiny-values", Shape(rows=3, values=1e-6)),
    _case("fp8-large-values", Shape(rows=3, values=3e4)),
    _case("fp8-fp16-query", Shape(rows=3, query="fp16", topk=17)),
    _case("fp8-fp32-query", Shape(rows=3, query="fp32", heads=5, sink=True)),
    _case("fp8-narrow", Shape(rows=3, rank=128, rope=32, d_v=128, lengths=True)),
    _case("fp8-odd-width", Shape(rows=3, rank=384, rope=6, d_v=384, heads=3)),
    _case("bf16", Shape(rows=4, record="bf16", heads=9, sink=True)),
    _case("bf16-fp16-query", Shape(rows=3, record="bf16", query="fp16", lengths=True)),
    _case("bf16-whole-width", Shape(rows=3, record="bf16", d_v=576, heads=4)),
    _case("bf16-no-rope", Shape(rows=3, record="bf16", rope=0, d_v=100)),
    _case("fp32", Shape(rows=3, record="fp32", query="fp32", heads=3, topk=50, sink=True)),
    _case("fp32-bf16-query", Shape(rows=3, record="fp32", rank=48, rope=10, d_v=31)),
    _case("no-slots", Shape(rows=2, topk=0)),
    _case("no-rows", Shape(rows=0)),
    *(
        _many(record, "", 25, 70, 750, sink=True, lengths=True, gap=48)
        for record in ("fp8", "bf16")
    ),
    _many("bf16", "-strided", 60, 20, 900, strided=True),
    # So many rows that none is shared by blocks.
    _many("fp8", "-sink-rows", 140, 66, 200, sink=True, lengths=True),
    _many("bf16", "-sink-rows", 140, 20, 200, sink=True, lengths=True),
    _many("fp8", "-few-sink-rows", 140, 5, 200, sink=True, lengths=True),
    _many("fp8", "-growing", 8, 128, 1200, growing=True),
    _many("fp8", "-tiny-values", 10, 128, 900, values=1e-6),
    _many("fp8", "-sharp", 10, 128, 900, sharp=60.0, values=0.1),
    *(
        _case(f"decode-{record}-b{rows}-h{heads}", _model(rows, heads, record), "model")
        for record in ("fp8", "bf16")
        for rows, heads in ((1, 16), (64, 8), (64, 16), (64, 32), (64, 64), (64, 128))
    ),
    *(_case(f"prefill-bf16-h{h}", _model(512, h, "bf16"), "model") for h in (16, 64, 128)),
)
