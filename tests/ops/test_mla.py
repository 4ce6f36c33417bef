"""mla_paged and mla_sparse against one key at a time, against each other, and against plain MHA."""

import math

import pytest
import torch

from paged import GARBAGE, brute_force, ints, paged_batch, poisoned_cache, rows_of, seen, starts
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops import ragged
from sparkwell.ops.attention import attention_prefill
from sparkwell.ops.cache import cache_write
from sparkwell.ops.indexer import logical_to_physical
from sparkwell.ops.mla import mla_paged, mla_paged_reference, mla_sparse, mla_sparse_reference
from sparkwell.testing import assert_matches, in_poison

COUNTS, LENGTHS = [3, 0, 5, 1, 2, 4], [3, 4, 9, 11, 0, 2]  # the last two: rows before position 0
T = sum(COUNTS)
SMALL = latent_record("fp32", kv_lora_rank=12, rope_dim=4)
INVALID = [-(2**31), -123456, -1, 96, 97, 114514, 2**31 - 1]  # of a cache of 96 slots


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loop(q, contexts, scale, d_v):
    out, lse = torch.zeros(T, q.shape[1], d_v), torch.zeros(T, q.shape[1])
    for row, i, position in rows_of(starts(COUNTS), LENGTHS):
        kv = contexts[i][:, None]
        visible = seen(position, LENGTHS[i])
        out[row], lse[row], _ = brute_force(q[row], kv, kv[..., :d_v], visible, scale)
    return out, lse


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("page_size", [1, 4, 64])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_paged_against_a_loop_over_keys(dtype, page_size, heads):
    batch = paged_batch(latent_record(dtype), COUNTS, LENGTHS, page_size=page_size)
    q = in_poison(torch.randn(T, heads, 576))
    out, lse = mla_paged(q, batch.cache, *batch.metadata, scale=0.06)
    want, want_lse = loop(q, batch.contexts, 0.06, 512)
    assert_matches(out, want, "attention")
    assert_matches(lse, want_lse, "lse")
    assert lse.isposinf().sum() == 4 * heads  # two rows of request 4, two of request 5


@pytest.mark.parametrize("d_v", [1, 12, 16])
def test_paged_returns_the_leading_part(d_v):
    batch = paged_batch(SMALL, COUNTS, LENGTHS, page_size=3)
    q = in_poison(torch.randn(T, 5, 16))
    out, lse = mla_paged(q, batch.cache, *batch.metadata, scale=0.4, d_v=d_v)
    want, want_lse = loop(q, batch.contexts, 0.4, d_v)
    assert_matches(out, want, "attention")
    assert_matches(lse, want_lse, "lse")


def test_peaked_scores():
    batch = paged_batch(SMALL, COUNTS, LENGTHS, page_size=3, integer=True)
    q = torch.randint(-20, 21, (T, 4, 16)).float()  # exact scores of a few hundred
    out, lse = mla_paged(q, batch.cache, *batch.metadata, scale=1.0, d_v=12)
    want, want_lse = loop(q, batch.contexts, 1.0, 12)
    assert want_lse[want_lse.isfinite()].max() > 90  # e^90 overflows fp32
    assert_matches(out, want, "attention")
    assert_matches(lse, want_lse, "lse")


def physical(batch, topk=11):
    """All visible positions of every row, shuffled among -1, as slots."""
    rows = rows_of(starts(COUNTS), LENGTHS)
    indices = torch.full((T, topk), -1, dtype=torch.int32)
    for row, _, position in rows:
        count = max(0, position + 1)
        indices[row, :count] = torch.arange(count)
        indices[row] = indices[row, torch.randperm(topk)]
    request = torch.tensor([i for _, i, _ in rows])
    return logical_to_physical(indices, request, batch.block_table, page_size=batch.cache.page_size)


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_sparse_with_all_indices_is_dense(dtype):
    batch = paged_batch(latent_record(dtype), COUNTS, LENGTHS, page_size=4)
    q = in_poison(torch.randn(T, 3, 576))
    dense, dense_lse = mla_paged(q, batch.cache, *batch.metadata, scale=0.06)
    out, lse, _ = mla_sparse(q, batch.cache, in_poison(physical(batch)), scale=0.06)
    assert_matches(out, dense, "attention")
    assert_matches(lse, dense_lse, "elementwise")


def sparse_case(record, page_size=4, topk=9):
    """A cache of 96 slots, NaN where no row looks; slots of every invalid kind, duplicates."""
    cache = poisoned_cache(record, 96 // page_size, page_size)
    live = torch.randperm(96)[:20]
    cache.write(live, torch.randn(20, record.width))
    slots = live[torch.randint(0, 20, (8, topk))].int()
    slots[0, :4] = slots[0, 4]  # five times the same
    slots[1] = ints(*INVALID, *INVALID)[:topk]  # none valid
    slots[2, :7] = ints(*INVALID)
    slots[3, 1:] = GARBAGE
    slots[4, ::2] = -1
    slots[:, 7] = -1  # a column that no row uses, with used ones after it
    return cache, slots


def sparse_loop(q, cache, slots, scale, d_v, lengths=None, sink=None):
    out = torch.zeros(*q.shape[:2], d_v)
    lse, top = torch.zeros(q.shape[:2]), torch.zeros(q.shape[:2])
    for row, listed in enumerate(slots.tolist()):
        counted = listed if lengths is None else listed[: max(0, int(lengths[row]))]
        valid = [s for s in counted if 0 <= s < 96]
        kv = cache.read(torch.tensor(valid, dtype=torch.int64))[:, None]
        out[row], lse[row], top[row] = brute_force(
            q[row], kv, kv[..., :d_v], range(len(valid)), scale, sink
        )
    return out, lse, top


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("with_length", [False, True])
@pytest.mark.parametrize("with_sink", [False, True])
def test_sparse_against_a_loop_over_slots(dtype, with_length, with_sink):
    cache, slots = sparse_case(latent_record(dtype))
    q, slots = in_poison(torch.randn(8, 4, 576)), in_poison(slots)
    lengths = in_poison(ints(3, 9, 8, 1, 5, 0, -4, GARBAGE)) if with_length else None
    sink = torch.tensor([-math.inf, math.inf, 0.5, -2.0]) if with_sink else None
    options = {"topk_length": lengths, "sink": sink}
    got = mla_sparse(q, cache, slots, scale=0.06, **options)
    want = sparse_loop(q, cache, slots, 0.06, 512, lengths, sink)
    assert_matches(got[0], want[0], "attention")
    assert_matches(got[1], want[1], "lse")
    assert_matches(got[2], want[2], "attention", label="max_logits")
    assert (got[0][1] == 0).all() and got[1][1].isposinf().all() and got[2][1].isneginf().all()
    if with_length:
        assert got[1][5:7].isposinf().all()


@pytest.mark.parametrize("budget", [1, 3000, 6000])
def test_sparse_and_paged_in_blocks(monkeypatch, budget):
    cache, slots = sparse_case(SMALL)
    batch = paged_batch(SMALL, COUNTS, LENGTHS, page_size=3)
    q = torch.randn(T, 3, 16)
    sparse = mla_sparse(q[:8], cache, slots, scale=0.3, d_v=12)
    dense = mla_paged(q, batch.cache, *batch.metadata, scale=0.3, d_v=12)
    monkeypatch.setattr(ragged, "SCRATCH_BYTES", budget)
    for got, want in zip(
        (
            *mla_sparse(q[:8], cache, slots, scale=0.3, d_v=12),
            *mla_paged(q, batch.cache, *batch.metadata, scale=0.3, d_v=12),
        ),
        (*sparse, *dense),
        strict=True,
    ):
        assert_matches(got, want, "attention")


def test_a_slot_listed_twice_counts_twice():
    cache = PagedCache.allocate(SMALL, 1, 4)
    values = torch.zeros(2, 16)
    values[:, 0] = torch.tensor([1.0, 4.0])
    cache_write(cache, torch.tensor([2, 3]), values)
    q = torch.zeros(1, 1, 16)
    out, lse, top = mla_sparse(q, cache, ints(2, 2, 3)[None], scale=1.0, d_v=1)
    assert out.item() == pytest.approx(2.0) and lse.item() == pytest.approx(math.log(3))
    assert top.item() == 0
    out, lse, top = mla_sparse(q + 0.5, cache, ints(2, 2, 3)[None], scale=2.0, d_v=1)
    assert top.item() == 4.0  # the scale is in it: 2 * 0.5 * 4
    assert lse.item() == pytest.approx(math.log(2 * math.e + math.exp(4)))


def test_a_nan_stays_in_the_rows_that_list_it():
    cache = PagedCache.allocate(SMALL, 2, 4)
    cache_write(cache, torch.arange(8), torch.randn(8, 16))
    q, slots = torch.randn(3, 2, 16), ints(5, 1, 2, 3, -1, -1, -1, 4, 2).view(3, 3)
    clean = mla_sparse(q, cache, slots, scale=0.3, d_v=12)
    cache_write(cache, torch.tensor([5]), torch.full((1, 16), math.nan))
    got = mla_sparse(q, cache, slots, scale=0.3, d_v=12)
    assert got[0][0].isnan().all()
    for x, want in zip(got, clean, strict=True):
        assert torch.equal(x[1:], want[1:])


def test_halves_merge_by_lse():
    cache, slots = sparse_case(latent_record("fp32"))
    q = torch.randn(8, 4, 576)
    whole, whole_lse, _ = mla_sparse(q, cache, slots, scale=0.06)
    parts = [mla_sparse(q, cache, s, scale=0.06) for s in (slots[:, :4], slots[:, 4:])]
    lses = torch.stack([p[1] for p in parts])
    lses = torch.where(lses.isposinf(), -math.inf, lses)  # an empty half weighs nothing
    lse = lses.logsumexp(0)
    out = sum(
        p[0] * (s - lse).exp().nan_to_num()[..., None] for p, s in zip(parts, lses, strict=True)
    )
    assert_matches(out, whole, "attention")
    assert_matches(torch.where(lse.isneginf(), math.inf, lse), whole_lse, "lse")


@pytest.mark.parametrize("dn, dv", [(128, 128), (192, 256)])  # DeepSeek's heads, GLM-5's
def test_absorbed_is_expanded(dn, dv):
    heads, rank, rope = 4, 512, 64
    w_kvb = torch.randn(heads, dn + dv, rank) * rank**-0.5
    w_uk, w_uv = w_kvb[:, :dn], w_kvb[:, dn:]
    batch = paged_batch(latent_record("fp32"), COUNTS, LENGTHS, page_size=4)
    q_nope, q_rope = torch.randn(T, heads, dn), torch.randn(T, heads, rope)
    scale = (dn + rope) ** -0.5

    q = torch.cat([torch.einsum("thn,hnc->thc", q_nope, w_uk), q_rope], -1)
    latent, lse = mla_paged(q, batch.cache, *batch.metadata, scale=scale)
    absorbed = torch.einsum("thc,hvc->thv", latent, w_uv)

    c, k_rope = torch.cat(batch.contexts).split([rank, rope], -1)
    k = torch.einsum("sc,hnc->shn", c, w_uk)
    k = torch.cat([k, k_rope[:, None].expand(-1, heads, -1)], -1)
    v = torch.einsum("sc,hvc->shv", c, w_uv)
    q = torch.cat([q_nope, q_rope], -1)
    edges = batch.query_start, starts(LENGTHS)
    expanded, expanded_lse = attention_prefill(q, k, v, *edges, scale=scale)
    assert_matches(absorbed, expanded, "attention")
    assert_matches(lse, expanded_lse, "lse")


def test_computed_in_fp32_answered_in_the_query_dtype():
    batch = paged_batch(latent_record("fp8"), COUNTS, LENGTHS, page_size=4)
    q = torch.randn(T, 3, 576).bfloat16()
    out, lse = mla_paged(q, batch.cache, *batch.metadata, scale=0.06)
    want, want_lse = mla_paged_reference(q.float(), batch.cache, *batch.metadata, scale=0.06)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert torch.equal(out, want.bfloat16()) and torch.equal(lse, want_lse)
    slots = physical(batch)
    out, lse, top = mla_sparse(q, batch.cache, slots, scale=0.06)
    want, want_lse, want_top = mla_sparse_reference(q.float(), batch.cache, slots, scale=0.06)
    assert out.dtype == torch.bfloat16 and {lse.dtype, top.dtype} == {torch.float32}
    assert torch.equal(out, want.bfloat16())
    assert torch.equal(lse, want_lse) and torch.equal(top, want_top)


def test_empty_batches_and_caches():
    for pages in (0, 3):
        cache = PagedCache.allocate(SMALL, pages, 4)
        none = torch.zeros(0, 2, dtype=torch.int32)
        out, lse = mla_paged(torch.randn(0, 2, 16), cache, ints(0), ints(), none, scale=1.0, d_v=4)
        assert out.shape == (0, 2, 4) and lse.shape == (0, 2)
        table = torch.full((2, 1), GARBAGE)
        batch = ints(0, 2, 2), ints(0, 0), table
        out, lse = mla_paged(torch.randn(2, 2, 16), cache, *batch, scale=1.0, d_v=4)
        assert (out == 0).all() and lse.isposinf().all()
        for q, slots in (
            (torch.randn(0, 2, 16), torch.zeros(0, 5, dtype=torch.int32)),
            (torch.randn(3, 2, 16), torch.zeros(3, 0, dtype=torch.int32)),
            (torch.randn(3, 2, 16), torch.full((3, 7), 12, dtype=torch.int32)),  # one past the end
        ):
            out, lse, top = mla_sparse(q, cache, slots, scale=1.0, d_v=4, sink=torch.ones(2))
            assert out.shape == (len(q), 2, 4) and (out == 0).all()
            assert lse.isposinf().all() and top.isneginf().all()


def test_slots_are_computed_in_64_bits():
    record = latent_record("fp32", kv_lora_rank=2, rope_dim=0)
    one = torch.ones(1, record.page_nbytes(64), dtype=torch.uint8)
    cache = PagedCache(record, 64, one.expand(40_000_000, -1))  # 2.56e9 slots on 512 bytes
    q = torch.ones(1, 1, 2)
    _, lse = mla_paged(q, cache, ints(0, 1), ints(64), ints(39_999_999)[None], scale=1.0, d_v=2)
    assert lse.item() == pytest.approx(math.log(64))
    slots = torch.tensor([[2_559_999_999, 2_560_000_000]])
    _, lse, _ = mla_sparse(q, cache, slots, scale=1.0, d_v=2)
    assert lse.item() == pytest.approx(0.0)  # one of the two is there


def test_paged_errors():
    batch = paged_batch(SMALL, [1, 1], [5, 5], page_size=4)
    q, (a, lens, table) = torch.randn(2, 3, 16), batch.metadata

    def refuse(text, *, q=q, a=a, lens=lens, table=table, d_v=12):
        with pytest.raises(BadInput, match=text):
            mla_paged(q, batch.cache, a, lens, table, scale=1.0, d_v=d_v)

    refuse(r"q is float32 \[2, 3, 15\], want float \[T, heads, 16\] for record", q=q[..., 1:])
    refuse(r"q is float32 \[2, 48\]", q=q.flatten(1))
    refuse(r"q is int32 ", q=q.int())
    refuse(r"d_v is 17, want 1..16", d_v=17)
    refuse(r"d_v is 0, want 1..16", d_v=0)
    refuse(r"mla_paged: query_start is float32", a=a.float())
    refuse(r"want \[B\+1\], \[B\], \[B, pages\]", lens=lens[:1])
    refuse(r"climb from 0 to the 2 rows", a=ints(0, 1, 1))
    refuse(r"want no length below 0", lens=ints(-1, 5))
    refuse(r"widen the table", table=table[:, :1])
    refuse(r"reads pages", lens=ints(5, 9))


def test_sparse_errors():
    cache, slots = sparse_case(SMALL)
    q = torch.randn(8, 3, 16)

    def refuse(text, *, q=q, slots=slots, d_v=12, **options):
        with pytest.raises(BadInput, match=text):
            mla_sparse(q, cache, slots, scale=1.0, d_v=d_v, **options)

    refuse(r"mla_sparse: q is float32 \[8, 3, 12\], want float \[T, heads, 16\]", q=q[..., :12])
    refuse(r"d_v is 17, want 1..16", d_v=17)
    refuse(r"slots is float32 \[8, 9\], want int32 .*2 dimensions", slots=slots.float())
    refuse(r"slots is int32 \[72\]", slots=slots.flatten())
    refuse(r"slots is int32 \[7, 9\], want \[8, topk\]", slots=slots[1:])
    refuse(r"topk_length is int32 \[3\], want \[8\]", topk_length=ints(1, 2, 3))
    refuse(r"topk_length is float32 \[8\], want int32 .*1 dimension$", topk_length=torch.ones(8))
    refuse(r"sink is float32 \[8\], want \[3\], one per head", sink=torch.ones(8))


def test_nothing_serves_another_device_unless_asked():
    cache = PagedCache.allocate(SMALL, 1, 1)
    q, slot = torch.empty(1, 1, 16, device="meta"), ints(0)[None]
    with pytest.raises(Unsupported, match="mla_paged: nothing serves this call"):
        mla_paged(q, cache, ints(0, 1), ints(1), slot, scale=1.0, d_v=12)
    with pytest.raises(Unsupported, match="mla_sparse: nothing serves this call"):
        mla_sparse(q, cache, slot, scale=1.0, d_v=12)
    with pytest.raises(BadInput, match="backend is 'cuda'"):
        mla_sparse(q, cache, slot, scale=1.0, d_v=12, backend="cuda")
