"""attention_prefill and attention_paged against one key at a time, amid poison."""

import math

import pytest
import torch

from paged import GARBAGE, brute_force, ints, paged_batch, rows_of, seen, starts
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import gqa_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops import ragged
from sparkwell.ops.attention import (
    attention_paged,
    attention_paged_reference,
    attention_prefill,
    attention_prefill_reference,
)
from sparkwell.testing import assert_matches, in_poison

COUNTS, LENGTHS = [3, 0, 5, 1, 2, 4], [3, 4, 9, 11, 0, 2]  # the last two: rows before position 0
T, S = sum(COUNTS), sum(LENGTHS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ragged_qkv(hq, hk, dqk, dv):
    """Strided q, k, v amid NaN, and their starts amid garbage."""
    q, k, v = torch.randn(T, hq, dqk), torch.randn(S, hk, dqk), torch.randn(S, hk, dv)
    edges = in_poison(starts(COUNTS)), in_poison(starts(LENGTHS))
    return in_poison(q), in_poison(k), in_poison(v), *edges


def loop(q, k, v, *, scale, causal=True, window=None, sink=None):
    out, lse = torch.zeros(T, q.shape[1], v.shape[2]), torch.zeros(T, q.shape[1])
    first = starts(LENGTHS).tolist()
    for row, i, position in rows_of(starts(COUNTS), LENGTHS):
        keys = slice(first[i], first[i + 1])
        visible = seen(position, LENGTHS[i], causal, window)
        out[row], lse[row], _ = brute_force(q[row], k[keys], v[keys], visible, scale, sink)
    return out, lse


@pytest.mark.parametrize(
    "hq, hk, dqk, dv",
    [(1, 1, 8, 8), (4, 4, 192, 128), (6, 2, 16, 16), (3, 1, 256, 256), (8, 2, 10, 6)],
)
@pytest.mark.parametrize(
    "causal, window", [(True, None), (False, None), (True, 1), (True, 3), (True, 100)]
)
@pytest.mark.parametrize("with_sink", [False, True])
def test_prefill_against_a_loop_over_keys(hq, hk, dqk, dv, causal, window, with_sink):
    q, k, v, query_start, key_start = ragged_qkv(hq, hk, dqk, dv)
    sink = torch.randn(hq) if with_sink else None
    options = {"scale": 1.7 * dqk**-0.5, "causal": causal, "window": window, "sink": sink}
    out, lse = attention_prefill(q, k, v, query_start, key_start, **options)
    want, want_lse = loop(q, k, v, **options)
    assert_matches(out, want, "attention")
    assert_matches(lse, want_lse, "lse")
    assert lse.isposinf().sum() == (2 if not causal else 4) * hq


@pytest.mark.parametrize("budget", [1, 300, 1000, 4000])
@pytest.mark.parametrize("window", [None, 2, 4])
def test_prefill_in_blocks_is_prefill(monkeypatch, budget, window):
    inputs = ragged_qkv(4, 2, 8, 8)
    whole = attention_prefill(*inputs, scale=0.5, window=window)
    monkeypatch.setattr(ragged, "SCRATCH_BYTES", budget)
    blocks = list(ragged.row_blocks(slice(0, 5), 4 * 4 * 9))
    assert (len(blocks) > 1) == (budget < 5 * 4 * 4 * 9)  # budgets really differ in blocks
    out, lse = attention_prefill(*inputs, scale=0.5, window=window)
    assert_matches(out, whole[0], "attention")
    assert_matches(lse, whole[1], "elementwise")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefill_computes_in_fp32_and_answers_in_the_query_dtype(dtype):
    q, k, v, *edges = ragged_qkv(4, 2, 16, 8)
    half = [x.to(dtype) for x in (q, k, v)]
    out, lse = attention_prefill(*half, *edges, scale=0.3)
    want, want_lse = attention_prefill_reference(*(x.float() for x in half), *edges, scale=0.3)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert torch.equal(out, want.to(dtype)) and torch.equal(lse, want_lse)


def test_huge_scores_neither_overflow_nor_vanish():
    q, k = torch.full((1, 1, 1), 100.0), torch.tensor([30.0, -30.0, 30.0, 29.0])[:, None, None]
    v = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]
    out, lse = attention_prefill(q, k, v, ints(0, 1), ints(0, 4), scale=1.0)
    assert out.item() == 2.5  # the mean of the two at 3000; 2900 is e^-100 of that
    assert lse.item() == pytest.approx(3000 + math.log(2), abs=1e-3)
    _, lse = attention_prefill(-q, k[:1], v[:1], ints(0, 1), ints(0, 1), scale=1.0)
    assert lse.item() == -3000


def test_the_window_counts_the_row_itself():
    q, k = torch.zeros(4, 1, 2), torch.zeros(4, 1, 2)
    v = torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None]
    run = lambda **o: attention_prefill(q, k, v, ints(0, 4), ints(0, 4), scale=1.0, **o)[0][:, 0, 0]  # noqa: E731
    assert run(window=1).tolist() == [1.0, 10.0, 100.0, 1000.0]
    assert run(window=2).tolist() == [1.0, 5.5, 55.0, 550.0]
    assert run().tolist() == pytest.approx([1.0, 5.5, 37.0, 277.75])
    assert run(causal=False).tolist() == [277.75] * 4


def test_sink_takes_weight_but_stays_out_of_the_lse():
    inputs = ragged_qkv(4, 2, 8, 8)
    plain, plain_lse = attention_prefill(*inputs, scale=0.3)
    sink = torch.tensor([-math.inf, math.inf, 0.0, 2.0])
    out, lse = attention_prefill(*inputs, scale=0.3, sink=sink)
    assert torch.equal(lse, plain_lse)
    assert_matches(out[:, 0], plain[:, 0], "attention")
    assert (out[:, 1] == 0).all()
    share = 1 / (1 + torch.exp(sink[2:] - lse[:, 2:]))
    assert_matches(out[:, 2:], plain[:, 2:] * share[..., None], "attention")


def test_halves_merge_by_lse():
    q, k, v = torch.randn(5, 4, 8), torch.randn(20, 2, 8), torch.randn(20, 2, 8)
    whole, whole_lse = attention_prefill(q, k, v, ints(0, 5), ints(0, 20), scale=0.4, causal=False)
    parts = [
        attention_prefill(q, k[s], v[s], ints(0, 5), ints(0, n), scale=0.4, causal=False)
        for s, n in ((slice(0, 7), 7), (slice(7, 20), 13))
    ]
    lse = torch.stack([p[1] for p in parts]).logsumexp(0)
    out = sum(o * (part - lse).exp()[..., None] for o, part in parts)
    assert_matches(out, whole, "attention")
    assert_matches(lse, whole_lse, "lse")


def test_a_nan_stays_in_its_request():
    q, k, v, *edges = ragged_qkv(2, 1, 4, 4)
    clean, clean_lse = attention_prefill(q, k, v, *edges, scale=1.0)
    k, v = k.clone(), v.clone()
    k[10], v[11] = math.nan, math.nan  # within request 2, rows 3..7
    out, lse = attention_prefill(q, k, v, *edges, scale=1.0)
    rest = [0, 1, 2, *range(8, T)]
    assert torch.equal(out[rest], clean[rest]) and torch.equal(lse[rest], clean_lse[rest])
    assert out[7].isnan().all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("page_size", [1, 4, 7])
@pytest.mark.parametrize("window, with_sink", [(None, False), (None, True), (3, False), (5, True)])
def test_paged_against_a_loop_over_keys(dtype, page_size, window, with_sink):
    batch = paged_batch(gqa_record(2, 8, dtype), COUNTS, LENGTHS, page_size=page_size)
    q = in_poison(torch.randn(T, 6, 8))
    options = {"scale": 0.6, "window": window, "sink": torch.randn(6) if with_sink else None}
    out, lse = attention_paged(q, batch.cache, *batch.metadata, num_kv_heads=2, **options)
    k, v = torch.cat(batch.contexts).view(-1, 2, 2, 8).unbind(1)
    want, want_lse = loop(q, k, v, **options)
    assert_matches(out, want, "attention")
    assert_matches(lse, want_lse, "lse")
    dense = attention_prefill(q, k, v, batch.query_start, starts(LENGTHS), **options)
    assert_matches(out, dense[0], "attention")


def test_paged_in_blocks_and_in_bf16(monkeypatch):
    batch = paged_batch(gqa_record(2, 8, "fp32"), COUNTS, LENGTHS, page_size=4)
    q = torch.randn(T, 6, 8)
    options = {"num_kv_heads": 2, "scale": 0.6, "window": 4}
    whole, lse = attention_paged(q, batch.cache, *batch.metadata, **options)
    half, half_lse = attention_paged(q.bfloat16(), batch.cache, *batch.metadata, **options)
    want = attention_paged_reference(q.bfloat16(), batch.cache, *batch.metadata, **options)
    assert half.dtype == torch.bfloat16 and half_lse.dtype == torch.float32
    assert torch.equal(half, want[0].bfloat16()) and want[0].dtype == torch.float32
    monkeypatch.setattr(ragged, "SCRATCH_BYTES", 1)
    again = attention_paged(q, batch.cache, *batch.metadata, **options)
    assert_matches(again[0], whole, "attention")
    assert_matches(again[1], lse, "elementwise")


def test_pages_that_the_window_left_behind_are_not_looked_at():
    batch = paged_batch(gqa_record(1, 4, "fp32"), [2], [20], page_size=4)
    q = torch.randn(2, 2, 4)
    options = {"num_kv_heads": 1, "scale": 1.0, "window": 6}  # rows 18, 19 see keys 13..19
    want = attention_paged(q, batch.cache, *batch.metadata, **options)
    table = batch.block_table.clone()
    table[0, :3] = ints(GARBAGE, -1, GARBAGE)  # keys 0..11
    got = attention_paged(q, batch.cache, *batch.metadata[:2], table, **options)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    with pytest.raises(BadInput, match="reads pages"):
        attention_paged(q, batch.cache, *batch.metadata[:2], table, **options | {"window": 8})


def test_requests_without_query_rows_are_not_looked_at():
    batch = paged_batch(gqa_record(1, 4, "fp32"), [0, 2, 0], [9, 5, 3], page_size=4)
    q = torch.randn(2, 2, 4)
    want = attention_paged(q, batch.cache, *batch.metadata, num_kv_heads=1, scale=1.0)
    table = batch.block_table.clone()
    table[0], table[2] = GARBAGE, -1
    got = attention_paged(q, batch.cache, *batch.metadata[:2], table, num_kv_heads=1, scale=1.0)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_empty_batches():
    record = gqa_record(2, 8, "fp32")
    for pages in (0, 2):
        cache = PagedCache.allocate(record, pages, 4)
        table = torch.zeros(0, 3, dtype=torch.int32)
        out, lse = attention_paged(
            torch.randn(0, 4, 8), cache, ints(0), ints(), table, num_kv_heads=2, scale=1.0
        )
        assert out.shape == (0, 4, 8) and lse.shape == (0, 4)
        out, lse = attention_paged(
            torch.randn(1, 4, 8),
            cache,
            ints(0, 0, 1),
            ints(0, 0),
            torch.full((2, 1), GARBAGE),
            num_kv_heads=2,
            scale=1.0,
            sink=torch.tensor([-math.inf, math.inf, 0.0, 1.0]),
        )
        assert (out == 0).all() and lse.isposinf().all()
    none = torch.randn(0, 2, 8)
    out, lse = attention_prefill(torch.randn(0, 4, 8), none, none, ints(0), ints(0), scale=1.0)
    assert out.shape == (0, 4, 8) and lse.shape == (0, 4)


def test_prefill_errors():
    q, k, v, query_start, key_start = ragged_qkv(4, 2, 8, 6)

    def refuse(text, *, q=q, k=k, v=v, a=query_start, b=key_start, **options):
        with pytest.raises(BadInput, match=text):
            attention_prefill(q, k, v, a, b, scale=1.0, **options)

    refuse(r"q is float32 \[15, 32\], want float \[T, heads, head_dim\]", q=q.flatten(1))
    refuse(r"q is int64 .*want float", q=q.long())
    refuse(r"4 query heads over 3 key heads; want a multiple", k=k.new_zeros(S, 3, 8))
    refuse(r"4 query heads over 0 key heads", k=k.new_zeros(S, 0, 8))
    refuse(r"k is float32 \[29, 2, 7\].*want \[S, Hk, 8\]", k=k[..., :7])
    refuse(r"v is float32 \[28, 2, 6\]", v=v[:-1])
    refuse(r"v is float32 \[29, 12\]", v=v.flatten(1))
    refuse(r"sink is float32 \[3\], want \[4\]", sink=torch.zeros(3))
    refuse(r"window is 0 with causal=True; want at least 1", window=0)
    refuse(r"window is 4 with causal=False", window=4, causal=False)
    refuse(r"query_start is float32 \[7\], want int32", a=query_start.float())
    refuse(r"key_start is int32 \[1, 7\], want int32", b=key_start[None])
    refuse(r"query_start is int32 \[6\], key_start is int32 \[7\]", a=query_start[1:])
    refuse(r"want \[B\+1\] both", a=ints(), b=ints())
    refuse(r"query_start is .*climb from 0 to the 15 rows", a=query_start + 1)
    refuse(r"query_start is .*climb from 0 to the 15 rows", a=ints(0, 1, 2, 3, 4, 5, 6))
    refuse(r"query_start is \[0, 9, 3,.*climb", a=ints(0, 9, 3, 4, 5, 6, 15))
    refuse(r"key_start is .*climb from 0 to the 29 rows", b=key_start - 1)
    refuse(r"key_start is \[2, 3,.*climb from 0", b=ints(2, 3, 7, 16, 27, 27, 29))


def test_paged_errors():
    batch = paged_batch(gqa_record(2, 8, "fp32"), [1, 1], [5, 5], page_size=4)
    q, (a, lens, table) = torch.randn(2, 4, 8), batch.metadata

    def refuse(text, *, q=q, a=a, lens=lens, table=table, num_kv_heads=2, **options):
        options = {"scale": 1.0, "num_kv_heads": num_kv_heads} | options
        with pytest.raises(BadInput, match=text):
            attention_paged(q, batch.cache, a, lens, table, **options)

    refuse(r"width 64; gqa_fp32_2x8 has width 32", num_kv_heads=4)
    refuse(r"4 query heads over 3 key heads", num_kv_heads=3)
    refuse(r"over 0 key heads", num_kv_heads=0)
    refuse(r"sink is float32 \[2\], want \[4\]", sink=torch.zeros(2))
    refuse(r"window is -1", window=-1)
    refuse(r"query_start \[3\], context_lens \[1\], block_table \[2, 4\]", lens=lens[:1])
    refuse(r"block_table \[1, 4\]; want \[B\+1\], \[B\], \[B, pages\]", table=table[:1])
    refuse(r"query_start \[2\], context_lens \[2\]", a=a[:2])
    refuse(r"context_lens is int16 \[2\]", lens=lens.short())
    refuse(r"climb from 0 to the 2 rows", a=ints(0, 1, 3))
    refuse(r"context_lens is \[5, -5\], want no length below 0", lens=ints(5, -5))
    refuse(r"request 0 has 5 keys on 2 pages of 4.*has 1 entries", table=table[:, :1])
    refuse(r"request 1 reads pages", lens=ints(5, 9))


def test_nothing_serves_another_device_unless_asked():
    q = torch.empty(1, 1, 8, device="meta")
    with pytest.raises(Unsupported, match="attention_prefill: nothing serves this call"):
        attention_prefill(q, q, q, ints(0, 1), ints(0, 1), scale=1.0)
    cache = PagedCache.allocate(gqa_record(1, 8, "fp32"), 1, 1)
    table = ints(0)[None]
    with pytest.raises(Unsupported, match="attention_paged: nothing serves this call"):
        attention_paged(q, cache, ints(0, 1), ints(1), table, num_kv_heads=1, scale=1.0)
    with pytest.raises(BadInput, match="backend is 'cuda'"):
        attention_paged(
            q, cache, ints(0, 1), ints(1), table, num_kv_heads=1, scale=1.0, backend="cuda"
        )
