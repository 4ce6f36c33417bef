"""Attention kernels, interpreted: what the case table cannot say with one call."""

import math

import pytest
import torch

from paged import paged_batch
from sparkwell.errors import BadInput
from sparkwell.formats.kv import gqa_record, latent_record
from sparkwell.ops.attention import attention_paged, attention_prefill
from sparkwell.ops.attention.kernels import paged
from sparkwell.ops.attention.schedule import split_width
from sparkwell.ops.device import as_target
from sparkwell.testing import assert_matches, in_poison

COUNTS, LENGTHS = [3, 0, 30, 1, 2, 4], [3, 4, 150, 11, 0, 2]
T = sum(COUNTS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def starts(counts):
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int()


def both(op, *arguments, target="sm_121", **options):
    """(kernel's, reference's) results."""
    want = op(*arguments, **{k: v for k, v in options.items() if not k.startswith("max_")})
    with as_target(target):
        return op(*arguments, **options, backend="kernel"), want


def same(got, want, fmt="half"):
    assert_matches(got[0], want[0], "attention", fmt)
    assert_matches(got[1], want[1], "lse")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("d, dv", [(64, 64), (192, 128), (256, 256)])
@pytest.mark.parametrize("window", [None, 70])
def test_every_row_of_prefill(target, d, dv, window):
    q, k, v = (
        torch.randn(T, 2, d),
        torch.randn(sum(LENGTHS), 1, d),
        torch.randn(sum(LENGTHS), 1, dv),
    )
    q, k, v = (in_poison(x.bfloat16()) for x in (q, k, v))
    options = {"scale": d**-0.5, "window": window, "sink": torch.randn(2)}
    same(
        *both(attention_prefill, q, k, v, starts(COUNTS), starts(LENGTHS), target=target, **options)
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_121"])
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
@pytest.mark.parametrize("bound", [1, 30])
@pytest.mark.parametrize("d", [64, 160])
def test_every_row_of_paged(target, stored, bound, d):
    batch = paged_batch(gqa_record(1, d, stored), COUNTS, LENGTHS, page_size=16)
    q = in_poison(torch.randn(T, 3, d).bfloat16())
    options = {"num_kv_heads": 1, "scale": d**-0.5, "window": 40, "max_query_len": bound}
    same(*both(attention_paged, q, batch.cache, *batch.metadata, target=target, **options))


@pytest.mark.parametrize("keys", [64, 1000])
def test_parts_and_hints_change_nothing_but_rounding(monkeypatch, keys):
    monkeypatch.setattr(paged, "KEYS_A_PART", keys)
    batch = paged_batch(gqa_record(2, 16, "fp32"), [1, 2, 1], [600, 33, 1], page_size=7)
    q, sink = torch.randn(4, 6, 16), torch.tensor([-math.inf, math.inf, 0.0, 1.0, -2.0, 9.0])
    options = {"num_kv_heads": 2, "scale": 0.3, "sink": sink}
    for hints in ({}, {"max_query_len": 2, "max_context_len": 600}):
        same(*both(attention_paged, q, batch.cache, *batch.metadata, **options, **hints), "fp32")
    with as_target("sm_90"):
        first = attention_paged(q, batch.cache, *batch.metadata, **options, backend="kernel")
        again = attention_paged(q, batch.cache, *batch.metadata, **options, backend="kernel")
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_keys_of_a_missing_page_are_skipped(bad):
    batch = paged_batch(gqa_record(1, 16, "bf16"), [2], [40], page_size=8)
    q, table = torch.randn(2, 2, 16).bfloat16(), batch.block_table.clone()
    table[0, 1] = bad
    options = {"num_kv_heads": 1, "scale": 0.3, "backend": "kernel"}
    with as_target("sm_121"):
        got = attention_paged(
            q, batch.cache, batch.query_start, batch.context_lens, table, **options
        )
        narrow = attention_paged(
            q,
            batch.cache,
            batch.query_start,
            batch.context_lens,
            batch.block_table[:, :3],
            **options,
        )
    rest = torch.cat([batch.contexts[0][:8], batch.contexts[0][16:]]).unflatten(1, (2, 1, 16))
    first = starts([2]), starts([len(rest)])
    want = attention_prefill(q, rest[:, 0], rest[:, 1], *first, scale=0.3)
    same(got, want)
    k, v = batch.contexts[0][:24].unflatten(1, (2, 1, 16)).unbind(1)
    want = attention_prefill(q, k, v, starts([2]), starts([24]), scale=0.3, causal=False)
    same(narrow, want)


def test_a_nan_stays_in_its_request():
    q = torch.randn(T, 2, 64).bfloat16()
    k, v = (torch.randn(sum(LENGTHS), 1, 64).bfloat16() for _ in "kv")
    edges = starts(COUNTS), starts(LENGTHS)
    with as_target("sm_90"):
        clean, _ = attention_prefill(q, k, v, *edges, scale=0.1, backend="kernel")
        k[20], v[100] = math.nan, math.nan  # in request 2, rows 3..32
        out, _ = attention_prefill(q, k, v, *edges, scale=0.1, backend="kernel")
    rest = [*range(3), *range(33, T)]
    assert torch.equal(out[rest], clean[rest]) and out[32].isnan().all()


@pytest.mark.parametrize("query", [[0, 50, T], [5, 2, T], [-7, 3, 10**9]])
@pytest.mark.parametrize("key", [[0, 70, 60], [-4, 10**9, 20], [0, 0, 0]])
def test_starts_that_do_not_climb_read_nothing_outside(query, key):
    q = in_poison(torch.randn(T, 1, 16))
    k, v = (in_poison(torch.randn(60, 1, 16)) for _ in "kv")
    ints = [torch.tensor(x, dtype=torch.int32) for x in (query, key)]
    with as_target("sm_121"):
        out, lse = attention_prefill(q, k, v, *ints, scale=0.1, causal=False, backend="kernel")
    if query[0] < 0:  # these starts leave no row out
        assert not out.isnan().any() and not lse.isnan().any()


def test_a_scale_of_zero_weighs_all_keys_alike():
    q, k, v = (torch.randn(5, 1, 16) for _ in "qkv")
    same(*both(attention_prefill, q, k, v, starts([5]), starts([5]), scale=0.0), "fp32")


def test_a_plan_writes_into_buffers_of_the_caller():
    batch = paged_batch(gqa_record(1, 16, "bf16"), [1, 1], [900, 5], page_size=4)
    q = torch.randn(2, 4, 16).bfloat16()
    want = attention_paged(q, batch.cache, *batch.metadata, num_kv_heads=1, scale=0.2)
    with as_target("sm_90"):
        plan = paged.plan_paged(
            batch.cache.record, 4, batch.cache.pages.stride(0), rows=2, heads=4, num_kv_heads=1,
            requests=2, table_width=batch.block_table.shape[1], dtype=q.dtype, device=q.device,
            scale=0.2,
        )  # fmt: skip
        assert plan.parts > 1
        plan.part.fill_(math.nan), plan.part_lse.fill_(math.nan)
        out, lse = torch.full_like(q, math.nan), torch.full((2, 4), math.nan)
        for _ in range(2):
            plan.run(q, batch.cache, *batch.metadata, out=out, lse=lse)
            same((out, lse), want)


def test_another_kind_of_cache_is_refused():
    with as_target("sm_90"), pytest.raises(BadInput, match="want a gqa_record"):
        paged.plan_paged(
            latent_record("bf16"), 4, 4 * 1152, rows=1, heads=4, num_kv_heads=1, requests=1,
            table_width=1, dtype=torch.bfloat16, device=torch.device("cpu"), scale=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    "d, parts",
    [(2, (16, 0)), (16, (16, 0)), (24, (16, 16)), (48, (32, 16)), (80, (64, 16)), (112, (128, 0)),
     (192, (128, 64)), (256, (256, 0))],
)  # fmt: skip
def test_a_width_is_covered_by_two_powers_of_two(d, parts):
    first, second = split_width(d)
    assert first + second >= d and first % 16 == second % 16 == 0
    assert (first, second) == parts or (d, first, second) == (24, 32, 0)
