"""Pages of records: where bytes land, which stay untouched, strides, and far addresses."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkwell.errors import BadInput
from sparkwell.formats.kv import Record, gqa_record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.testing import in_poison

SMALL = {
    "latent_bf16": latent_record("bf16", kv_lora_rank=8, rope_dim=4),
    "latent_fp8": latent_record("fp8", kv_lora_rank=128, rope_dim=2),
    "index_fp8": index_key_record("fp8", head_dim=8),
    "gqa_fp32": gqa_record(2, 4, "fp32"),
    "gqa_fp8": gqa_record(2, 4, "fp8"),
}
every_record = pytest.mark.parametrize("record", SMALL.values(), ids=SMALL)


def tokens(record: Record, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, record.width, generator=torch.Generator().manual_seed(seed))


def strided(record: Record, num_pages: int, page_size: int, fill: int = 0xFF) -> PagedCache:
    """Pages with 8 foreign bytes on both sides of each."""
    size = record.page_nbytes(page_size)
    base = torch.full((num_pages, size + 16), fill, dtype=torch.uint8)
    cache = PagedCache(record, page_size, base[:, 8 : 8 + size])
    cache.pages.zero_()
    return cache


def own_bytes(cache: PagedCache, slot: int) -> set[tuple[int, int]]:
    """(page, byte) of all a slot owns, from the layout's definition."""
    page, offset = divmod(slot, cache.page_size)
    record = cache.record
    if not record.planar:
        start = offset * record.nbytes
        return {(page, start + i) for i in range(record.nbytes)}
    owned = set()
    for field in record.fields:
        start = cache.page_size * field.offset + offset * field.nbytes
        owned |= {(page, start + i) for i in range(field.nbytes)}
    return owned


@every_record
@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_what_is_written_is_what_is_read(record, page_size):
    cache = strided(record, 5, page_size)
    n = min(cache.num_slots, 40)
    slots = torch.randperm(cache.num_slots, generator=torch.Generator().manual_seed(3))[:n]
    values = tokens(record, n)
    cache.write(in_poison(slots), in_poison(values))
    got = cache.read(slots)
    assert got.dtype == torch.float32
    assert torch.equal(got, record.unpack(record.pack(values)))
    again = torch.cat((slots.flip(0), slots[:1]))  # any order, and twice
    assert torch.equal(cache.read(again.int()), torch.cat((got.flip(0), got[:1])))


@every_record
def test_every_byte_of_a_page_belongs_to_one_slot(record):
    cache = PagedCache.allocate(record, 2, 3)
    seen: set[tuple[int, int]] = set()
    for slot in range(cache.num_slots):
        owned = own_bytes(cache, slot)
        assert not owned & seen
        seen |= owned
    assert len(seen) == cache.pages.numel()


@every_record
def test_writing_touches_its_own_bytes_only(record):
    cache = strided(record, 3, 4)
    base = cache.pages._base
    cache.write(torch.arange(12), tokens(record, 12, seed=1))
    before = base.clone()
    cache.write(torch.tensor([6, 9]), tokens(record, 2, seed=2))
    changed = {(int(p), int(b) - 8) for p, b in (base != before).nonzero()}
    owned = own_bytes(cache, 6) | own_bytes(cache, 9)
    assert changed <= owned
    assert {page for page, _ in changed} == {1, 2}
    assert len(changed) > len(owned) // 4


@every_record
def test_padding_slots_are_skipped(record):
    cache = PagedCache.allocate(record, 2, 4)
    values = tokens(record, 4)
    values[0] = float("nan")
    cache.write(torch.tensor([-1, 7, -1, 2]), values)
    written = record.unpack(record.pack(values[[3, 1]]))
    assert torch.equal(cache.read(torch.tensor([2, 7])), written)
    assert not cache.read(torch.tensor([0, 1, 3, 4, 5, 6])).any()
    before = cache.pages.clone()
    cache.write(torch.tensor([-1, -1]), values[:2])
    cache.write(torch.empty(0, dtype=torch.int64), values[:0])
    assert torch.equal(cache.pages, before)
    assert cache.read(torch.empty(0, dtype=torch.int64)).shape == (0, record.width)


def test_index_page_byte_by_byte():
    cache = PagedCache.allocate(index_key_record("fp8"), 2, 64)
    key = torch.zeros(2, 128)
    key[0, 0], key[0, 127], key[1, 1] = 449.0, -1.0, 448.0
    cache.write(torch.tensor([64 + 5, 64]), key)
    page = bytes(cache.pages[1].tolist())
    want = bytearray(64 * 132)
    want[1] = 0x7E
    want[5 * 128], want[5 * 128 + 127] = 0x76, 0xB0
    want[8192:8196] = struct.pack("<f", 1.0)
    want[8192 + 20 : 8192 + 24] = struct.pack("<f", 2.0)
    assert page == bytes(want)
    assert not cache.pages[0].any()


def test_latent_page_byte_by_byte():
    cache = PagedCache.allocate(latent_record("fp8"), 1, 4)
    value = torch.zeros(1, 576)
    value[0, 0], value[0, 512] = 448.0, 1.0
    cache.write(torch.tensor([2]), value)
    want = bytearray(4 * 656)
    want[1312] = 0x7E
    want[1312 + 512 : 1312 + 528] = struct.pack("<4f", 1.0, *[2.0**-22] * 3)
    want[1312 + 528 : 1312 + 530] = b"\x80\x3f"
    assert bytes(cache.pages[0].tolist()) == bytes(want)


def test_gqa_page_byte_by_byte():
    cache = PagedCache.allocate(gqa_record(2, 2, "fp8"), 1, 3)
    value = torch.tensor([[448.0, 1.0, -0.5, 0.25, 2.0, 4.0, 448.0, 0.0]])
    cache.write(torch.tensor([1]), value)
    want = bytearray(3 * 24)
    want[4:8] = b"\x7e\x38\xfe\x76"  # 3 rows of 4 K bytes, then of V
    want[16:20] = b"\x76\x7e\x7e\x00"
    want[24 + 8 : 24 + 16] = struct.pack("<2f", 1.0, 0.5 / 448)
    want[48 + 8 : 48 + 16] = struct.pack("<2f", 4.0 / 448, 1.0)
    assert bytes(cache.pages[0].tolist()) == bytes(want)

    cache = PagedCache.allocate(gqa_record(1, 2, "bf16"), 1, 3)
    cache.write(torch.tensor([2]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    want = bytearray(24)
    want[8:12], want[20:24] = b"\x80\x3f\x00\x40", b"\x40\x40\x80\x40"
    assert bytes(cache.pages[0].tolist()) == bytes(want)


@pytest.mark.parametrize("record", [latent_record("fp8"), index_key_record("fp8")])
def test_slots_past_two_to_the_31_bytes(record, tmp_path):
    """A file with holes stands for the memory of a large card; only touched pages exist."""
    page_size = 64
    stride = record.page_nbytes(page_size)
    num_pages = 2**31 // stride + 5
    name = tmp_path / "pages"
    with name.open("wb") as file:
        file.truncate(num_pages * stride)
    flat = torch.from_file(str(name), shared=True, size=num_pages * stride, dtype=torch.uint8)
    cache = PagedCache(record, page_size, flat.view(num_pages, stride))
    last = cache.num_slots - 1
    wrapped = [((last * record.nbytes) % 2**32) // record.nbytes, 0]
    values = tokens(record, 1)
    cache.write(torch.tensor([last]), values)
    assert torch.equal(cache.read(torch.tensor([last])), record.unpack(record.pack(values)))
    assert not cache.read(torch.tensor([slot for slot in wrapped if slot != last])).any()
    tail = flat[(num_pages - 1) * stride :].clone()
    alone = PagedCache.allocate(record, 1, page_size)
    alone.write(torch.tensor([page_size - 1]), values)
    assert torch.equal(tail, alone.pages[0])


def test_page_stride_past_two_to_the_31_bytes(tmp_path):
    record = gqa_record(1, 4, "fp8")
    size, stride = record.page_nbytes(2), 3 * 2**30
    name = tmp_path / "pages"
    with name.open("wb") as file:
        file.truncate(stride + size)
    flat = torch.from_file(str(name), shared=True, size=stride + size, dtype=torch.uint8)
    cache = PagedCache(record, 2, flat.as_strided((2, size), (stride, 1)))
    values = tokens(record, 2)
    cache.write(torch.tensor([3, 0]), values)
    assert torch.equal(cache.read(torch.tensor([3, 0])), record.unpack(record.pack(values)))
    assert flat[stride:].any() and not flat[size : size + 4096].any()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.integers(1, 5), st.integers(0, 4), st.data())
def test_any_sequence_of_writes(name, page_size, num_pages, data):
    record = SMALL[name]
    cache = PagedCache.allocate(record, num_pages, page_size)
    known = torch.zeros(cache.num_slots, record.width)
    for seed in range(3):
        slot = st.integers(-1, cache.num_slots - 1)
        slots = data.draw(st.lists(slot, max_size=6, unique_by=lambda s: s if s >= 0 else object()))
        values = tokens(record, len(slots), seed)
        cache.write(torch.tensor(slots, dtype=torch.int64), values)
        for slot, row in zip(slots, record.unpack(record.pack(values)), strict=True):
            if slot >= 0:
                known[slot] = row
    assert torch.equal(cache.read(torch.arange(cache.num_slots)), known)


def one(record_dtype: str = "bf16") -> PagedCache:
    return PagedCache.allocate(latent_record(record_dtype), 2, 4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: one().write(torch.tensor([0, 8, 9]), torch.zeros(3, 576)),
            r"PagedCache.write: slot 8 \(and 1 more\) outside the 2 pages of 4 tokens, want 0 <= "
            "slot < 8",
        ),
        (lambda: one().write(torch.tensor([-2]), torch.zeros(1, 576)), "write: slot -2"),
        (lambda: one().write(torch.tensor([2**40]), torch.zeros(1, 576)), "slot 1099511627776"),
        (lambda: one().read(torch.tensor([3, -1])), r"PagedCache.read: slot -1 \(and 0 more\)"),
        (lambda: one().read(torch.tensor([8])), "PagedCache.read: slot 8"),
        (lambda: one().read(torch.tensor([1.0])), "slots are torch.float32"),
        (lambda: one().read(torch.tensor([[1]])), r"\[1, 1\], want int64 \[n\]"),
        (
            lambda: one().write(torch.tensor([1, 2]), torch.zeros(1, 576)),
            r"slots \[2\], values \[1, 576\], want \[n\] and \[n, 576\]",
        ),
        (lambda: one().write(torch.tensor([1]), torch.zeros(1, 512)), r"\[1, 512\], want float"),
        (lambda: PagedCache.allocate(latent_record("bf16"), -1, 4), "-1 pages of 4 tokens"),
        (lambda: PagedCache.allocate(latent_record("bf16"), 1, 0), "1 pages of 0 tokens"),
        (
            lambda: PagedCache(latent_record("bf16"), 0, torch.zeros(1, 0, dtype=torch.uint8)),
            "page_size is 0",
        ),
        (
            lambda: PagedCache(latent_record("bf16"), 1, torch.zeros(1, 1153, dtype=torch.uint8)),
            r"\[1, 1153\], want uint8 \[n, 1152\] for 1 tokens of latent_bf16_576",
        ),
        (lambda: PagedCache(latent_record("bf16"), 1, torch.zeros(1, 1152)), "pages are torch.fl"),
        (
            lambda: PagedCache(
                latent_record("fp8"), 1, torch.zeros(2, 658, dtype=torch.uint8)[:, :656]
            ),
            r"strides \[658, 1\] at byte 0, want contiguous pages at multiples of 4 bytes",
        ),
        (
            lambda: PagedCache(
                latent_record("fp8"), 1, torch.zeros(2, 660, dtype=torch.uint8)[:, 2:658]
            ),
            r"strides \[660, 1\] at byte 2",
        ),
        (
            lambda: PagedCache(
                latent_record("fp8"), 1, torch.zeros(2, 1312, dtype=torch.uint8)[:, ::2]
            ),
            r"strides \[1312, 2\]",
        ),
    ],
)
def test_refusals_say_what_came_and_what_was_wanted(make, text):
    with pytest.raises(BadInput, match=text):
        make()


def test_a_refused_write_changes_nothing():
    cache = one("fp8")
    with pytest.raises(BadInput, match="slot 8"):
        cache.write(torch.tensor([0, 8]), torch.ones(2, 576))
    assert not cache.pages.any()
