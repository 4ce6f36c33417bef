"""`sparkwell bench soak`: one captured graph replayed with changing inputs, for as long as asked.

Inputs of a few sets are copied into the graph's own tensors between replays.  The graph ends with
a checksum of every bit it computed, compared on the device with the one that the same set gave
at first; what differs is counted there and read once, at the end.
"""

import faulthandler
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparkwell.bench.protocol import Clock
from sparkwell.errors import SparkwellError
from sparkwell.formats.kv import index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache import cache_write
from sparkwell.ops.indexer import index_select, logical_to_physical
from sparkwell.ops.mla import mla_sparse
from sparkwell.verify.case import Inputs, Maker
from sparkwell.verify.cases.mla_sparse import check as check_attention

CHUNK = 10_000  # replays between two waits for the device
HANG_SECONDS = 120.0  # for one chunk
STDERR = 2
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A decode step: one row a request."""

    requests: int = 16
    heads: int = 16
    index_heads: int = 32
    topk: int = 2048
    context: int = 8192  # keys of the longest request
    page_size: int = 64
    sets: int = 16

    @property
    def pages(self) -> int:
        """Pages of the longest request."""
        return -(-self.context // self.page_size)


@dataclass(frozen=True)
class Result:
    """mismatches: replays whose bits were not those of the same inputs before."""

    soak: str
    replays: int
    mismatches: int
    distinct: int  # checksums among the sets: a sum that never changes shows nothing
    seconds: float
    us_per_replay: float
    shape: dict[str, int]


# ---------------------------------------------------------------- what is computed


@dataclass(frozen=True)
class Workload:
    """What is replayed.  sets: values of the inputs, by name; run: inputs -> results by name."""

    name: str
    sets: Sequence[Tensors]
    run: Callable[[Tensors], Tensors]
    check: Callable[[Tensors, Tensors], None]


def sparse_decode(shape: Shape, device: torch.device, backend: str) -> Workload:
    """Positions to slots by the page table, then sparse MLA; per row another top-k length."""
    cache, pages = _cache(latent_record("fp8"), shape, device), shape.pages
    request = torch.arange(shape.requests, device=device)

    def draw(seed: int) -> Tensors:
        make = Maker(device, seed=seed)
        table = make.permutation(cache.num_pages)[: shape.requests * pages]
        return {
            "q": make.randn(shape.requests, shape.heads, 576, dtype=torch.bfloat16),
            # Some are negative or past the table: skipped.
            "positions": make.randint(-9, shape.context + 9, shape.requests, shape.topk),
            "lengths": make.randint(0, shape.topk + 1, shape.requests),
            "table": table.int().view(shape.requests, pages),
        }

    def run(x: Tensors) -> Tensors:
        slots = logical_to_physical(
            x["positions"], request, x["table"], page_size=shape.page_size, backend=backend
        )
        options: dict[str, Any] = {"scale": 0.0625, "topk_length": x["lengths"]}
        out, lse, top = mla_sparse(x["q"], cache, slots, backend=backend, **options)
        return {"slots": slots, "out": out, "lse": lse, "max_logits": top}

    def check(x: Tensors, got: Tensors) -> None:
        _same_attention(cache, x["q"], got, x["lengths"])

    return Workload("sparse_decode", [draw(i) for i in range(shape.sets)], run, check)


def attention_step(shape: Shape, device: torch.device, backend: str) -> Workload:
    """One layer's attention: cache writes, index scores, top-k, slots, sparse MLA."""
    latents = _cache(latent_record("fp8"), shape, device)
    keys = _cache(index_key_record("fp8"), shape, device)
    request = torch.arange(shape.requests, device=device)
    starts = torch.arange(shape.requests + 1, device=device, dtype=torch.int32)

    def draw(number: int) -> Tensors:
        make, n = Maker(device, seed=number), shape.requests
        lengths = make.randint(max(1, shape.context // 2), shape.context + 1, n)
        table = make.permutation(latents.num_pages - n * shape.sets)[: n * shape.pages].view(n, -1)
        table += n * shape.sets
        last = (lengths.long() - 1) // shape.page_size
        # A page for each set and request that only they write: the order of sets changes nothing.
        own = request + number * n
        table[request, last] = own
        offset = (lengths.long() - 1) % shape.page_size
        return {
            "q": make.randn(n, shape.heads, 576, dtype=torch.bfloat16),
            "latents": make.randn(n, 576, scale=0.25),
            "keys": make.randn(n, 128),
            "slots": own * shape.page_size + offset,
            "index_q": make.randn(n, shape.index_heads, 128, dtype=torch.bfloat16),
            "weights": make.randn(n, shape.index_heads),
            "lengths": lengths,
            "table": table.int(),
        }

    def run(x: Tensors) -> Tensors:
        cache_write(latents, x["slots"], x["latents"], backend=backend)
        cache_write(keys, x["slots"], x["keys"], backend=backend)
        batch = (starts, x["lengths"], x["table"])
        positions = index_select(x["index_q"], x["weights"], keys, *batch, **options)
        slots = logical_to_physical(
            positions, request, x["table"], page_size=shape.page_size, backend=backend
        )
        out, lse, top = mla_sparse(x["q"], latents, slots, scale=0.0625, backend=backend)
        return {"positions": positions, "slots": slots, "out": out, "lse": lse, "max_logits": top}

    options: dict[str, Any] = {"topk": shape.topk, "fp8_query": True, "backend": backend}
    options |= {"max_query_len": 1, "max_context_len": shape.context}

    def check(x: Tensors, got: Tensors) -> None:
        _same_attention(latents, x["q"], got, None)
        batch = (starts, x["lengths"], x["table"])
        asked = options | {"backend": "reference"}
        want = index_select(x["index_q"], x["weights"], keys, *batch, **asked)
        for mine, theirs in zip(got["positions"].tolist(), want.tolist(), strict=True):
            other = len(set(mine) ^ set(theirs))  # last bits of scores decide near ties
            assert other <= shape.topk // 256, f"{other // 2} of {shape.topk} keys differ"

    return Workload("attention_step", [draw(i) for i in range(shape.sets)], run, check)


def _cache(record: Any, shape: Shape, device: torch.device) -> PagedCache:
    """Filled pages for a step's requests, one longest context for each and two to spare."""
    num_pages = (shape.requests + 2) * shape.pages + shape.requests * shape.sets
    cache, make = PagedCache.allocate(record, num_pages, shape.page_size, device), Maker(device)
    step = 1 << 16
    for start in range(0, cache.num_slots, step):
        slots = torch.arange(start, min(start + step, cache.num_slots), device=device)
        cache.write(slots, make.randn(len(slots), record.width, scale=0.25))
    return cache


def _same_attention(
    cache: PagedCache, q: torch.Tensor, got: Tensors, lengths: torch.Tensor | None
) -> None:
    """The result is the reference's over the same slots."""
    inputs: Inputs = {"q": q, "cache": cache, "slots": got["slots"]}
    inputs |= {"scale": 0.0625, "topk_length": lengths}
    want = mla_sparse(**inputs, backend="reference")
    check_attention(inputs, (got["out"], got["lse"], got["max_logits"]), want)


# ---------------------------------------------------------------- replays


def soak(
    work: Workload, replays: int, clock: Clock, *, shape: Shape, sync: Callable[[], None]
) -> Result:
    """Replay `work` so often, its sets in changing order; a chunk that hangs ends the process.

    sync: waits for the device.
    Raises AssertionError where the result is not the reference's, SparkwellError where the work
    cannot be captured.
    """
    static = {name: x.clone() for name, x in work.sets[0].items()}
    device = next(iter(static.values())).device
    expected, total, wrong = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
    got = work.run(static)
    weights = [_weights(x) for x in got.values()]

    def step() -> None:
        total.copy_(_checksum(work.run(static).values(), weights))
        wrong.add_(total != expected)

    replay = clock.capture([step])
    if replay is None:
        raise SparkwellError(f"soak {work.name}: it cannot be captured in a CUDA graph")
    work.check(static, work.run(static))

    def feed(number: int, sums: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(
            [*static.values(), expected], [*work.sets[number].values(), sums[number]]
        )

    sums = [torch.zeros_like(total) for _ in work.sets]
    for rehearsal in range(2):  # the first one writes what the second one's caches hold
        for number in range(len(work.sets)):
            feed(number, sums)
            replay()
            if rehearsal:
                sums[number] = total.clone()
    wrong.zero_()
    sync()
    start = time.perf_counter()
    for first in range(0, replays, CHUNK):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=STDERR)
        for i in range(first, min(first + CHUNK, replays)):
            feed((5 * i + i // len(work.sets)) % len(work.sets), sums)
            replay()
        sync()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    return Result(
        soak=work.name,
        replays=replays,
        mismatches=int(wrong),
        distinct=len({int(x) for x in sums}),
        seconds=round(seconds, 2),
        us_per_replay=round(1e6 * seconds / max(1, replays), 2),
        shape=asdict(shape),
    )


def _weights(x: torch.Tensor) -> torch.Tensor:
    """An odd 64-bit weight for each 32 bits of `x`: a permutation has another sum."""
    count = x.numel() * x.element_size() // 4
    make = torch.Generator(x.device).manual_seed(count)
    bounds = (-(1 << 62), 1 << 62)
    return torch.randint(*bounds, (count,), generator=make, device=x.device) * 2 + 1


def _checksum(results: Any, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One int64 of every bit; sums of integers are the same in any order."""
    parts = zip(results, weights, strict=True)
    return torch.stack(
        [(x.contiguous().view(-1).view(torch.int32) * w).sum() for x, w in parts]
    ).sum()
