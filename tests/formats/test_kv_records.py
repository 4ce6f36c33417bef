"""Cache records byte by byte, against vectors worked by hand, and their error bounds."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkwell.errors import BadInput
from sparkwell.formats.kv import Field, Part, Record, gqa_record, index_key_record, latent_record
from sparkwell.testing import in_poison

RECORDS = {
    "latent_fp32": latent_record("fp32"),
    "latent_bf16": latent_record("bf16"),
    "latent_fp8_pow2": latent_record("fp8"),
    "latent_fp8_fp32": latent_record("fp8", scale="fp32"),
    "latent_fp8_small": latent_record("fp8", kv_lora_rank=128, rope_dim=2),
    "latent_fp8_norope": latent_record("fp8", rope_dim=0),
    "latent_bf16_odd": latent_record("bf16", kv_lora_rank=33, rope_dim=6),
    "index_fp32": index_key_record("fp32"),
    "index_bf16": index_key_record("bf16"),
    "index_fp8_pow2": index_key_record("fp8"),
    "index_fp8_fp32": index_key_record("fp8", scale="fp32"),
    "index_fp8_small": index_key_record("fp8", head_dim=12),
    "gqa_fp32": gqa_record(2, 6, "fp32"),
    "gqa_bf16": gqa_record(3, 64, "bf16"),
    "gqa_fp8": gqa_record(3, 10, "fp8"),
}
every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def fp32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def as_tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)[None]


def as_bytes(packed: torch.Tensor) -> bytes:
    return bytes(packed.flatten().tolist())


@pytest.mark.parametrize(
    ("record", "width", "nbytes", "planar"),
    [
        (latent_record("fp32"), 576, 2304, False),
        (latent_record("bf16"), 576, 1152, False),
        (latent_record("fp8"), 576, 656, False),
        (latent_record("fp8", scale="fp32"), 576, 656, False),
        (latent_record("fp8", rope_dim=0), 512, 528, False),
        (index_key_record("fp32"), 128, 512, False),
        (index_key_record("bf16"), 128, 256, False),
        (index_key_record("fp8"), 128, 132, True),
        (gqa_record(8, 128, "bf16"), 2048, 4096, True),
        (gqa_record(8, 128, "fp32"), 2048, 8192, True),
        (gqa_record(8, 128, "fp8"), 2048, 2048 + 64, True),
    ],
)
def test_sizes(record, width, nbytes, planar):
    assert (record.width, record.nbytes, record.planar) == (width, nbytes, planar)
    assert record.page_nbytes(64) == 64 * nbytes


@every_record
def test_fields_tile_the_record(record):
    owner = [0] * record.nbytes
    for field in record.fields:
        assert field.nbytes == field.count * field.dtype.itemsize
        for byte in range(field.offset, field.offset + field.nbytes):
            owner[byte] += 1
    assert owner == [1] * record.nbytes
    assert record.field(record.fields[-1].name) == record.fields[-1]
    assert all(field.meaning for field in record.fields)


@every_record
def test_every_byte_of_a_record_is_read_and_written(record):
    generator = torch.Generator().manual_seed(1)
    packed = record.pack(torch.rand(1, record.width, generator=generator) + 0.5)
    base = record.unpack(packed)
    for byte in range(record.nbytes):
        other = packed.clone()
        other[0, byte] ^= 0x15
        assert not torch.equal(record.unpack(other), base), f"byte {byte} means nothing"


def test_latent_fp8_record_byte_by_byte():
    latent = torch.zeros(512)
    latent[0], latent[1], latent[127] = 448.0, -1.0, 0.5  # scale 1
    latent[128], latent[129] = 449.0, 1.0  # scale 449/448, or 2
    latent[256:384] = 3.0  # scale 3/448, or 2^-7
    rope = torch.zeros(64)
    rope[0], rope[1], rope[63] = 1.0, -2.0, 1.00390625  # the last one ties down to 1
    values = torch.cat((latent, rope))[None]
    rope_bytes = b"\x80\x3f" + b"\x00\xc0" + bytes(2 * 61) + b"\x80\x3f"
    one = b"\x7e\xb8" + bytes(125) + b"\x30"

    pow2 = one + b"\x76\x30" + bytes(126) + b"\x7c" * 128 + bytes(128)
    pow2 += fp32(1.0, 2.0, 2.0**-7, 2.0**-22) + rope_bytes
    assert len(pow2) == 656
    assert as_bytes(latent_record("fp8").pack(values)) == pow2

    raw = one + b"\x7e\x38" + bytes(126) + b"\x7e" * 128 + bytes(128)
    raw += fp32(1.0, 449 / 448, 3 / 448, 2.0**-126) + rope_bytes
    assert as_bytes(latent_record("fp8", scale="fp32").pack(values)) == raw

    for style in ("pow2", "fp32"):  # the reader takes either
        got = latent_record("fp8", scale=style).unpack(as_tensor(raw))
        scale = struct.unpack("<f", fp32(449 / 448))[0]
        assert got[0, :2].tolist() == [448.0, -1.0]
        assert got[0, 128:130].tolist() == pytest.approx([448 * scale, scale], rel=1e-7)
        assert got[0, 256:384].tolist() == pytest.approx([3.0] * 128, rel=1e-6)
        assert got[0, 384:512].tolist() == [0.0] * 128
        assert got[0, [512, 513, 575]].tolist() == [1.0, -2.0, 1.0]


def test_latent_plain_records_byte_by_byte():
    values = torch.zeros(1, 576)
    values[0, 0], values[0, 511], values[0, 512], values[0, 575] = 1.0, -2.0, 3.0, math.inf
    want = b"\x80\x3f" + bytes(1020) + b"\x00\xc0" + b"\x40\x40" + bytes(124) + b"\x80\x7f"
    assert as_bytes(latent_record("bf16").pack(values)) == want
    want = fp32(1.0) + bytes(2040) + fp32(-2.0, 3.0) + bytes(248) + fp32(math.inf)
    assert as_bytes(latent_record("fp32").pack(values)) == want


def test_index_key_byte_by_byte():
    key = torch.zeros(1, 128)
    key[0, 0], key[0, 127] = 449.0, -1.0
    pow2, raw = (index_key_record("fp8", scale=scale) for scale in ("pow2", "fp32"))
    assert as_bytes(pow2.pack(key)) == b"\x76" + bytes(126) + b"\xb0" + fp32(2.0)
    assert as_bytes(raw.pack(key)) == b"\x7e" + bytes(126) + b"\xb8" + fp32(449 / 448)
    zero = torch.zeros(1, 128)
    assert as_bytes(pow2.pack(zero)) == bytes(128) + fp32(2.0**-22)
    assert as_bytes(raw.pack(zero)) == bytes(128) + fp32(1e-4 / 448)


def test_gqa_byte_by_byte():
    k, v = torch.tensor([[448.0, 1.0], [-0.5, 0.25]]), torch.tensor([[2.0, 4.0], [0.0, 0.0]])
    values = torch.cat((k.flatten(), v.flatten()))[None]
    bf16 = b"\xe0\x43\x80\x3f\x00\xbf\x80\x3e" + b"\x00\x40\x80\x40" + bytes(4)
    assert as_bytes(gqa_record(2, 2, "bf16").pack(values)) == bf16
    fp8 = b"\x7e\x38\xfe\x76" + b"\x76\x7e\x00\x00"
    fp8 += fp32(1.0, 0.5 / 448) + fp32(4.0 / 448, 2.0**-126)
    assert as_bytes(gqa_record(2, 2, "fp8").pack(values)) == fp8
    names = [field.name for field in gqa_record(2, 2, "fp8").fields]
    assert names == ["k", "v", "k_scale", "v_scale"]


@pytest.mark.parametrize("scale", [0.0, -2.0, 1e-41, math.nan, 3.0])
def test_reading_multiplies_by_any_stored_scale(scale):
    raw = as_tensor(b"\x38" * 128 + fp32(scale))  # all ones
    stored = struct.unpack("<f", fp32(scale))[0]
    want = torch.full((1, 128), stored)
    assert torch.equal(index_key_record("fp8").unpack(raw).nan_to_num(7), want.nan_to_num(7))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_value_spoils_its_group_only(bad):
    values = torch.ones(2, 576)
    values[0, 130], values[0, 520] = bad, bad
    for record in (latent_record("fp8"), latent_record("fp8", scale="fp32")):
        got = record.unpack(record.pack(values))
        assert got[0, 128:256].isnan().all()
        assert torch.equal(
            got[0, 520:521].nan_to_num(7, 8, 9), values[0, 520:521].nan_to_num(7, 8, 9)
        )
        assert got.isnan().sum() == 128 + math.isnan(bad)
        assert torch.allclose(got[1], values[1])


@every_record
def test_zeros_stay_zeros(record):
    assert not record.unpack(record.pack(torch.zeros(3, record.width))).any()
    assert not record.unpack(torch.zeros(3, record.nbytes, dtype=torch.uint8)).any()


@every_record
def test_empty(record):
    assert record.pack(torch.empty(0, record.width)).shape == (0, record.nbytes)
    for empty in (torch.empty(0, record.width), torch.empty(record.width, 0).t()):
        assert record.unpack(record.pack(empty)).shape == (0, record.width)
    columns = torch.empty(record.nbytes, 0, dtype=torch.uint8).t()
    assert record.unpack(columns).shape == (0, record.width)


@every_record
def test_layout_of_the_arguments_does_not_matter(record):
    values = torch.randn(5, record.width, generator=torch.Generator().manual_seed(4))
    packed = record.pack(values)
    assert torch.equal(record.pack(values.t().contiguous().t()), packed)
    shifted = torch.zeros(5, record.nbytes + 7, dtype=torch.uint8)[:, 3:-4]  # odd stride and start
    for other in (packed.t().contiguous().t(), shifted.copy_(packed)):
        assert torch.equal(record.unpack(other), record.unpack(packed))


# Per record: relative error of a value, and absolute error relative to its group's amax.
BOUNDS = {torch.float32: (0.0, 0.0), torch.bfloat16: (2.0**-8, 2.0**-133)}


def error_bound(record: Record, values: torch.Tensor) -> torch.Tensor:
    """[n, width]: half a step of what each value is stored as."""
    limits = []
    start = 0
    for part in record.parts:
        field = record.field(part.field)
        x = values[:, start : start + field.count].abs()
        start += field.count
        if part.scale is None:
            relative, absolute = BOUNDS[field.dtype]
            limits.append(x * relative + absolute)
        else:
            groups = x.unflatten(1, (-1, part.group))
            amax = groups.amax(-1, keepdim=True).clamp(min=part.floor)
            step = amax * ((2 if part.pow2 else 1) * 2.0**-10 / 448)
            limits.append(torch.maximum(groups * 2.0**-4, step.expand_as(groups)).flatten(1))
    return torch.cat(limits, 1) * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RECORDS)), st.integers(1, 9), st.integers(0, 999), st.floats(-14, 4))
def test_round_trip_is_within_half_a_step(name, n, seed, log_size):
    record = RECORDS[name]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, record.width, generator=generator) * 2.0**log_size
    values *= torch.exp(2 * torch.randn(n, record.width, generator=generator))
    got = record.unpack(in_poison(record.pack(in_poison(values))))
    assert got.dtype == torch.float32
    over = ((got - values).abs() - error_bound(record, values)).amax()
    assert over <= 0, f"{name}: {over} beyond half a step"


def test_values_of_any_float_type():
    record = index_key_record("fp8")
    values = torch.arange(256, dtype=torch.float64).reshape(2, 128)
    want = record.pack(values.float())
    assert torch.equal(record.pack(values), want)
    assert torch.equal(record.pack(values.bfloat16()), want)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: latent_record("fp16"), "latent_record: dtype is 'fp16', want 'fp32', 'bf16'"),
        (lambda: latent_record("fp8", scale="ue8m0"), "latent_record: scale is 'ue8m0', want"),
        (lambda: latent_record("fp8", kv_lora_rank=192), "kv_lora_rank is 192; use dtype 'bf16'"),
        (lambda: latent_record("bf16", rope_dim=63), "rope_dim 63; want a positive rank and"),
        (lambda: latent_record("bf16", kv_lora_rank=0), "kv_lora_rank 0"),
        (lambda: index_key_record("int8"), "index_key_record: dtype is 'int8'"),
        (lambda: index_key_record("fp8", scale="e8"), "index_key_record: scale is 'e8'"),
        (lambda: index_key_record("fp8", head_dim=130), "head_dim is 130, want a positive mult"),
        (lambda: gqa_record(8, 128, "f32"), "gqa_record: dtype is 'f32'"),
        (lambda: gqa_record(0, 128, "fp8"), "0 heads of 128, want at least one"),
        (lambda: gqa_record(2, 7, "fp8"), "2 heads of 7"),
        (
            lambda: latent_record("fp8").pack(torch.zeros(4, 512)),
            r"pack: values are torch.float32 \[4, 512\], want float \[n, 576\]",
        ),
        (lambda: latent_record("bf16").pack(torch.zeros(576)), r"\[576\], want float \[n, 576\]"),
        (lambda: latent_record("bf16").pack(torch.zeros(1, 576).int()), "torch.int32"),
        (
            lambda: latent_record("fp8").unpack(torch.zeros(4, 655, dtype=torch.uint8)),
            r"unpack: bytes are torch.uint8 \[4, 655\], want uint8 \[n, 656\]",
        ),
        (lambda: latent_record("fp8").unpack(torch.zeros(4, 656)), "bytes are torch.float32"),
    ],
)
def test_refusals_say_what_came_and_what_was_wanted(make, text):
    with pytest.raises(BadInput, match=text):
        make()


def test_a_record_that_leaves_a_gap_does_not_exist():
    k = Field("k", 0, "bf16", 3, "six bytes")
    with pytest.raises(AssertionError, match="v leaves a gap or overlaps"):
        Record("r", 6, (k, Field("v", 8, "bf16", 3, "")), True, (Part("k"), Part("v")))
    with pytest.raises(AssertionError, match="s is misaligned"):
        Record("r", 3, (k, Field("s", 6, "fp32", 1, "")), False, (Part("k", "s", 3),))
    with pytest.raises(AssertionError, match="9 bytes misalign the next record"):
        scale, rest = (
            Field("s", 0, "fp32", 1, ""),
            Field("k", 4, "e4m3", 5, ""),
        )
        Record("r", 5, (scale, rest), False, (Part("k", "s", 5),))
    with pytest.raises(AssertionError, match=r"parts hold \[3\], width 4"):
        Record("r", 4, (k,), False, (Part("k"),))
    with pytest.raises(AssertionError, match="unused field"):
        Record("r", 3, (k, Field("v", 6, "bf16", 3, "")), False, (Part("k"),))
