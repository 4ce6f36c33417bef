"""cache_write and cache_gather: the right bytes, and no other."""

import pytest
import torch

from paged import GARBAGE, ints, paged_batch, poisoned_cache
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import gqa_record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.cache import cache_gather, cache_write, index_key_write, latent_write
from sparkwell.testing import assert_matches, in_poison

RECORDS = [
    latent_record("fp32", kv_lora_rank=12, rope_dim=4),
    latent_record("fp8"),
    index_key_record("fp8"),
    gqa_record(2, 8, "bf16"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_write_stores_rows_and_leaves_all_other_bytes_alone(record):
    cache = poisoned_cache(record, 4, 3)
    values = in_poison(torch.randn(4, record.width))
    cache_write(cache, in_poison(torch.tensor([7, -1, 0, 11])), values)
    want = record.unpack(record.pack(values[[0, 2, 3]]))
    assert_matches(cache.read(torch.tensor([7, 0, 11])), want, "elementwise")
    others = torch.tensor([1, 2, 3, 4, 5, 6, 8, 9, 10])
    assert cache.read(others).isnan().all()


def test_write_of_nothing():
    cache = poisoned_cache(RECORDS[0], 2, 3)
    before = cache.pages.clone()
    cache_write(cache, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 16))
    cache_write(cache, torch.full((3,), -1), torch.randn(3, 16))
    assert torch.equal(cache.pages, before)


def test_write_refuses_slots_that_are_not_there_and_writes_nothing():
    cache = poisoned_cache(RECORDS[0], 2, 3)
    for slot in (6, -2, GARBAGE):
        with pytest.raises(BadInput, match=rf"slot {slot} .*want 0 <= slot < 6"):
            cache_write(cache, torch.tensor([0, slot]), torch.randn(2, 16))
    with pytest.raises(BadInput, match=r"float \[n, 16\]"):
        cache_write(cache, torch.tensor([0]), torch.randn(1, 15))
    assert (cache.pages == 255).all()


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
@pytest.mark.parametrize("page_size", [1, 3, 8])
def test_gather_lays_contexts_end_to_end(record, page_size):
    batch = paged_batch(record, [0] * 5, [8, 9, 0, 1, 16], page_size=page_size)
    values, key_start = cache_gather(batch.cache, batch.context_lens, batch.block_table)
    assert values.dtype == torch.float32 and key_start.dtype == torch.int32
    assert key_start.tolist() == [0, 8, 17, 17, 18, 34]
    assert torch.equal(values, torch.cat(batch.contexts))


def test_gather_of_no_request_and_of_an_empty_cache():
    cache = PagedCache.allocate(RECORDS[0], 0, 4)
    none = torch.zeros(0, 0, dtype=torch.int32)
    values, key_start = cache_gather(cache, ints(), none)
    assert values.shape == (0, 16) and key_start.tolist() == [0]
    values, key_start = cache_gather(cache, ints(0, 0), torch.full((2, 1), GARBAGE))
    assert values.shape == (0, 16) and key_start.tolist() == [0, 0, 0]


def test_slots_are_computed_in_64_bits():
    record = latent_record("fp32", kv_lora_rank=2, rope_dim=0)
    one = torch.zeros(1, record.page_nbytes(64), dtype=torch.uint8)
    cache = PagedCache(record, 64, one.expand(40_000_000, -1))  # 2.56e9 slots on 512 bytes
    values, _ = cache_gather(cache, ints(64), ints(39_999_999)[None])
    assert values.shape == (64, 2) and not values.any()


def test_gather_errors():
    batch = paged_batch(RECORDS[0], [0, 0], [5, 5], page_size=4)
    cache, lens, table = batch.cache, batch.context_lens, batch.block_table
    cases = [
        (lens, table[:, :1], r"request 0 has 5 keys on 2 pages of 4.* has 1 entries; widen"),
        (ints(5, 9), table, rf"request 1 reads pages \[.*{GARBAGE}\], the cache has 7; give it"),
        (ints(5, -1), table, r"context_lens is \[5, -1\], want no length below 0"),
        (lens.float(), table, r"context_lens is float32 \[2\], want int32 .*1 dimension"),
        (lens, table[0], r"block_table is int32 \[4\], want int32 .*2 dimensions"),
        (lens, table[:1], r"block_table is \[1, 4\] for 2 context_lens, want one row"),
    ]
    for bad_lens, bad_table, text in cases:
        with pytest.raises(BadInput, match=text):
            cache_gather(cache, bad_lens, bad_table)
    with pytest.raises(BadInput, match=r"reads pages \[-1\]"):
        cache_gather(cache, ints(1), ints(-1)[None])
    with pytest.raises(BadInput, match=r"reads pages \[7\], the cache has 7"):
        cache_gather(cache, ints(1), ints(7)[None])


def test_nothing_serves_another_device_unless_asked():
    cache = PagedCache.allocate(RECORDS[0], 2, 4, "meta")
    with pytest.raises(Unsupported, match="cache_write: nothing serves this call"):
        cache_write(cache, torch.tensor([0]), torch.randn(1, 16))
    with pytest.raises(Unsupported, match="cache_gather: nothing serves this call"):
        cache_gather(cache, ints(1), ints(0)[None])
    cache = PagedCache.allocate(RECORDS[0], 2, 4)
    cache_write(cache, torch.tensor([0]), torch.ones(1, 16), backend="reference")
    assert cache_gather(cache, ints(1), ints(0)[None], backend="reference")[0].sum() == 16


def turned(x, positions, inv_freq, *, factor):
    """float64, interleaved pairs as complex numbers."""
    angles = positions.double()[:, None] * inv_freq.double()
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.full_like(angles, factor), angles)).flatten(
        -2
    )


def test_latents_are_normed_and_keys_turned():
    cache = poisoned_cache(RECORDS[0], 2, 3)
    x, weight = torch.randn(3, 16), torch.randn(12)
    positions, inv_freq = torch.tensor([0, 5, 77]), torch.tensor([1.0, 0.1])
    options = {"eps": 0.1, "attention_factor": 1.5, "interleaved": True}
    slots = torch.tensor([4, -1, 1])
    latent_write(cache, slots, in_poison(x), weight, positions, inv_freq, **options)
    c = x[:, :12].double()
    c = c / (c.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    k = turned(x[:, 12:], positions, inv_freq, factor=1.5)
    want = torch.cat([c, k], -1)[[0, 2]].float()
    torch.testing.assert_close(cache.read(torch.tensor([4, 1])), want, rtol=1e-5, atol=1e-5)


def test_index_keys_are_normed_whole_and_turned_in_front():
    record = index_key_record("fp32", head_dim=8)
    cache = poisoned_cache(record, 2, 3)
    x, weight, bias = torch.randn(2, 8) + 3, torch.randn(8), torch.randn(8)
    positions, inv_freq = torch.tensor([3, 40]), torch.tensor([1.0, 0.3])
    batch = (torch.tensor([5, 0]), x, weight, bias, positions, inv_freq)
    index_key_write(cache, *batch, eps=0.1, interleaved=True)
    y = x.double() - x.double().mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight + bias
    want = torch.cat([turned(y[:, :4], positions, inv_freq, factor=1.0), y[:, 4:]], -1).float()
    torch.testing.assert_close(cache.read(torch.tensor([5, 0])), want, rtol=1e-5, atol=1e-5)


def test_made_rows_refuse_shapes_that_do_not_fit():
    cache, index = poisoned_cache(RECORDS[0], 2, 3), poisoned_cache(RECORDS[2], 2, 3)
    slots, positions, inv_freq = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)
    x, weight = torch.randn(2, 16), torch.ones(12)
    good = {"slots": slots, "x": x, "weight": weight, "positions": positions, "inv_freq": inv_freq}
    for bad in (
        {"x": x[:, :15]},
        {"x": x.int()},
        {"weight": torch.ones(11)},
        {"inv_freq": torch.ones(3)},
        {"positions": positions[:1]},
        {"positions": positions.float()},
        {"slots": slots[:1]},
    ):
        with pytest.raises(BadInput, match="latent_write"):
            latent_write(cache, **(good | bad), eps=1e-6, interleaved=True)
    key = {"x": torch.randn(2, 128), "weight": torch.ones(128), "bias": torch.ones(128)}
    for bad in ({"bias": torch.ones(1)}, {"inv_freq": torch.ones(65)}, {"x": x}):
        with pytest.raises(BadInput, match="index_key_write"):
            index_key_write(index, **(good | key | bad), eps=1e-6, interleaved=True)
