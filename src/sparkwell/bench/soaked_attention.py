"""What attention's soaks replay: sparse decode, and a layer's whole attention step."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparkwell.bench.soak import Tensors, Workload
from sparkwell.formats.kv import index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache import cache_write
from sparkwell.ops.indexer import index_select, logical_to_physical
from sparkwell.ops.mla import mla_sparse
from sparkwell.verify.case import Inputs, Maker
from sparkwell.verify.cases.mla_sparse import check as check_attention


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

    sets = [draw(i) for i in range(shape.sets)]
    return Workload("sparse_decode", sets, run, check, asdict(shape))


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

    sets = [draw(i) for i in range(shape.sets)]
    return Workload("attention_step", sets, run, check, asdict(shape))


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
