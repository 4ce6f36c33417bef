"""Quantized weights of every format: what they mean, stacks, joined rows, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats import (
    Fp8Block,
    Fp8Rows,
    Int4Group,
    Mxfp4,
    Nvfp4,
    QuantizedTensor,
    Weight,
    dequantize,
    join,
    kind,
    select,
    stack,
    unjoinable,
    unstackable,
)
from sparkwell.testing import in_poison
from weights import E4M3, KINDS, factors, fp8_block, fp8_rows, int4, mxfp4, nvfp4, slow

Make = Callable[..., QuantizedTensor]
every = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def same(a: Weight, b: Weight) -> bool:
    """Bit for bit the same weight of the same format; NaN payloads and -0 count."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    left, right = a.tensors(), b.tensors()
    return (
        type(a) is type(b)
        and a.options() == b.options()
        and left.keys() == right.keys()
        and all(bits(left[name]).equal(bits(right[name])) for name in left)
    )


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


# ---------------------------------------------------------------- what they mean


@every
@pytest.mark.parametrize("shape", [(7, 64), (1, 32), (4, 160)], ids=str)
def test_elements_follow_the_definition(make: Make, shape: tuple[int, int]) -> None:
    weight = make(*shape, seed=3)
    want = slow(weight)
    got = weight.dequantize()
    assert weight.shape == torch.Size(shape) and got.shape == weight.shape
    assert got.dtype == torch.float32
    # Two fp32 products at most; none for MXFP4.
    assert torch.allclose(got.double(), want, rtol=2**-23, atol=0)
    assert got.abs().amax() > 0 and len(got.unique()) > 8


@every
def test_rounded_once(make: Make) -> None:
    weight = make(5, 64, seed=4)
    for dtype in (torch.bfloat16, torch.float16):
        got = weight.dequantize(dtype)
        assert got.dtype == dtype and torch.equal(got, weight.dequantize().to(dtype))


@every
def test_strided_tensors(make: Make) -> None:
    """Views into larger buffers of NaN, or of indices that no table holds."""
    weight = make(2, 6, 96, seed=5)
    view = weight.changed(lambda name, t: t if name == "order" else poisoned(t))
    assert all(not t.is_contiguous() for name, t in view.tensors().items() if name != "order")
    assert torch.equal(view.dequantize(), weight.dequantize())
    assert same(view.select(1), weight.select(1)) and same(stack([view]), stack([weight]))


def poisoned(t: torch.Tensor) -> torch.Tensor:
    if t.dtype in (E4M3, torch.uint8):
        return in_poison(t.view(torch.uint8)).view(t.dtype)
    return in_poison(t)


def test_the_even_column_lies_in_the_low_nibble() -> None:
    codes = torch.tensor([[0x21] + [0] * 15], dtype=torch.uint8)  # 1, then 2
    one = torch.ones(1)
    fp4 = Nvfp4(codes, torch.ones(1, 2).to(E4M3), one).dequantize()
    assert fp4[0, :3].tolist() == [0.5, 1.0, 0.0]
    mx = Mxfp4(codes, torch.full((1, 1), 127, dtype=torch.uint8)).dequantize()
    assert mx[0, :3].tolist() == [0.5, 1.0, 0.0]
    integer = Int4Group(codes, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.uint8), 32)
    assert integer.dequantize()[0, :3].tolist() == [1.0, 2.0, 0.0]


def test_minus_zero_and_signs_of_scales_are_kept() -> None:
    codes = torch.tensor([[0x08 | 0xA0] + [0] * 15], dtype=torch.uint8)  # -0, then -1
    weight = Nvfp4(codes, torch.tensor([[1.0, -1.0]]).to(E4M3), torch.ones(1))
    got = weight.dequantize()
    assert got[0, 0] == 0 and got[0, 0].signbit() and got[0, 1] == -1
    assert got[0, 16] == 0 and got[0, 16].signbit(), "0 times a negative scale"
    negative = Nvfp4(codes, torch.tensor([[-2.0, 1.0]]).to(E4M3), torch.ones(1)).dequantize()
    assert negative[0, 1] == 2 and not negative[0, 0].signbit()
    mx = Mxfp4(codes, torch.full((1, 1), 127, dtype=torch.uint8)).dequantize()
    assert mx[0, 0].signbit() and mx[0, 1] == -1


def test_a_nan_scale_spoils_its_group_only() -> None:
    weight = nvfp4(3, 48)
    for byte in (0x7F, 0xFF):
        scales = weight.scales.view(torch.uint8).clone()
        scales[1, 2] = byte
        got = Nvfp4(weight.codes, scales.view(E4M3), weight.row_scales).dequantize()
        assert got[1, 32:].isnan().all() and int(got.isnan().sum()) == 16
    mx = mxfp4(3, 96)
    scales = mx.scales.clone()
    scales[2, 0] = 255
    got = Mxfp4(mx.codes, scales).dequantize()
    assert got[2, :32].isnan().all() and int(got.isnan().sum()) == 32
    values = torch.ones(2, 4).to(E4M3)
    rows = Fp8Rows(values, torch.tensor([math.nan, 2.0])).dequantize()
    assert rows[0].isnan().all() and rows[1].tolist() == [2.0] * 4


def test_power_of_two_scales_reach_both_ends_of_fp32() -> None:
    codes = torch.tensor([[0x71] * 16] * 2, dtype=torch.uint8)  # 0.5, 6
    got = Mxfp4(codes, torch.tensor([[0], [254]], dtype=torch.uint8)).dequantize()
    assert got[0, :2].tolist() == [2.0**-128, 6 * 2.0**-127]
    assert got[1, :2].tolist() == [2.0**126, math.inf]


def test_zero_points_beyond_the_codes() -> None:
    codes = torch.zeros(1, 16, dtype=torch.uint8)
    weight = Int4Group(codes, torch.full((1, 1), 0.5), torch.full((1, 1), 16).byte(), 32)
    assert weight.dequantize()[0, 0] == -8.0
    assert Int4Group(codes, torch.full((1, 1), 0.5), None, 32).dequantize()[0, 0] == -4.0


def test_order_names_the_column_of_x() -> None:
    """y = sum_j w[j] x[order[j]]: the stored column j belongs at order[j], not the inverse."""
    codes = torch.zeros(1, 16, dtype=torch.uint8)
    codes[0, 0] = 0x39  # stored columns 0 and 1: codes 9 and 3
    order = torch.arange(32, dtype=torch.int32).roll(-3)  # column 0 meets x[3]
    got = Int4Group(codes, torch.ones(1, 1), None, 32, order).dequantize()
    assert got[0, 3:5].tolist() == [1.0, -5.0] and (got[0, :3] == -8).all()


def test_empty_weights() -> None:
    for name, make in KINDS.items():
        if name == "fp8-block":
            assert make(0, 10).dequantize().shape == (0, 10)
            continue
        assert make(0, 64).dequantize().shape == (0, 64)
        assert make(2, 0, 64).select(1).shape == (0, 64)


# ---------------------------------------------------------------- stacks and rows


@every
def test_stack_and_select(make: Make) -> None:
    one, two = make(6, 64, seed=1), make(6, 64, seed=1 if make is KINDS["int4-ordered"] else 2)
    both = stack([one, two, one])
    assert both.shape == (3, 6, 64) and kind(both) == kind(one)
    for i, weight in enumerate((one, two, one)):
        assert same(select(both, i), weight)
    assert torch.equal(dequantize(both)[1], dequantize(two))
    single = stack([two])
    assert single.shape == (1, 6, 64) and same(select(single, 0), two)


@every
def test_select_gives_views(make: Make) -> None:
    weight = make(3, 6, 64)
    part = weight.select(2)
    for name, t in part.tensors().items():
        whole = weight.tensors()[name]
        assert t.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@every
def test_join_keeps_every_row(make: Make) -> None:
    """Rows of other scales one below the other: bit for bit what they were."""
    seed = 1 if make is KINDS["int4-ordered"] else 2
    parts = [make(6, 64, seed=1), make(9, 64, seed=seed), make(2, 64, seed=seed)]
    whole = join(parts)
    assert whole.shape == (17, 64) and kind(whole) == kind(parts[0])
    want = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(bits(dequantize(whole)), bits(want))
    stacked = join([make(2, 6, 64, seed=1), make(2, 3, 64, seed=seed)])
    want = torch.cat(
        [make(2, 6, 64, seed=1).dequantize(), make(2, 3, 64, seed=seed).dequantize()], 1
    )
    assert torch.equal(bits(dequantize(stacked)), bits(want))


def test_shards_of_other_globals_are_exact() -> None:
    """Taking the larger of the two global scales, as engines do, would change q's rows."""
    q, k = nvfp4(4, 64, seed=1), nvfp4(4, 64, seed=2)
    whole = join([q, k])
    assert isinstance(whole, Nvfp4)
    assert not torch.equal(q.row_scales, k.row_scales)
    assert torch.equal(whole.row_scales, torch.cat([q.row_scales, k.row_scales]))
    larger = torch.maximum(q.row_scales, k.row_scales).repeat(2)
    taken = Nvfp4(whole.codes, whole.scales, larger).dequantize()
    assert not torch.equal(taken, dequantize(whole))


def test_static_input_scales_travel() -> None:
    one, two = nvfp4(4, 64, seed=1, static=True), nvfp4(4, 64, seed=2, static=True)
    both = stack([one, two])
    assert isinstance(both, Nvfp4) and both.input_scale is not None
    assert one.input_scale is not None and both.input_scale.shape == (2,)
    assert both.select(0).input_scale == one.input_scale
    assert unjoinable([one, two]) == "the values of input_scale differ"
    two = Nvfp4(two.codes, two.scales, two.row_scales, "nvfp4", one.input_scale.clone())
    whole = join([one, two])
    assert isinstance(whole, Nvfp4) and whole.input_scale == one.input_scale


def test_plain_tensors_stack_and_join_too() -> None:
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    assert same(stack([a, b]), torch.stack([a, b])) and same(join([a, b]), torch.cat([a, b]))
    assert kind(a.bfloat16()) == "bfloat16" and same(select(stack([a, b]), 1), b)
    assert torch.equal(dequantize(a, torch.float16), a.half())


def test_moves_and_sizes() -> None:
    weight = nvfp4(3, 8, 64, static=True)
    assert weight.to("cpu") is weight
    there = weight.to("meta")
    assert there.device.type == "meta" and there.shape == weight.shape
    assert there.dequantize().shape == weight.shape
    assert weight.nbytes == 3 * (8 * 32 + 8 * 4 + 4 * 8 + 4)
    assert fp8_block(7, 11).nbytes == 7 * 11 + 4 * 3 * 3
    assert int4(8, 64, ordered=True).nbytes == 8 * 32 + 2 * 16 + 16 + 4 * 64
    for make in KINDS.values():
        assert make(2, 4, 64).to("meta").dequantize(torch.bfloat16).shape == (2, 4, 64)


# ---------------------------------------------------------------- what is refused

ONES = torch.ones(4, 64).to(E4M3)
BYTES = torch.zeros(4, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fp8Rows(torch.ones(4, 8), torch.ones(4)), r"values are torch.float32 \[4, 8\]"),
        (lambda: Fp8Rows(ONES, torch.ones(1)), r"\[1\], want float32 \[4\] for values \[4, 64\]"),
        (lambda: Fp8Rows(ONES, torch.ones(4).half()), "scales are torch.float16"),
        (
            lambda: Fp8Rows(ONES, torch.ones(4), "fp8"),  # type: ignore[arg-type]
            "activations are 'fp8', want one of none, fp8-token, fp8-tensor",
        ),
        (
            lambda: Fp8Rows(ONES, torch.ones(4), "fp8-tensor", torch.ones(1)),
            r"input_scale are torch.float32 \[1\], want float32 \[\] one value a weight",
        ),
        (
            lambda: Fp8Rows(ONES, torch.ones(4, device="meta")),
            "values on cpu, scales on meta; want one device",
        ),
        (
            lambda: Fp8Block(ONES, torch.ones(1, 1), activations="fp8"),  # type: ignore[arg-type]
            "Fp8Block: activations are 'fp8'",
        ),
        (lambda: Nvfp4(BYTES.int(), ONES, torch.ones(4)), r"codes are torch.int32 \[4, 32\], want"),
        (lambda: Nvfp4(BYTES[0], ONES, torch.ones(4)), r"want uint8 \[..., n, k/2\]"),
        (
            lambda: Nvfp4(BYTES[:, :12], ONES[:, :1], torch.ones(4)),
            "Nvfp4: k is 24, want a multiple of 16, .* padded with zeros",
        ),
        (
            lambda: Nvfp4(BYTES, ONES[:, :2], torch.ones(4)),
            r"scales are torch.float8_e4m3fn \[4, 2\], want float8_e4m3fn \[4, 4\] for a weight",
        ),
        (
            lambda: Nvfp4(BYTES, ONES[:, :4].view(torch.uint8), torch.ones(4)),
            "scales are torch.uint8",
        ),
        (
            lambda: Nvfp4(BYTES, ONES[:, :4], torch.ones(1)),
            r"row_scales are .* \[1\], want .*\[4\]",
        ),
        (
            lambda: Nvfp4(BYTES, ONES[:, :4], torch.ones(4), "fp4"),  # type: ignore[arg-type]
            "Nvfp4: activations are 'fp4'",
        ),
        (lambda: Mxfp4(BYTES.int(), BYTES[:, :2]), "Mxfp4: codes are torch.int32"),
        (lambda: Mxfp4(BYTES[:, :24], BYTES[:, :1]), "Mxfp4: k is 48, want a multiple of 32"),
        (
            lambda: Mxfp4(BYTES, BYTES[:, :4]),
            r"scales are torch.uint8 \[4, 4\], want uint8 \[4, 2\]",
        ),
        (
            lambda: Mxfp4(BYTES, BYTES[:, :2], "mx"),  # type: ignore[arg-type]
            "Mxfp4: activations are 'mx'",
        ),
        (lambda: Int4Group(BYTES.int(), torch.ones(4, 2), None, 32), "Int4Group: codes are"),
        (lambda: Int4Group(BYTES, torch.ones(4, 2), None, 48), "k is 64, want a multiple of 48"),
        (lambda: Int4Group(BYTES, torch.ones(4, 2), None, 0), "want a multiple of 0"),
        (
            lambda: Int4Group(BYTES, torch.ones(4, 2).double(), None, 32),
            "scales are torch.float64 .* want bfloat16 or float16 or float32",
        ),
        (
            lambda: Int4Group(BYTES, torch.ones(4, 2), BYTES[:, :1], 32),
            r"zeros are torch.uint8 \[4, 1\], want uint8 \[4, 2\]",
        ),
        (
            lambda: Int4Group(BYTES, torch.ones(4, 2), None, 32, torch.arange(64)),
            r"order are torch.int64 \[64\], want int32 \[64\]",
        ),
        (
            lambda: Int4Group(BYTES, torch.ones(4, 2), None, 32, torch.zeros(64).int()),
            "order is no permutation of 0 to 63",
        ),
        (
            lambda: nvfp4(4, 64).select(0),
            r"Nvfp4.select: shape \[4, 64\] is one weight, not a stack",
        ),
        (lambda: int4(2, 4, 64).select(2), "Int4Group.select: expert 2, want 0 <= expert < 2"),
        (lambda: mxfp4(2, 4, 64).select(-1), "Mxfp4.select: expert -1"),
    ],
)
def test_bad_tensors_are_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        make()


def with_scales(weight: Int4Group, dtype: torch.dtype) -> Int4Group:
    return Int4Group(weight.codes, weight.scales.to(dtype), weight.zeros, weight.group)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([nvfp4(4, 64), mxfp4(4, 64)], "kinds differ: Mxfp4, Nvfp4"),
        ([nvfp4(4, 64), torch.ones(4, 64)], "kinds differ: Nvfp4, float32"),
        ([torch.ones(4, 64).half(), torch.ones(4, 64)], "kinds differ: float16, float32"),
        ([nvfp4(4, 64), nvfp4(4, 64).to("meta")], "devices differ: cpu, meta"),
        ([int4(4, 64, group=16), int4(4, 64, group=32)], "group differs: 16 and 32"),
        (
            [int4(4, 64), int4(4, 64, zero_points=False)],
            "some have zeros and some have not",
        ),
        (
            [int4(4, 64, ordered=True, seed=1), int4(4, 64, ordered=True, seed=2)],
            "the values of order differ",
        ),
        (
            [int4(4, 64, ordered=True), int4(4, 64)],
            "some have order and some have not",
        ),
        (
            [int4(4, 64), with_scales(int4(4, 64), torch.float16)],
            "scales differ: torch.bfloat16 and torch.float16",
        ),
        (
            [fp8_rows(4, 64), fp8_rows(4, 64, activations="fp8-tensor")],
            "activations differs: 'fp8-token' and 'fp8-tensor'",
        ),
        (
            [nvfp4(4, 64), nvfp4(4, 64, static=True)],
            "some have input_scale and some have not",
        ),
        ([fp8_block(4, 64, block=(4, 8)), fp8_block(4, 64, block=(2, 8))], "block differs"),
    ],
)
def test_other_formats_neither_join_nor_stack(weights: list[Weight], text: str) -> None:
    for act, reason in ((join, unjoinable), (stack, unstackable)):
        assert text in (reason(weights) or "")
        with pytest.raises(BadInput, match=rf"{act.__name__}: {text}.*; keep these weights apart"):
            act(weights)


def test_other_shapes() -> None:
    text = r"join: shapes differ in more than the number of rows: \[4, 64\], \[4, 32\]"
    with pytest.raises(BadInput, match=text):
        join([nvfp4(4, 64), nvfp4(4, 32)])
    with pytest.raises(BadInput, match=r"stack: shapes differ: \[4, 64\], \[5, 64\]"):
        stack([nvfp4(4, 64), nvfp4(5, 64)])
    assert unjoinable([nvfp4(4, 64), nvfp4(5, 64)]) is None


def test_blocks_are_not_cut() -> None:
    """4 rows end inside a block of 3; only the last of the joined may end anywhere."""
    with pytest.raises(BadInput, match="join: 4 rows end inside a block of 3"):
        join([fp8_block(4, 64), fp8_block(6, 64)])
    assert join([fp8_block(6, 64), fp8_block(4, 64)]).shape == (10, 64)
    assert stack([fp8_block(4, 64), fp8_block(4, 64)]).shape == (2, 4, 64)


@pytest.mark.parametrize("act", [join, stack])
def test_nothing_to_join(act: Callable[[list[Weight]], Weight]) -> None:
    with pytest.raises(BadInput, match=f"{act.__name__}: no weights, want at least one"):
        act([])


def test_order_is_not_read_off_the_cpu() -> None:
    there = torch.zeros(64, dtype=torch.int32, device="meta")
    weight = Int4Group(BYTES.to("meta"), factors(4, 2, seed=0).to("meta"), None, 32, there)
    assert weight.order is there
