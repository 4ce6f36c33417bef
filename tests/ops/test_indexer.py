"""Index scores against a loop, what FP8 changes and what it may not, and the selection itself."""

import math

import pytest
import torch

from paged import GARBAGE, ints, paged_batch, rows_of, starts
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import index_key_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops import ragged
from sparkwell.ops.indexer import index_scores_reference, index_select, quantize_index_query
from sparkwell.testing import assert_matches, in_poison

COUNTS, LENGTHS = [3, 0, 5, 1, 2, 4, 9], [3, 4, 9, 19, 0, 2, 21]
T = sum(COUNTS)
RECORDS = [
    index_key_record("fp32"),
    index_key_record("bf16"),
    index_key_record("fp8"),
    index_key_record("fp8", scale="fp32"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scores_loop(q, k, weights):
    out = torch.zeros(len(q), len(k), dtype=torch.float64)
    for t in range(len(q)):
        for s in range(len(k)):
            for h in range(q.shape[1]):
                dot = float(q[t, h].double() @ k[s].double())
                out[t, s] += float(weights[t, h]) * max(0.0, dot)
    return out.float()


def select_loop(scores, visible, topk):
    """The contract in words: all keys where they fit, else the best, ties to the lower."""
    if visible <= topk:
        kept = list(range(max(0, visible)))
    else:
        row = scores.tolist()
        kept = sorted(sorted(range(visible), key=lambda s: (-row[s], s))[:topk])
    return [*kept, *[-1] * (topk - len(kept))]


@pytest.mark.parametrize("heads, dim", [(1, 128), (5, 16), (32, 128)])
def test_scores_against_a_loop(heads, dim):
    q, k = in_poison(torch.randn(4, heads, dim)), in_poison(torch.randn(7, dim))
    weights = in_poison(torch.randn(4, heads) * (heads * dim) ** -0.5)
    got = index_scores_reference(q, k, weights)
    assert got.dtype == torch.float32
    assert_matches(got, scores_loop(q, k, weights), "indexer")
    scales = torch.rand(7) + 0.5
    scaled = index_scores_reference(q, k, weights, key_scales=scales)
    assert_matches(scaled, scores_loop(q, k * scales[:, None], weights), "indexer")


def test_scores_by_hand():
    q = torch.tensor([[[1.0, 2.0], [-1.0, 0.0]]])
    k = torch.tensor([[1.0, 1.0], [-2.0, 0.5], [-1.0, -1.0], [0.0, 0.0]])
    got = index_scores_reference(q, k, torch.tensor([[2.0, -3.0]]))
    assert got.tolist() == [[6.0, -6.0, -3.0, 0.0]]  # no key is below what a dead head gives: 0


@pytest.mark.parametrize("budget", [1, 64, 500, 5000])
def test_scores_in_blocks(monkeypatch, budget):
    q, k = torch.randint(-8, 9, (5, 3, 16)).float(), torch.randint(-8, 9, (11, 16)).float()
    weights = torch.randint(-8, 9, (5, 3)).float()
    whole = index_scores_reference(q, k, weights)
    monkeypatch.setattr(ragged, "SCRATCH_BYTES", budget)
    assert torch.equal(index_scores_reference(q, k, weights), whole)  # integers: exact


def test_scores_of_nothing():
    assert index_scores_reference(
        torch.zeros(0, 2, 8), torch.zeros(3, 8), torch.zeros(0, 2)
    ).shape == (0, 3)
    assert index_scores_reference(
        torch.zeros(2, 2, 8), torch.zeros(0, 8), torch.zeros(2, 2)
    ).shape == (2, 0)


def test_query_scales_are_powers_of_two_with_a_floor():
    q = torch.zeros(1, 4, 128)
    q[0, 0, 5] = 448.0
    q[0, 1, 5] = -449.0
    q[0, 2, :3] = torch.tensor([1e-7, -2e-5, 1e-6])
    values, scales = quantize_index_query(q)
    assert values.dtype == torch.float8_e4m3fn and values.shape == q.shape
    assert scales.tolist() == [[1.0, 2.0, 2.0**-22, 2.0**-22]]  # 1e-4 / 448 is 2^-22.1
    assert values[0, 0, 5].item() == 448.0
    assert values[0, 1, 5].item() == -224.0  # 224.5 lies between 224 and 240
    assert values[0, 2, :3].tolist() == [0.40625, -80.0, 4.0]  # steps of 8 there: 83.9 -> 80


def test_an_fp8_cache_scores_as_the_kernel_will():
    """Scale after the head sum, as an FP8 kernel does it: bit for bit, for powers of two."""
    batch = paged_batch(RECORDS[2], [0], [40], page_size=8)
    keys = batch.contexts[0]
    amax = keys.abs().amax(-1, keepdim=True)
    scales = torch.exp2(torch.log2(amax / 448).ceil())
    e4m3 = (keys / scales).to(torch.float8_e4m3fn)
    assert torch.equal(e4m3.float() * scales, keys)
    q, weights = torch.randn(6, 8, 128), torch.randn(6, 8)
    values, q_scales = quantize_index_query(q)
    folded = weights * q_scales
    kernel = index_scores_reference(values, e4m3, folded, key_scales=scales[:, 0])
    assert torch.equal(kernel, index_scores_reference(values, keys, folded))
    dequantized = values.float() * q_scales[..., None]
    assert_matches(kernel, index_scores_reference(dequantized, keys, weights), "indexer")


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.name}-{r.parts[0].pow2}")
@pytest.mark.parametrize("fp8_query", [False, True])
@pytest.mark.parametrize("topk", [1, 4, 8, 20, 64])
def test_selection_against_a_loop(record, fp8_query, topk):
    batch = paged_batch(record, COUNTS, LENGTHS, page_size=5)
    q, weights = in_poison(torch.randn(T, 6, 128)), in_poison(torch.randn(T, 6))
    got = index_select(q, weights, batch.cache, *batch.metadata, topk=topk, fp8_query=fp8_query)
    assert got.dtype == torch.int32 and got.shape == (T, topk)
    read = q
    if fp8_query:
        values, scales = quantize_index_query(q)
        read = values.float() * scales[..., None]
    for row, i, position in rows_of(starts(COUNTS), LENGTHS):
        keys = batch.contexts[i]
        scores = index_scores_reference(read[row : row + 1].double(), keys, weights[row : row + 1])
        assert got[row].tolist() == select_loop(scores[0], position + 1, topk), f"row {row}"


@pytest.mark.parametrize("budget", [1, 90, 2000])
def test_selection_in_blocks(monkeypatch, budget):
    batch = paged_batch(RECORDS[0], COUNTS, LENGTHS, page_size=5, integer=True)
    q, weights = torch.randint(-2, 3, (T, 2, 128)).float(), torch.randint(-1, 2, (T, 2)).float()
    run = lambda: index_select(q, weights, batch.cache, *batch.metadata, topk=4, fp8_query=False)  # noqa: E731
    whole = run()
    monkeypatch.setattr(ragged, "SCRATCH_BYTES", budget)
    assert torch.equal(run(), whole)


def test_fp8_moves_few_choices():
    """DeepSeek's format against exact scores: at least 0.97 of the choices stay, on average."""
    length, rows, topk = 384, 64, 128
    keys = torch.randn(length, 128)
    q, weights = torch.randn(rows, 32, 128), torch.randn(rows, 32)
    picked = []
    for record, fp8_query in ((RECORDS[0], False), (RECORDS[2], True)):
        cache = PagedCache.allocate(record, 6, 64)
        cache.write(torch.arange(length), keys)
        table = torch.arange(6)[None].int()
        batch = ints(0, rows), ints(length), table
        chosen = index_select(q, weights, cache, *batch, topk=topk, fp8_query=fp8_query)
        picked.append([set(row) for row in chosen.tolist()])
    overlap = [len(a & b) / topk for a, b in zip(*picked, strict=True)]
    assert sum(overlap) / rows >= 0.97
    assert min(overlap) < 1  # and the two were not computed the same way


def test_a_row_that_sees_few_keys_takes_all_without_scoring():
    batch = paged_batch(RECORDS[0], [2], [7], page_size=4)
    q, weights = torch.full((2, 3, 128), math.nan), torch.randn(2, 3)
    lost = torch.full_like(batch.block_table, GARBAGE)  # no key can be read
    got = index_select(q, weights, batch.cache, *batch.metadata[:2], lost, topk=7, fp8_query=False)
    assert got.tolist() == [[0, 1, 2, 3, 4, 5, -1], [0, 1, 2, 3, 4, 5, 6]]
    with pytest.raises(BadInput, match="reads pages"):
        index_select(q, weights, batch.cache, *batch.metadata[:2], lost, topk=6, fp8_query=False)


def test_a_nan_key_is_never_kept_where_keys_are_scored():
    batch = paged_batch(RECORDS[0], [1], [9], page_size=16)
    slot = int(batch.block_table[0, 0]) * 16 + 3
    q, weights = torch.randn(1, 3, 128), torch.randn(1, 3)
    batch.cache.write(torch.tensor([slot]), torch.full((1, 128), math.nan))
    got = index_select(q, weights, batch.cache, *batch.metadata, topk=8, fp8_query=False)
    assert got.tolist() == [[0, 1, 2, 4, 5, 6, 7, 8]]


def test_ties_at_zero_go_to_the_lower_position():
    cache = PagedCache.allocate(RECORDS[2], 2, 8)
    cache.write(torch.arange(16), -torch.ones(16, 128))
    cache.write(torch.tensor([9]), torch.ones(1, 128))
    q, weights = torch.ones(1, 2, 128), torch.ones(1, 2)
    batch = ints(0, 1), ints(16), ints(0, 1)[None]
    got = index_select(q, weights, cache, *batch, topk=4, fp8_query=True)
    assert got.tolist() == [[0, 1, 2, 9]]
    got = index_select(q, -weights, cache, *batch, topk=12, fp8_query=True)  # 0 beats -256
    assert got.tolist() == [[*range(9), 10, 11, 12]]


def test_empty_batches():
    cache = PagedCache.allocate(RECORDS[0], 0, 4)
    none = torch.zeros(0, 2, 128), torch.zeros(0, 2)
    table = torch.zeros(0, 0, dtype=torch.int32)
    got = index_select(*none, cache, ints(0), ints(), table, topk=3, fp8_query=True)
    assert got.shape == (0, 3)
    table = torch.full((2, 1), GARBAGE)
    one = torch.ones(1, 2, 128), torch.ones(1, 2)
    got = index_select(*one, cache, ints(0, 0, 1), ints(0, 0), table, topk=3, fp8_query=True)
    assert got.tolist() == [[-1, -1, -1]]


def test_errors():
    batch = paged_batch(RECORDS[0], [1, 1], [5, 5], page_size=4)
    q, weights, (a, lens, table) = torch.randn(2, 3, 128), torch.randn(2, 3), batch.metadata

    def refuse(text, *, q=q, weights=weights, a=a, lens=lens, table=table, topk=2):
        with pytest.raises(BadInput, match=text):
            index_select(q, weights, batch.cache, a, lens, table, topk=topk, fp8_query=False)

    refuse(r"q is float32 \[2, 3, 64\], want float \[T, heads, 128\] for record", q=q[..., :64])
    refuse(r"q is float32 \[2, 384\]", q=q.flatten(1))
    refuse(r"q is int64 ", q=q.long())
    refuse(r"weights is float32 \[2, 2\], want \[2, 3\]", weights=weights[:, :2])
    refuse(r"topk is 0, want at least 1", topk=0)
    refuse(r"index_select: context_lens is float32", lens=lens.float())
    refuse(r"want \[B\+1\], \[B\], \[B, pages\]", table=table[:1])
    refuse(r"climb from 0 to the 2 rows", a=ints(0, 2, 1))
    refuse(r"want no length below 0", lens=ints(5, -5))
    refuse(r"widen the table", table=table[:, :1])
    refuse(r"reads pages", lens=ints(5, 9))


def test_nothing_serves_another_device_unless_asked():
    cache = PagedCache.allocate(RECORDS[0], 1, 1)
    q, table = torch.empty(1, 1, 128, device="meta"), ints(0)[None]
    with pytest.raises(Unsupported, match="index_select: nothing serves this call"):
        index_select(q, q[..., 0], cache, ints(0, 1), ints(1), table, topk=1, fp8_query=False)
