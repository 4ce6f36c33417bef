"""Dense MLA over pages: ragged requests, several rows each, every record, missing pages."""

from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from sparkwell.formats.kv import latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """One call.  queries, contexts: rows and keys of each request."""

    queries: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: int = 16
    record: str = "bf16"
    query: str = "bf16"
    rank: int = 512
    rope: int = 64
    d_v: int = 512
    page_size: int = 7
    hint: bool = False


def _inputs(make: Maker, s: Shape) -> Inputs:
    record = latent_record(s.record, scale="fp32", kv_lora_rank=s.rank, rope_dim=s.rope)
    needed = [-(-n // s.page_size) for n in s.contexts]
    num_pages = sum(needed) + 2
    cache = PagedCache.allocate(record, num_pages, s.page_size, make.device)
    order = make.permutation(num_pages)
    # Entries past a request's last page name no page at all.
    table = make.tensor([[2**31 - 1] * (max(needed, default=0) + 1)] * len(needed), torch.int32)
    table = table.view(len(needed), max(needed, default=0) + 1)
    if make.device.type != "meta":
        cache.pages.fill_(0xFF)  # NaN in every type
        first = 0
        for i, (count, keys) in enumerate(zip(needed, s.contexts, strict=True)):
            pages = order[first : first + count]
            table[i, :count] = pages.int()
            first += count
            position = torch.arange(keys, device=make.device)
            slots = pages[position // s.page_size] * s.page_size + position % s.page_size
            for start in range(0, keys, 1 << 16):
                part = slots[start : start + (1 << 16)]
                cache.write(part, make.randn(len(part), record.width, scale=0.25))
    starts = list(accumulate(s.queries, initial=0))
    inputs: Inputs = {
        "q": make.randn(starts[-1], s.heads, record.width, dtype=DTYPES[s.query]),
        "cache": cache,
        "query_start": make.tensor(starts, torch.int32),
        "context_lens": make.tensor(list(s.contexts), torch.int32),
        "block_table": table,
        "scale": 0.0625,
        "d_v": s.d_v,
    }
    if s.hint:
        inputs |= {"max_query_len": max(s.queries), "max_context_len": max(s.contexts)}
    return inputs


def _case(name: str, s: Shape, size: str = "small") -> Case:
    exact = "fp32" in (s.query, s.record)
    limits = (("attention", "fp32" if exact else "bf16"), ("lse", "fp32"))
    return Case("mla_paged", name, partial(_inputs, s=s), size, limits)


def _model(requests: int, rows: int, keys: int, heads: int, record: str) -> Case:
    shape = Shape((rows,) * requests, (keys,) * requests, heads, record, page_size=64, hint=True)
    return _case(f"decode-{record}-b{requests}-q{rows}-s{keys}-h{heads}", shape, "model")


CASES: tuple[Case, ...] = (
    _case("decode", Shape((1, 1, 1), (40, 1, 23))),
    _case("ragged-rows", Shape((3, 0, 1, 2), (20, 5, 0, 2), heads=5)),
    _case("rows-before-the-context", Shape((4, 2), (2, 33), heads=3)),
    _case("hints", Shape((2, 2), (37, 64), heads=20, page_size=16, hint=True)),
    _case("whole-tiles", Shape((2, 1), (130, 140), heads=12, page_size=64, hint=True)),
    _case("few-pairs", Shape((2, 0, 1), (130, 3, 64), heads=7, page_size=64, hint=True)),
    _case("few-pairs-found", Shape((1, 3, 0), (65, 200, 5), heads=5, page_size=64)),
    _case("several-tiles", Shape((6,), (70,), heads=12, page_size=64, hint=True)),
    _case("packed-rows", Shape((3, 9, 0), (75, 70, 3), heads=12, page_size=64)),
    _case("wide-rows", Shape((3, 0, 1, 2), (150, 0, 64, 1), heads=40, page_size=64)),
    _case("large-pages", Shape((2, 1), (66, 140), heads=11, page_size=128, hint=True)),
    _case("fp8", Shape((1, 3), (33, 18), record="fp8")),
    _case("fp8-fp16-query", Shape((2,), (21,), record="fp8", query="fp16", heads=1)),
    _case("fp8-fp32-query", Shape((2,), (21,), record="fp8", query="fp32", heads=2)),
    _case("bf16-fp16-query", Shape((2,), (21,), query="fp16", heads=9)),
    _case("fp32", Shape((2, 1), (21, 40), record="fp32", query="fp32", heads=3)),
    _case("narrow", Shape((2, 1), (21, 4), record="bf16", rank=40, rope=8, d_v=33, page_size=1)),
    _case("no-requests", Shape((), ())),
    _case("many-heads", Shape((2, 0, 1, 1), (4500, 0, 4000, 75), heads=70), "model"),
    _case("many-heads-fp8", Shape((2, 0, 1, 1), (4500, 0, 4000, 75), 70, "fp8"), "model"),
    _case("some-heads", Shape((1, 2, 3), (11000, 64, 90), heads=20, page_size=16), "model"),
    *(_model(64, 1, 4096, heads, "bf16") for heads in (16, 64, 128)),
    _model(1, 1, 32768, 16, "bf16"),
    _model(16, 2, 4096, 16, "bf16"),
    _model(4, 128, 4096, 16, "bf16"),
    _model(64, 2, 4096, 16, "fp8"),
)
