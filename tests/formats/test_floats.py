"""Every code of every small format against its definition, and rounding against exact fractions."""

import math
import struct
from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparkwell.errors import BadInput
from sparkwell.formats import floats

ALL_BYTES = torch.arange(256, dtype=torch.int32).to(torch.uint8)


def e4m3_value(code: int) -> float:
    """The definition, digit by digit."""
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = 2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8)
    return math.copysign(size, -1 if sign else 1)


def e2m1_value(code: int) -> float:
    """The definition, digit by digit."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return math.copysign(size, -1 if sign else 1)


def nearest(x: float, value: Callable[[int], float], largest: int) -> int:
    """Code of |x| in 0..largest: the nearest, the even one of two equally near."""
    sizes = [Fraction(value(code)) for code in range(largest + 1)]
    exact = min(Fraction(abs(x)), sizes[-1])
    above = bisect_left(sizes, exact)
    below = max(above - 1, 0)
    gap_above, gap_below = sizes[above] - exact, exact - sizes[below]
    if gap_above == gap_below:
        return above if above % 2 == 0 else below
    return above if gap_above < gap_below else below


def bits(x: float) -> bytes:
    """The fp32 pattern, in which zeros differ by sign and any NaN is one."""
    return b"nan" if math.isnan(x) else struct.pack("<f", x)


@pytest.mark.parametrize(
    ("decode", "value", "codes"),
    [(floats.e4m3_decode, e4m3_value, 256), (floats.e2m1_decode, e2m1_value, 16)],
)
def test_every_code_decodes_to_its_definition(decode, value, codes):
    got = decode(ALL_BYTES[:codes])
    assert got.dtype == torch.float32
    assert [bits(x) for x in got.tolist()] == [bits(value(code)) for code in range(codes)]


def test_ue8m0_decodes_every_code():
    got = floats.ue8m0_decode(ALL_BYTES).tolist()
    assert [bits(x) for x in got[:255]] == [bits(2.0 ** (code - 127)) for code in range(255)]
    assert math.isnan(got[255])


@pytest.mark.parametrize(
    ("table", "encode", "decode"),
    [
        (floats.E4M3_EDGES, floats.e4m3_encode, floats.e4m3_decode),
        (floats.E2M1_EDGES, floats.e2m1_encode, floats.e2m1_decode),
        (floats.UE8M0_EDGES, floats.ue8m0_encode, floats.ue8m0_decode),
    ],
)
def test_edge_tables_hold_both_ways(table, encode, decode):
    values, codes = zip(*table, strict=True)
    decoded = decode(torch.tensor(codes, dtype=torch.uint8)).tolist()
    assert [bits(x) for x in decoded] == [bits(x) for x in values]
    for value, code in table:
        if not math.isnan(value):
            assert encode(torch.tensor(value)).item() == code, f"{value} should be {code:#x}"


@pytest.mark.parametrize("code", [code for code in range(256) if code & 0x7F != 0x7F])
def test_e4m3_code_survives(code):
    one = torch.tensor([code], dtype=torch.uint8)
    assert floats.e4m3_encode(floats.e4m3_decode(one)).item() == code


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
small = st.floats(-8, 8, width=32)


@given(st.one_of(finite, st.floats(-500, 500, width=32), st.floats(-0.03125, 0.03125, width=32)))
@example(2.0**-10)  # half the smallest subnormal: ties to zero
@example(3 * 2.0**-10)  # ties up to an even code
@example(1.0625)  # ties down, between 1 and 1.125
@example(1.1875)  # ties up, between 1.125 and 1.25
@example(464.0)  # would tie to 480, which is NaN's place
@example(3.0e38)
def test_e4m3_rounds_to_nearest_even(x):
    want = nearest(x, e4m3_value, 0x7E) | (0x80 if math.copysign(1, x) < 0 else 0)
    assert floats.e4m3_encode(torch.tensor([x])).item() == want


def _steps(x: float) -> list[float]:
    """x and its two fp32 neighbours."""
    (n,) = struct.unpack("<I", struct.pack("<f", x))
    return [struct.unpack("<f", struct.pack("<I", n + d))[0] for d in (-1, 0, 1)]


@pytest.mark.parametrize("midpoint", [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
def test_e2m1_at_and_around_every_midpoint(midpoint):
    for x in _steps(midpoint):
        want = nearest(x, e2m1_value, 7)
        assert floats.e2m1_encode(torch.tensor([x, -x])).tolist() == [want, want + 8], x


@given(st.one_of(finite, small))
def test_e2m1_rounds_to_nearest_even(x):
    want = nearest(x, e2m1_value, 7) + (8 if math.copysign(1, x) < 0 else 0)
    assert floats.e2m1_encode(torch.tensor([x])).item() == want


def test_specials_saturate_or_stay_nan():
    x = torch.tensor([math.inf, -math.inf, math.nan])
    up, down, nan = floats.e4m3_encode(x).tolist()
    assert (up, down, nan & 0x7F) == (0x7E, 0xFE, 0x7F)
    assert floats.e2m1_encode(x).tolist() == [0x7, 0xF, 0x7]
    assert floats.ue8m0_encode(x).tolist() == [0xFE, 0xFF, 0xFF]
    assert [bits(v) for v in floats.pow2_ceil(x).tolist()] == [bits(math.inf), b"nan", b"nan"]


def test_ue8m0_hand_worked():
    cases = {
        0.0: 0x00,
        2.0**-149: 0x00,
        2.0**-127: 0x00,
        2.0**-127 + 2.0**-149: 0x01,
        2.0**-126 + 2.0**-149: 0x02,
        1e-4 / 448: 127 - 22,  # 2^-22.1 rounds up to 2^-22
        1.0: 0x7F,
        1.0000001192092896: 0x80,
        448.0: 127 + 9,
        2.0**127 * 1.5: 0xFE,
        -1.0: 0xFF,
    }
    assert floats.ue8m0_encode(torch.tensor(-0.0)).item() == 0x00
    for scale, code in cases.items():
        assert floats.ue8m0_encode(torch.tensor(scale)).item() == code, scale


@given(st.floats(min_value=2.0**-126, max_value=2.0**127, width=32))
@example(2.0**-126)
@example(2.0**127)
def test_pow2_ceil_and_ue8m0_round_up_by_less_than_two(x):
    up = floats.pow2_ceil(torch.tensor([x])).item()
    assert math.frexp(up)[0] == 0.5
    assert up / 2 < x <= up
    assert floats.ue8m0_decode(floats.ue8m0_encode(torch.tensor([x]))).item() == up


def test_pow2_ceil_outside_the_normal_range():
    x = torch.tensor([0.0, 2.0**-149, 2.0**-127, 2.0**127 * 1.0000001, -1.0])
    want = [0.0, 2.0**-126, 2.0**-126, math.inf, math.nan]
    assert [bits(v) for v in floats.pow2_ceil(x).tolist()] == [bits(v) for v in want]


def test_pack_puts_the_even_index_in_the_low_nibble():
    codes = torch.tensor([[0x1, 0x2, 0xF, 0x0], [0x8, 0x7, 0x3, 0xC]], dtype=torch.uint8)
    packed = floats.e2m1_pack(codes)
    assert packed.tolist() == [[0x21, 0x0F], [0x78, 0xC3]]
    assert torch.equal(floats.e2m1_unpack(packed), codes)


def test_packing_ignores_what_is_above_a_code():
    dirty = torch.tensor([0xF1, 0x32], dtype=torch.uint8)
    assert floats.e2m1_pack(dirty).tolist() == [0x21]
    assert floats.e2m1_decode(dirty).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_and_views(dtype):
    base = torch.full((4, 6), math.nan, dtype=dtype)
    x = base[1:3, 1:5:2]
    x.copy_(torch.tensor([[1.0, -6.0], [0.5, 300.0]]))
    assert floats.e4m3_encode(x).tolist() == [[0x38, 0xCC], [0x30, 0x79]]
    assert floats.e2m1_encode(x).tolist() == [[0x2, 0xF], [0x1, 0x7]]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty(shape):
    x = torch.empty(shape)
    for encode in (floats.e4m3_encode, floats.e2m1_encode, floats.ue8m0_encode):
        assert encode(x).shape == shape
    packed = floats.e2m1_pack(floats.e2m1_encode(x))
    assert floats.e2m1_unpack(packed).shape == shape


@pytest.mark.parametrize("name", ["e4m3_encode", "e2m1_encode", "ue8m0_encode", "pow2_ceil"])
def test_integers_are_refused(name):
    with pytest.raises(BadInput, match=rf"{name}: x is torch.int64, want a float tensor"):
        getattr(floats, name)(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "name",
    ["e4m3_decode", "e2m1_decode", "ue8m0_decode", "e2m1_pack", "e2m1_unpack", "e2m1_values"],
)
def test_codes_must_be_bytes(name):
    with pytest.raises(BadInput, match=rf"{name}: codes are torch.int32, want torch.uint8"):
        getattr(floats, name)(torch.ones(2, dtype=torch.int32))


def test_odd_number_of_codes_is_refused():
    with pytest.raises(BadInput, match="e2m1_pack: 3 codes a row, want an even number"):
        floats.e2m1_pack(torch.zeros(2, 3, dtype=torch.uint8))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 15), min_size=2, max_size=40))
def test_pack_unpack_are_inverse(codes):
    codes = torch.tensor(codes[: len(codes) // 2 * 2], dtype=torch.uint8)
    assert torch.equal(floats.e2m1_unpack(floats.e2m1_pack(codes)), codes)


def test_values_of_packed_codes():
    every = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16)
    for packed in (every, every[:, ::2, ::3], every[:0], every[..., :0]):
        got, want = floats.e2m1_values(packed), floats.e2m1_decode(floats.e2m1_unpack(packed))
        assert got.dtype == torch.float32 and got.shape == want.shape
        assert torch.equal(got.view(torch.int32), want.view(torch.int32)), "-0 counts"
