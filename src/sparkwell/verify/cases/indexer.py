"""The indexer: scores ragged and paged, selection, exact top-k with its ties, slots."""

from functools import partial
from itertools import accumulate
from typing import Any

import torch

from sparkwell.formats.kv import index_key_record
from sparkwell.formats.paged import PagedCache
from sparkwell.hardware.targets import Feature
from sparkwell.ops.indexer import index_scores_reference, quantize_index_query
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker, computes_with

NEAR = 2e-5  # scores this close, relative to the row's largest, may swap places
NEAR_CUT = 1e-3  # where FP8 units cut sums to 13 bits


def _e4m3(make: Maker, *shape: int) -> torch.Tensor:
    return make.randn(*shape).clamp(-4, 4).to(torch.float8_e4m3fn)


def _cache(
    make: Maker, record: str, contexts: tuple[int, ...], page_size: int, d: int
) -> tuple[PagedCache, torch.Tensor]:
    """A cache whose unused bytes are NaN, and the table of its shuffled pages."""
    needed = [-(-n // page_size) for n in contexts]
    kind = index_key_record(record, scale="fp32", head_dim=d)
    cache = PagedCache.allocate(kind, sum(needed) + 1, page_size, make.device)
    table = make.tensor([[-1] * (max(needed) + 1)] * len(needed), torch.int32)
    order, first = make.permutation(cache.num_pages), 0
    if make.device.type != "meta":
        cache.pages.fill_(0xFF)
        for i, (count, keys) in enumerate(zip(needed, contexts, strict=True)):
            pages = order[first : first + count]
            table[i, :count] = pages.int()
            first += count
            position = torch.arange(keys, device=make.device)
            slots = pages[position // page_size] * page_size + position % page_size
            cache.write(slots, make.randn(keys, d))
    return cache, table


def _select(
    make: Maker,
    *,
    queries: tuple[int, ...],
    contexts: tuple[int, ...],
    heads: int,
    record: str,
    topk: int,
    page_size: int = 6,
    d: int = 128,
    hint: bool = False,
    unscored: int | None = None,
    rounded: bool = False,
) -> Inputs:
    """unscored: a request whose keys are NaN; it sees too few for that to matter.

    rounded: queries become e4m3, whatever the keys are.
    """
    cache, table = _cache(make, record, contexts, page_size, d)
    if unscored is not None and make.device.type != "meta":
        cache.pages[table[unscored, : -(-contexts[unscored] // page_size)].long()] = 0xFF
    starts = list(accumulate(queries, initial=0))
    inputs: Inputs = {
        "q": make.randn(starts[-1], heads, d),
        "weights": make.randn(starts[-1], heads),
        "cache": cache,
        "query_start": make.tensor(starts, torch.int32),
        "context_lens": make.tensor(list(contexts), torch.int32),
        "block_table": table,
        "topk": topk,
        "fp8_query": record == "fp8" or rounded,
    }
    if hint:
        inputs |= {"max_query_len": max(queries), "max_context_len": max(contexts)}
    return inputs


def _check_select(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    """The same keys, except that keys of nearly the same score may stand for each other."""
    cache, table = inputs["cache"], inputs["block_table"]
    starts, lens = inputs["query_start"].tolist(), inputs["context_lens"].tolist()
    for i, keys in enumerate(lens):
        rows = slice(starts[i], starts[i + 1])
        position = torch.arange(keys, device=table.device)
        slots = table[i].long()[position // cache.page_size] * cache.page_size
        k = cache.read(slots + position % cache.page_size)
        q, w = inputs["q"][rows], inputs["weights"][rows]
        if inputs["fp8_query"]:
            values, scales = quantize_index_query(q)
            q, w = values.float(), w * scales
        scores = index_scores_reference(q, k, w)
        for row, (g, x) in enumerate(zip(got[rows].tolist(), want[rows].tolist(), strict=True)):
            assert sum(n >= 0 for n in g) == sum(n >= 0 for n in x), f"row {row} of {i}: counts"
            kept = [n for n in g if n >= 0]
            assert kept == sorted(set(kept)), f"row {row} of {i}: not ascending, or twice"
            assert all(n < 0 for n in g[len(kept) :]), f"row {row} of {i}: -1 in the middle"
            ours, theirs = sorted(set(g) - set(x)), sorted(set(x) - set(g))
            cut = inputs["fp8_query"] and computes_with(scores.device, Feature.FP8_MMA)
            near = (NEAR_CUT if cut else NEAR) * float(scores[row].abs().max()) if keys else 0.0
            gaps = [
                abs(float(scores[row, a] - scores[row, b]))
                for a, b in zip(ours, theirs, strict=True)
            ]
            assert all(gap <= near for gap in gaps), (
                f"row {row} of {i}: {ours} for {theirs}, {gaps}"
            )


def _ragged(
    make: Maker, *, rows: int, keys: int, heads: int, d: int, fp8: bool, width: int | None
) -> Inputs:
    start = make.randint(0, max(1, keys // 2), rows)
    end = start + make.randint(-2, keys, rows)
    draw = partial(_e4m3, make) if fp8 else make.randn
    inputs: Inputs = {
        "q": draw(rows, heads, d),
        "k": draw(keys, d),
        "weights": make.randn(rows, heads),
        "start": start,
        "end": end.clamp(max=keys) if make.device.type != "meta" else end,
        "key_scales": make.randn(keys).abs() + 0.1 if fp8 else None,
    }
    return inputs | ({} if width is None else {"width": width})


def _paged(
    make: Maker,
    *,
    lens: tuple[tuple[int, ...], ...],
    heads: int,
    record: str,
    columns: int,
    page_size: int = 5,
    d: int = 64,
) -> Inputs:
    contexts = tuple(max(n) for n in lens)
    cache, table = _cache(make, record, contexts, page_size, d)
    shape = (len(lens), len(lens[0]), heads, d)
    return {
        "q": _e4m3(make, *shape) if record == "fp8" else make.randn(*shape),
        "weights": make.randn(shape[0] * shape[1], heads),
        "cache": cache,
        "context_lens": make.tensor([list(n) for n in lens], torch.int32),
        "block_table": table,
        "max_context_len": columns,
    }


def _decode(make: Maker, *, requests: int, keys: int, heads: int, page_size: int = 64) -> Inputs:
    cache, table = _cache(make, "fp8", (keys,) * requests, page_size, 128)
    return {
        "q": _e4m3(make, requests, 1, heads, 128),
        "weights": make.randn(requests, heads),
        "cache": cache,
        "context_lens": make.tensor([[keys]] * requests, torch.int32),
        "block_table": table,
        "max_context_len": keys,
    }


def _scores(make: Maker, *, rows: int, columns: int, topk: int, kind: str) -> Inputs:
    scores = make.randn(rows, columns)
    if make.device.type != "meta" and columns:
        if kind == "ties":
            scores = (scores * 2).round() / 2
            scores[:, ::7] = -0.0
        if kind == "broken":
            scores[0, ::2] = float("nan")
            scores[1] = -float("inf")
            scores[-1, 0] = float("inf")
        if kind == "tiny":
            scores *= 1e-40
        if kind == "equal":
            scores[:] = 1.5
        if kind == "few":
            scores[:, 5:-5] = -float("inf")
        # What 256 runs of 16, evenly apart, say of the others is wrong.
        starts = torch.arange(256, device=make.device) * (columns // 256) // 16 * 16
        run = torch.arange(16, device=make.device)
        sampled = torch.isin(torch.arange(columns, device=make.device), starts[:, None] + run)
        if kind == "low-sample":
            scores -= 10.0 * sampled
        if kind == "high-sample":
            scores += 10.0 * sampled
    visible = make.randint(-1, columns + 3, rows)
    if kind in ("long", "equal", "few", "low-sample", "high-sample"):
        visible[:] = columns
    return {"scores": scores, "visible": visible, "topk": topk}


def _slots(make: Maker, *, rows: int, topk: int, page_size: int, first: int = -1) -> Inputs:
    """first: the lowest page in the table."""
    return {
        "indices": make.randint(-1, 9 * page_size, rows, topk),
        "request_of_token": make.randint(-1, 4, rows, dtype=torch.int64),
        "block_table": make.randint(first, 2**31 // page_size + 9, 3, 8),
        "page_size": page_size,
    }


def _equal(inputs: Inputs, got: Any, want: Any) -> None:
    wrong = (got != want.to(got.device)).nonzero()
    assert not len(wrong), f"{len(wrong)} entries differ, first at {wrong[0].tolist()}"


def _select_case(name: str, size: str = "small", **sizes: Any) -> Case:
    return Case("index_select", name, partial(_select, **sizes), size, check=_check_select)


def _topk_case(rows: int, columns: int, topk: int, kind: str, size: str = "small") -> Case:
    make = partial(_scores, rows=rows, columns=columns, topk=topk, kind=kind)
    return Case("topk_select", f"{kind}-{rows}x{columns}-top{topk}", make, size, check=_equal)


def _close(inputs: Inputs, got: torch.Tensor, want: torch.Tensor, *, fp8: bool) -> None:
    """Scores as close as the units that add them up."""
    cut = fp8 and computes_with(inputs["q"].device, Feature.FP8_MMA)
    kind = "fp8-units" if cut else "fp8" if fp8 else "fp32"
    assert_matches(got, want.to(got.device), "indexer", kind, label="index logits")


def _ragged_case(name: str, size: str = "small", **sizes: Any) -> Case:
    check = partial(_close, fp8=sizes["fp8"])
    return Case("index_logits", name, partial(_ragged, **sizes), size, check=check)


def _paged_case(name: str, size: str = "small", **sizes: Any) -> Case:
    check = partial(_close, fp8=sizes["record"] == "fp8")
    return Case("index_logits_paged", name, partial(_paged, **sizes), size, check=check)


def _decode_case(name: str, **sizes: Any) -> Case:
    check = partial(_close, fp8=True)
    return Case("index_logits_paged", name, partial(_decode, **sizes), "model", check=check)


CASES: tuple[Case, ...] = (
    _select_case("fp8", queries=(3, 1), contexts=(30, 41), heads=4, record="fp8", topk=8),
    _select_case(
        "few-keys", queries=(2, 2), contexts=(5, 2), heads=3, record="fp8", topk=8, hint=True
    ),
    _select_case(
        "few-keys-of-one",
        queries=(2, 1),
        contexts=(5, 40),
        heads=2,
        record="fp8",
        topk=8,
        unscored=0,
    ),
    _select_case(
        "rows-share-a-block",
        queries=(5, 0, 2, 6),
        contexts=(20, 3, 33, 19),
        heads=32,
        record="fp8",
        topk=9,
        hint=True,
    ),
    _select_case(
        "rows-share-tiles",
        queries=(5, 0, 1, 9),
        contexts=(70, 3, 129, 140),
        heads=16,
        record="fp8",
        topk=60,
        page_size=64,
        hint=True,
    ),
    _select_case(
        "tiles-of-few",
        queries=(2, 1, 2),
        contexts=(70, 200, 129),
        heads=32,
        record="fp8",
        topk=60,
        page_size=128,
        hint=True,
    ),
    _select_case("bf16", queries=(3,), contexts=(37,), heads=5, record="bf16", topk=7, d=64),
    _select_case(
        "fp32-rounded", queries=(3,), contexts=(40,), heads=3, record="fp32", topk=6, rounded=True
    ),
    _select_case("fp32", queries=(2, 1), contexts=(33, 9), heads=2, record="fp32", topk=5),
    _ragged_case("fp8", rows=5, keys=70, heads=8, d=128, fp8=True, width=None),
    _ragged_case("fp8-tiles", rows=14, keys=150, heads=32, d=128, fp8=True, width=None),
    _ragged_case("fp8-tiles-64", rows=3, keys=65, heads=128, d=64, fp8=True, width=None),
    _ragged_case("fp8-width", rows=5, keys=600, heads=32, d=64, fp8=True, width=40),
    _ragged_case("fp8-width-8", rows=4, keys=90, heads=8, d=128, fp8=True, width=30),
    _ragged_case("fp32-64-heads", rows=2, keys=20, heads=40, d=128, fp8=False, width=None),
    _ragged_case("fp32", rows=3, keys=33, heads=3, d=40, fp8=False, width=None),
    _paged_case("fp8", lens=((7, 8), (33, 34), (0, 1)), heads=32, record="fp8", columns=40),
    _paged_case(
        "fp8-large-pages",
        lens=((70, 71), (260, 261), (3, 4), (129, 130)),
        heads=32,
        record="fp8",
        columns=280,
        page_size=128,
        d=128,
    ),
    _paged_case(
        "fp8-large-pages-one",
        lens=((70,), (260,), (3,)),
        heads=16,
        record="fp8",
        columns=280,
        page_size=128,
        d=64,
    ),
    _paged_case("bf16", lens=((7,), (12,)), heads=3, record="bf16", columns=9),
    _topk_case(4, 100, 10, "plain"),
    _topk_case(4, 300, 64, "ties"),
    _topk_case(2, 5000, 900, "ties"),
    _topk_case(4, 65, 40, "broken"),
    _topk_case(3, 50, 80, "plain"),
    _topk_case(3, 64, 20, "tiny"),
    _topk_case(2, 5000, 70, "plain"),
    _topk_case(0, 10, 3, "plain"),
    _topk_case(3, 9000, 70, "plain"),
    _topk_case(4, 9000, 300, "ties"),
    _topk_case(4, 9000, 1500, "broken"),
    _topk_case(2, 20000, 40, "tiny"),
    _topk_case(1, 40000, 300, "long"),
    _topk_case(2, 9000, 1500, "equal"),
    _topk_case(2, 20000, 1500, "few"),
    _topk_case(1, 9000, 1500, "low-sample"),
    _topk_case(1, 9000, 1500, "high-sample"),
    Case(
        "logical_to_physical", "pages", partial(_slots, rows=5, topk=300, page_size=7), check=_equal
    ),
    Case(
        "logical_to_physical",
        "past-int32",
        partial(_slots, rows=5, topk=40, page_size=64, first=2**25 - 4),
        check=_equal,
    ),
    _select_case(
        "glm5-decode",
        "model",
        queries=(1,) * 16,
        contexts=(8192,) * 16,
        heads=32,
        record="fp8",
        topk=2048,
        page_size=64,
        hint=True,
    ),
    _select_case(
        "decode-page16",
        "model",
        queries=(1,) * 4,
        contexts=(4096,) * 4,
        heads=32,
        record="fp8",
        topk=2048,
        page_size=16,
        hint=True,
    ),
    _select_case(
        "v32-prefill",
        "model",
        queries=(256,),
        contexts=(8192,),
        heads=64,
        record="fp8",
        topk=2048,
        page_size=64,
        hint=True,
    ),
    _ragged_case(
        "prefill-h32", "model", rows=300, keys=4000, heads=32, d=128, fp8=True, width=None
    ),
    _ragged_case("prefill-h48", "model", rows=64, keys=4000, heads=48, d=128, fp8=True, width=None),
    _ragged_case(
        "prefill-h64", "model", rows=256, keys=4096, heads=64, d=128, fp8=True, width=None
    ),
    _decode_case("decode-h32", requests=16, keys=4096, heads=32),
    _decode_case("decode-h32-page16", requests=5, keys=4000, heads=32, page_size=16),
    _decode_case("decode-h128-page16", requests=2, keys=4000, heads=128, page_size=16),
    _decode_case("decode-h64", requests=3, keys=4000, heads=64),
    _topk_case(64, 131072, 2048, "ties", "model"),
)
