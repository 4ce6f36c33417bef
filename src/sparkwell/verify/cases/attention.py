"""Attention: ragged prefill and paged caches; hostile small batches, shapes of published models."""

from collections.abc import Sequence
from functools import partial

import torch

from sparkwell.formats.kv import gqa_record
from sparkwell.formats.paged import PagedCache
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GARBAGE = 2147480000  # what unused table entries hold
COUNTS = (3, 0, 21, 1, 2, 4)
LENGTHS = (3, 4, 70, 37, 0, 2)  # the last two: rows before position 0


def _starts(make: Maker, counts: Sequence[int]) -> torch.Tensor:
    return make.tensor([0, *torch.tensor(list(counts)).cumsum(0).tolist()], torch.int32)


def _prefill(
    make: Maker,
    *,
    heads: tuple[int, int],
    widths: tuple[int, int],
    dtype: str,
    counts: Sequence[int] = COUNTS,
    lengths: Sequence[int] = LENGTHS,
    causal: bool = True,
    window: int | None = None,
    sink: bool = False,
    sign: float = 1.0,
) -> Inputs:
    rows, keys, kind = sum(counts), sum(lengths), DTYPES[dtype]
    return {
        "q": make.randn(rows, heads[0], widths[0], dtype=kind),
        "k": make.randn(keys, heads[1], widths[0], dtype=kind),
        "v": make.randn(keys, heads[1], widths[1], dtype=kind),
        "query_start": _starts(make, counts),
        "key_start": _starts(make, lengths),
        "scale": sign * 1.3 * widths[0] ** -0.5,
        "causal": causal,
        "window": window,
        "sink": make.randn(heads[0]) if sink else None,
    }


def _paged(
    make: Maker,
    *,
    heads: tuple[int, int],
    width: int,
    dtype: str,
    stored: str,
    page_size: int,
    counts: Sequence[int] = COUNTS,
    lengths: Sequence[int] = LENGTHS,
    window: int | None = None,
    sink: bool = False,
    hints: bool = False,
) -> Inputs:
    """Scattered pages; where hostile, every byte that is not written reads as NaN."""
    record = gqa_record(heads[1], width, stored)
    need = [-(-n // page_size) for n in lengths]
    nbytes, total = record.page_nbytes(page_size), sum(need) + 2
    fill, gap = (255, 64) if make.hostile else (0, 0)
    pages = torch.full((total, nbytes + gap), fill, dtype=torch.uint8, device=make.device)
    cache = PagedCache(record, page_size, pages[:, :nbytes])
    columns = max(need) + 1
    table = torch.full((len(need), columns), GARBAGE, dtype=torch.int32, device=make.device)
    if make.device.type != "meta":
        order = make.permutation(total).int()
        for i, count in enumerate(need):
            first = sum(need[:i])
            table[i, :count] = order[first : first + count]
            position = torch.arange(lengths[i], device=make.device)
            slots = table[i].long()[position // page_size] * page_size + position % page_size
            cache.write(slots, make.randn(lengths[i], record.width))
    bounds = {"max_query_len": max(counts), "max_context_len": max(lengths)} if hints else {}
    return {
        "q": make.randn(sum(counts), heads[0], width, dtype=DTYPES[dtype]),
        "cache": cache,
        "query_start": _starts(make, counts),
        "context_lens": make.tensor(list(lengths), torch.int32),
        "block_table": table,
        "num_kv_heads": heads[1],
        "scale": 1.3 * width**-0.5,
        "window": window,
        "sink": make.randn(heads[0]) if sink else None,
        **bounds,
    }


def _case(op: str, name: str, size: str = "small", **options: object) -> Case:
    make = partial(_prefill if op == "attention_prefill" else _paged, **options)  # type: ignore[arg-type]
    limit = ("attention", "fp32" if options["dtype"] == "fp32" else "half")
    return Case(op, name, make, size, (limit, ("lse", "fp32")))


ONE: Inputs = {"counts": (1,) * 3, "lengths": (300, 5, 77)}  # a decode step
LONG: Inputs = {"counts": (2048, 1, 600), "lengths": (2048, 513, 4000)}
DECODE: Inputs = {"counts": (1,) * 64, "lengths": (4096,) * 64, "page_size": 64, "size": "model"}
CHUNK: Inputs = {
    "counts": (512, 1, 1),
    "lengths": (4096, 777, 50),
    "page_size": 16,
    "size": "model",
}

_prefill_case = partial(_case, "attention_prefill")
_paged_case = partial(_case, "attention_paged")

CASES: tuple[Case, ...] = (
    _prefill_case("fp32", heads=(4, 2), widths=(16, 24), dtype="fp32", sink=True),
    _prefill_case("full", heads=(2, 1), widths=(10, 6), dtype="bf16", causal=False, sign=-1.0),
    _prefill_case("bf16", heads=(2, 1), widths=(64, 64), dtype="bf16", sink=True, sign=-1.0),
    _prefill_case("fp16-window", heads=(2, 2), widths=(96, 80), dtype="fp16", window=40),
    _prefill_case("narrow-window", heads=(1, 1), widths=(192, 128), dtype="bf16", window=1),
    _prefill_case("none", heads=(1, 1), widths=(16, 16), dtype="bf16", counts=(), lengths=()),
    _paged_case(
        "fp32", heads=(6, 2), width=40, dtype="fp32", stored="fp32", page_size=7, sink=True
    ),
    _paged_case("odd", heads=(2, 1), width=10, dtype="bf16", stored="bf16", page_size=3),
    _paged_case(
        "mixed", heads=(2, 1), width=16, dtype="fp16", stored="bf16", page_size=5, window=9
    ),
    _paged_case(
        "bf16", heads=(6, 2), width=64, dtype="bf16", stored="bf16", page_size=16, sink=True
    ),
    _paged_case(
        "decode", heads=(4, 2), width=96, dtype="bf16", stored="bf16", page_size=1, window=50, **ONE
    ),
    _paged_case(
        "split",
        heads=(6, 1),
        width=64,
        dtype="bf16",
        stored="bf16",
        page_size=3,
        sink=True,
        counts=(2, 1),
        lengths=(700, 30),
        hints=True,
    ),  # fmt: skip
    _paged_case(
        "fp8", heads=(4, 2), width=32, dtype="bf16", stored="fp8", page_size=6, window=30, **ONE
    ),
    _paged_case("fp8-chunk", heads=(5, 1), width=64, dtype="fp16", stored="fp8", page_size=4),
    _prefill_case("llama-8b", "model", heads=(32, 8), widths=(128, 128), dtype="bf16", **LONG),
    _prefill_case("deepseek", "model", heads=(16, 16), widths=(192, 128), dtype="bf16", **LONG),
    _prefill_case("glm-5", "model", heads=(8, 8), widths=(256, 256), dtype="bf16", **LONG),
    _prefill_case(
        "gpt-oss",
        "model",
        heads=(64, 8),
        widths=(64, 64),
        dtype="bf16",
        window=128,
        sink=True,
        **LONG,
    ),  # fmt: skip
    _prefill_case(
        "whole",
        "model",
        heads=(4, 2),
        widths=(128, 128),
        dtype="bf16",
        causal=False,
        counts=(300, 1, 40),
        lengths=(333, 70, 5),
    ),  # fmt: skip
    _prefill_case("phi-3", "model", heads=(32, 32), widths=(96, 96), dtype="bf16", **LONG),
    _prefill_case(
        "gemma-3",
        "model",
        heads=(8, 4),
        widths=(256, 256),
        dtype="fp16",
        window=1024,
        counts=(40, 3),
        lengths=(1500, 9),
    ),  # fmt: skip
    _prefill_case(
        "exact-128",
        "model",
        heads=(8, 2),
        widths=(128, 128),
        dtype="fp32",
        counts=(100,),
        lengths=(300,),
    ),  # fmt: skip
    _prefill_case(
        "exact-192",
        "model",
        heads=(8, 8),
        widths=(192, 128),
        dtype="fp32",
        counts=(100,),
        lengths=(300,),
    ),  # fmt: skip
    _prefill_case(
        "exact-256",
        "model",
        heads=(8, 8),
        widths=(256, 256),
        dtype="fp32",
        counts=(100,),
        lengths=(300,),
    ),  # fmt: skip
    _paged_case("llama-8b", heads=(32, 8), width=128, dtype="bf16", stored="bf16", **DECODE),
    _paged_case("llama-8b-fp8", heads=(32, 8), width=128, dtype="bf16", stored="fp8", **DECODE),
    _paged_case("glm-4", heads=(24, 2), width=128, dtype="bf16", stored="bf16", **CHUNK),
    _paged_case("glm-4-fp8", heads=(24, 2), width=128, dtype="bf16", stored="fp8", **CHUNK),
    _paged_case("gemma-3", heads=(8, 4), width=256, dtype="bf16", stored="bf16", **CHUNK),
    _paged_case(
        "gemma-3-fp8", heads=(8, 4), width=256, dtype="bf16", stored="fp8", window=1024, **CHUNK
    ),  # fmt: skip
    _paged_case(
        "gemma-3-decode",
        heads=(8, 4),
        width=256,
        dtype="fp16",
        stored="fp8",
        size="model",
        page_size=64,
        counts=(1,) * 4,
        lengths=(5000, 3, 900, 64),
    ),  # fmt: skip
    _paged_case(
        "gpt-oss",
        heads=(64, 8),
        width=64,
        dtype="bf16",
        stored="bf16",
        window=128,
        sink=True,
        **DECODE,
    ),  # fmt: skip
    _paged_case(
        "exact-128",
        "model",
        heads=(8, 2),
        width=128,
        dtype="fp32",
        stored="fp32",
        page_size=16,
        counts=(9, 1),
        lengths=(300, 40),
    ),  # fmt: skip
    _paged_case(
        "exact-256",
        "model",
        heads=(8, 2),
        width=256,
        dtype="fp32",
        stored="fp8",
        page_size=16,
        counts=(9, 1),
        lengths=(300, 40),
    ),  # fmt: skip
)
