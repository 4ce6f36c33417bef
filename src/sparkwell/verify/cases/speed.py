"""The shapes of the speed table, with their least work: compiled for every target, timed by bench.

Pools are far larger than the caches of a GPU, and index sets are drawn anew for each call.
"""

from functools import partial

import torch

from sparkwell.formats.kv import Record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.testing import cosine_gap
from sparkwell.verify.case import Case, Inputs, Maker, Timing
from sparkwell.verify.cases.mla_sparse import check

PAGE = 64
POOL = 1 << 20  # tokens that sparse decode chooses from
WIDTH, D_V = 576, 512
SCALE = 0.0625
MLA_LIMITS = (("attention", "bf16"), ("lse", "fp32"))


def filled(make: Maker, record: Record, tokens: int, size: float = 0.25) -> PagedCache:
    """A cache of normal values times `size` in every slot of pages of 64."""
    cache = PagedCache.allocate(record, tokens // PAGE, PAGE, make.device)
    if make.device.type != "meta":
        step = 1 << 17
        for start in range(0, tokens, step):
            slots = torch.arange(start, min(start + step, tokens), device=make.device)
            cache.write(slots, make.randn(len(slots), record.width, scale=size))
    return cache


def starts(make: Maker, rows: int, each: int) -> torch.Tensor:
    """Where each request's rows start, with `each` rows a request: int32 [rows / each + 1]."""
    return make.tensor(list(range(0, rows + 1, each)), torch.int32)


# ---------------------------------------------------------------- sparse MLA


def _sparse(make: Maker, *, shape: tuple[int, int, int], tokens: int, record: str) -> Inputs:
    cache = filled(make, latent_record(record, scale="fp32"), tokens)
    inputs: Inputs = {"cache": cache, "scale": SCALE}
    return inputs | _sparse_redraw(make, inputs, shape=shape)


def _sparse_redraw(make: Maker, inputs: Inputs, *, shape: tuple[int, int, int]) -> Inputs:
    rows, heads, topk = shape
    q = make.randn(rows, heads, WIDTH, dtype=torch.bfloat16)
    return {"q": q, "slots": make.randint(0, inputs["cache"].num_slots, rows, topk)}


def _sparse_case(name: str, rows: int, heads: int, topk: int, tokens: int, record: str) -> Case:
    flops = 2 * rows * heads * topk * (WIDTH + D_V)
    # Prefill rows share the keys, so at most the whole cache once.
    keys = min(rows * topk, tokens) * latent_record(record).nbytes
    nbytes = keys + rows * (4 * topk + heads * (2 * (WIDTH + D_V) + 8))
    shape = (rows, heads, topk)
    make = partial(_sparse, shape=shape, tokens=tokens, record=record)
    timing = Timing(flops, nbytes, partial(_sparse_redraw, shape=shape))
    return Case("mla_sparse", name, make, "timed", check=check, timing=timing)


# ---------------------------------------------------------------- dense MLA


def _dense(make: Maker, *, requests: int, heads: int, keys: int) -> Inputs:
    cache = filled(make, latent_record("bf16"), requests * keys)
    return {
        "q": make.randn(requests, heads, WIDTH, dtype=torch.bfloat16),
        "cache": cache,
        "query_start": starts(make, requests, 1),
        "context_lens": torch.full((requests,), keys, dtype=torch.int32, device=make.device),
        "block_table": make.permutation(cache.num_pages).int().view(requests, -1),
        "scale": SCALE,
        "max_query_len": 1,
        "max_context_len": keys,
    }


def _dense_case(requests: int, heads: int, keys: int) -> Case:
    flops = 2 * requests * heads * keys * (WIDTH + D_V)
    nbytes = requests * (keys * 2 * WIDTH + heads * (2 * (WIDTH + D_V) + 4))
    make = partial(_dense, requests=requests, heads=heads, keys=keys)
    name = f"decode-bf16-b{requests}-s{keys}-h{heads}"
    return Case("mla_paged", name, make, "timed", MLA_LIMITS, timing=Timing(flops, nbytes))


# ---------------------------------------------------------------- dense attention


def _prefill(make: Maker, *, keys: int, heads: int, kv_heads: int, d: int) -> Inputs:
    edges = starts(make, keys, keys)
    return {
        "q": make.randn(keys, heads, d, dtype=torch.bfloat16),
        "k": make.randn(keys, kv_heads, d, dtype=torch.bfloat16),
        "v": make.randn(keys, kv_heads, d, dtype=torch.bfloat16, scale=0.25),
        "query_start": edges,
        "key_start": edges,
        "scale": d**-0.5,
    }


def _prefill_case(keys: int, heads: int, kv_heads: int, d: int) -> Case:
    flops = 4 * heads * keys * (keys + 1) // 2 * d
    nbytes = 2 * keys * d * (2 * heads + 2 * kv_heads) + 4 * keys * heads
    make = partial(_prefill, keys=keys, heads=heads, kv_heads=kv_heads, d=d)
    name = f"causal-{keys}-h{heads}-kv{kv_heads}-d{d}"
    timing = Timing(flops, nbytes)
    return Case("attention_prefill", name, make, "timed", MLA_LIMITS, timing=timing)


# ---------------------------------------------------------------- indexer

INDEX_D = 128


def _ragged_logits(make: Maker, *, rows: int, heads: int, keys: int) -> Inputs:
    return {
        "q": make.randn(rows, heads, INDEX_D, dtype=torch.float8_e4m3fn),
        "k": make.randn(keys, INDEX_D, dtype=torch.float8_e4m3fn),
        "weights": make.randn(rows, heads),
        "start": torch.zeros(rows, dtype=torch.int32, device=make.device),
        "end": torch.full((rows,), keys, dtype=torch.int32, device=make.device),
        "key_scales": make.randn(keys).abs() + 0.5,
    }


def _paged_logits(make: Maker, *, requests: int, heads: int, keys: int) -> Inputs:
    cache = filled(make, index_key_record("fp8"), requests * keys)
    return {
        "q": make.randn(requests, 1, heads, INDEX_D, dtype=torch.float8_e4m3fn),
        "weights": make.randn(requests, heads),
        "cache": cache,
        "context_lens": torch.full((requests, 1), keys, dtype=torch.int32, device=make.device),
        "block_table": make.permutation(cache.num_pages).int().view(requests, -1),
        "max_context_len": keys,
    }


def _close_logits(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    """DeepGEMM's own limit on the whole, and no element far off."""
    gap, far = cosine_gap(got, want), (got - want).abs().max() / want.std()
    assert gap < 5e-6 and far < 1e-2, f"index logits: cosine gap {gap:.1e}, worst {far:.1e}"


def _logits_case(op: str, rows: int, heads: int, keys: int) -> Case:
    ragged = op == "index_logits"
    record = INDEX_D + 4
    each = rows * (heads * record + 4 * keys)  # a row's query, weights and logits
    nbytes = each + record * keys * (1 if ragged else rows)
    timing = Timing(2 * rows * keys * heads * INDEX_D, nbytes, math="fp8")
    name = f"fp8-{rows}x{keys}-h{heads}"
    if ragged:
        make = partial(_ragged_logits, rows=rows, heads=heads, keys=keys)
    else:
        make = partial(_paged_logits, requests=rows, heads=heads, keys=keys)
    return Case(op, name, make, "timed", check=_close_logits, timing=timing)


# ---------------------------------------------------------------- top-k


def _topk(make: Maker, *, rows: int, keys: int) -> Inputs:
    visible = torch.full((rows,), keys, dtype=torch.int32, device=make.device)
    return {"scores": make.randn(rows, keys), "visible": visible, "topk": 2048}


def _same_keys(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    wrong = (got != want).any(-1).nonzero()
    assert not len(wrong), f"topk_select: {len(wrong)} rows differ, first {wrong[0].tolist()}"


def _topk_case(rows: int, keys: int) -> Case:
    make = partial(_topk, rows=rows, keys=keys)
    timing = Timing(0, 4 * rows * (keys + 2048))
    name = f"2048-of-{keys}-b{rows}"
    return Case("topk_select", name, make, "timed", check=_same_keys, timing=timing)


# ---------------------------------------------------------------- the table

SPARSE_HEADS = (8, 16, 32, 64, 128)
CASES: tuple[Case, ...] = (
    *(
        _sparse_case(f"decode-656B-2048-b{b}-h{h}", b, h, 2048, POOL, "fp8")
        for b in (1, 16, 64, 128)
        for h in SPARSE_HEADS
    ),
    *(
        _sparse_case(f"prefill-bf16-4096x2048-h{h}", 4096, h, 2048, 65536, "bf16")
        for h in (16, 64, 128)
    ),
    *(
        _dense_case(b, h, keys)
        for h in (16, 64, 128)
        for b, keys in ((1, 32768), (16, 8192), (64, 4096), (128, 4096))
    ),
    *(_logits_case("index_logits", 4096, h, 1 << 15) for h in (32, 64)),
    *(_logits_case("index_logits_paged", b, h, 1 << 15) for b in (16, 64) for h in (32, 64)),
    *(_topk_case(rows, keys) for rows, keys in ((64, 1 << 15), (64, 1 << 17), (16, 1 << 20))),
    _topk_case(4096, 1 << 15),
    *(_prefill_case(8192, 32, kv, 128) for kv in (8, 32)),
)
