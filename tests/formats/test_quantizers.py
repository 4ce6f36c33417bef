"""Quantizers by hand: rules of the scales, tokens' factors, ends of the range, bad values."""

import math
from collections.abc import Callable

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats import (
    dequantize,
    quantize_fp8_channels,
    quantize_fp8_tokens,
    quantize_int4,
    quantize_mxfp4,
    quantize_nvfp4,
    quantize_nvfp4_tokens,
    stack,
    swizzle_128x4,
    unswizzle_128x4,
)
from sparkwell.formats.fp8 import quantize_fp8_block
from sparkwell.testing import in_poison
from weights import finite_e4m3, random_bytes

WEIGHTS = {
    "fp8-block": lambda w: quantize_fp8_block(w, block=(2, 16)),
    "fp8-channels": quantize_fp8_channels,
    "nvfp4": quantize_nvfp4,
    "mxfp4": quantize_mxfp4,
    "int4": lambda w: quantize_int4(w, group=32),
    "int4-zeros": lambda w: quantize_int4(w, group=32, zero_points=True),
}
TOKENS = {"fp8": quantize_fp8_tokens, "nvfp4": quantize_nvfp4_tokens}
every_weight = pytest.mark.parametrize("quantize", WEIGHTS.values(), ids=WEIGHTS)
every_token = pytest.mark.parametrize("quantize", TOKENS.values(), ids=TOKENS)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    size = torch.exp(torch.randn(*shape[:-1], 1, generator=generator))
    return torch.randn(shape, generator=generator) * size


# ---------------------------------------------------------------- all of them


@every_weight
def test_each_of_a_stack_by_itself_and_from_any_strides(quantize: Callable) -> None:
    w = randn(3, 6, 64)
    got = quantize(in_poison(w))
    want = stack([quantize(one) for one in w])
    assert torch.equal(got.dequantize(), dequantize(want)) and got.shape == w.shape
    assert torch.equal(quantize(w.transpose(1, 2).contiguous().mT).dequantize(), got.dequantize())


@every_weight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(quantize: Callable, dtype: torch.dtype) -> None:
    w = randn(6, 64).to(dtype)
    assert torch.equal(quantize(w).dequantize(), quantize(w.float()).dequantize())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("fp8-channels", 0.027),
        ("nvfp4", 0.097),
        ("mxfp4", 0.115),
        ("int4", 0.1),
        ("int4-zeros", 0.09),
    ],
)
def test_what_a_format_costs(name: str, most: float) -> None:
    """Relative error on normal values; as published, FP8 2.6 %, NVFP4 9.5 %, MXFP4 11 to 12 %."""
    w = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    gap = ((WEIGHTS[name](w).dequantize() - w).norm() / w.norm()).item()
    assert most * 0.85 < gap < most


@every_weight
def test_empty(quantize: Callable) -> None:
    assert quantize(torch.empty(0, 64)).dequantize().shape == (0, 64)
    assert quantize(torch.empty(2, 0, 64)).dequantize().shape == (2, 0, 64)
    assert quantize(torch.zeros(3, 64)).dequantize().eq(0).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: quantize_nvfp4(torch.ones(16)),
            r"quantize_nvfp4: w is torch.float32 \[16\], want",
        ),
        (lambda: quantize_mxfp4(torch.ones(2, 32).int()), "quantize_mxfp4: w is torch.int32"),
        (lambda: quantize_int4(torch.full((2, 128), math.nan)), "256 of 256 values are not finite"),
        (
            lambda: quantize_fp8_channels(torch.full((2, 2), math.inf)),
            "4 of 4 values are not finite",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 24)),
            "nvfp4: k is 24, want a multiple of 16",
        ),
        (
            lambda: quantize_mxfp4(torch.ones(2, 48)),
            "mxfp4: k is 48, want a multiple of 32",
        ),
        (
            lambda: quantize_int4(torch.ones(2, 64)),
            "int4: k is 64, want a multiple of 128",
        ),
        (
            lambda: quantize_mxfp4(torch.ones(2, 32), rule="up"),  # type: ignore[arg-type]
            "rule is 'up', want one of nearest, floor, ceil",
        ),
        (
            lambda: quantize_nvfp4(torch.ones(2, 3, 16), amax=torch.ones(3)),
            r"amax is torch.float32 \[3\], want float32 \[2\], one value a weight",
        ),
        (lambda: quantize_nvfp4(torch.ones(2, 16), amax=torch.tensor(1)), "amax is torch.int64"),
        (
            lambda: quantize_fp8_tokens(torch.ones(16)),
            r"x is torch.float32 \[16\], want float",
        ),
        (lambda: quantize_nvfp4_tokens(torch.ones(2, 16).int()), "x is torch.int32"),
        (lambda: quantize_nvfp4_tokens(torch.ones(2, 24)), "k is 24, want a multiple of 16"),
        (
            lambda: quantize_fp8_tokens(torch.ones(2, 3), torch.ones(2)),
            r"input_scale is torch.float32 \[2\], want one float32",
        ),
        (
            lambda: quantize_nvfp4_tokens(torch.ones(2, 16), torch.tensor(1)),
            r"input_scale is torch.int64 \[\], want one float32",
        ),
        (
            lambda: swizzle_128x4(torch.ones(2, 2)),
            "scales are torch.float32, want a type of one byte",
        ),
        (
            lambda: unswizzle_128x4(torch.zeros(1024).byte(), 128, 4),
            "1024 scales, want 512 for 128 rows of 4",
        ),
    ],
)
def test_refusals(make: Callable[[], object], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        make()


# ---------------------------------------------------------------- weights


def test_nvfp4_by_hand() -> None:
    w = torch.zeros(2, 32)
    w[0, 0], w[0, 1], w[0, 16], w[1, 0] = 2688.0, -448.0 * 1.25, 6.0, -2688.0
    got = quantize_nvfp4(w)  # g = 1, scales amax / 6
    assert got.row_scales.tolist() == [1.0, 1.0]
    assert got.scales.float().tolist() == [[448.0, 1.0], [448.0, 0.125]]
    assert got.codes[0, 0] == 0x7 | 0xA << 4  # 6; -1.25, whose tie goes to the even -1
    assert got.codes[0, 8] == 0x7 and got.codes[1, 0] == 0xF
    assert not got.codes[1, 1:].any()


def test_nvfp4_scales_that_round_to_zero_drop_their_block() -> None:
    """448 * 2^-10 / 448: below half of the smallest e4m3 the block is given up."""
    w = torch.full((1, 48), 2688.0)
    w[0, 16:32], w[0, 32:] = 6 * 2.0**-10, 6 * 1.01 * 2.0**-10
    got = quantize_nvfp4(w)
    assert got.scales.float().tolist() == [[448.0, 0.125, 2.0**-9]]
    assert (got.dequantize()[0, 16:32] == 0).all() and (got.dequantize()[0, 32:] > 0).all()


def test_nvfp4_scales_of_least_error() -> None:
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    w[0], w[1, :16] = 0.0, 6 * 2.0**-30
    plain, found = quantize_nvfp4(w), quantize_nvfp4(w, search=True)
    error = [(q.dequantize() - w).square().unflatten(-1, (-1, 16)).sum(-1) for q in (plain, found)]
    assert (error[1] <= error[0] * (1 + 1e-6)).all(), "no block becomes worse"
    assert 0.70 < (error[1].sum() / error[0].sum()).item() < 0.75  # published: 6.61 of 9.06
    assert torch.equal(found.row_scales, plain.row_scales)
    codes, start = (q.scales.view(torch.uint8).int() for q in (found, plain))
    assert (codes - start)[2:].min() == -2 and (codes - start)[2:].max() >= 6
    assert torch.equal(codes[0], start[0]) and not found.codes[0].any(), "zeros stay as they are"
    # One value: its own scale is best, and a larger one cannot be told from it.
    one = torch.zeros(1, 16)
    one[0, 3] = 6.0
    assert torch.equal(quantize_nvfp4(one, search=True).codes, quantize_nvfp4(one).codes)


def test_nvfp4_search_ends_at_the_ends_of_e4m3() -> None:
    w = torch.full((2, 16), 6 * 2.0**-9 / 448)
    w[0] = 6.0
    found = quantize_nvfp4(w, search=True).scales.float()
    assert found.isfinite().all() and (found > 0).all() and found[0] == 448
    # Weights of one block each start at the end; lower scales are tried all the same.
    single = torch.rand(512, 1, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes = quantize_nvfp4(single, search=True).scales.view(torch.uint8)
    assert (quantize_nvfp4(single).scales.float() == 448).all()
    assert codes.max() == 0x7E and codes.min() <= 0x7C


@pytest.mark.parametrize(
    ("largest", "floor", "nearest", "ceil"),
    [  # exponents of the scale; the fourth is where only "ceil" keeps the largest value
        (6.0, 0, 0, 0),
        (4.0, 0, 0, 0),
        (3.99, -1, 0, 0),
        (3.5, -1, 0, 0),
        (3.49, -1, -1, 0),
        (3.0, -1, -1, -1),
        (6.01, 0, 0, 1),
        (7.0, 0, 1, 1),
        (8.0, 1, 1, 1),
        (2.0**-130, -127, -127, -127),
        (2.0**127, 125, 125, 125),
    ],
)
def test_rules_of_power_of_two_scales(largest: float, floor: int, nearest: int, ceil: int) -> None:
    w = torch.zeros(1, 32)
    w[0, 5] = -largest
    for rule, want in (("floor", floor), ("nearest", nearest), ("ceil", ceil)):
        got = quantize_mxfp4(w, rule=rule)  # type: ignore[arg-type]
        assert int(got.scales[0, 0]) - 127 == want, rule
        value = got.dequantize()[0, 5].item()
        assert abs(value) <= 6 * 2.0**want
        if rule == "ceil" and largest > 2.0**-120:
            assert abs(value + largest) <= 2.0**want * 1.0001, "nothing saturates"


def test_int4_by_hand() -> None:
    w = torch.zeros(1, 64)
    w[0, :3] = torch.tensor([7.5, -7.5, 0.5])
    got = quantize_int4(w, group=32)
    assert got.scales.tolist() == [[1.0, 2.0**-23]] and got.zeros is None
    assert got.dequantize()[0, :3].tolist() == [7.0, -8.0, 0.0]  # 0.5 ties to 0, 7.5 ends at 7
    w[0, :3] = torch.tensor([10.0, -5.0, 0.4])
    got = quantize_int4(w, group=32, zero_points=True)
    assert got.scales[0, 0] == 1.0 and got.zeros is not None and got.zeros[0, 0] == 5
    assert got.dequantize()[0, :3].tolist() == [10.0, -5.0, 0.0]
    assert got.zeros[0, 1] == 0 and (got.dequantize()[0, 32:] == 0).all()


def test_int4_codes_are_by_the_rounded_scales() -> None:
    w = randn(8, 64)
    got = quantize_int4(w, group=32, scale_dtype=torch.bfloat16)
    assert got.scales.dtype == torch.bfloat16
    exact = w.unflatten(-1, (2, 32)) / got.scales.float()[..., None]
    want = exact.clamp(-8, 7).round() * got.scales.float()[..., None]
    assert torch.equal(got.dequantize(), want.flatten(-2))
    assert not torch.equal(got.codes, quantize_int4(w, group=32).codes)


# ---------------------------------------------------------------- activations


def test_nvfp4_tokens_by_hand() -> None:
    x = torch.zeros(2, 32)
    x[0, :2] = torch.tensor([2688.0, -560.0])
    x[0, 16], x[1, 3] = 3.0, 1.0
    got = quantize_nvfp4_tokens(x)
    assert torch.equal(got.row_scales, torch.tensor([1.0, 1.0]) / torch.tensor([1.0, 2688.0]))
    assert got.scales.float().tolist() == [[448.0, 0.5], [448.0, 2.0**-9]]
    assert got.codes[0, 0] == 0x7 | 0xA << 4 and got.codes[0, 8] == 0x7
    assert got.dequantize()[1, 3] == pytest.approx(1.0, rel=1e-6)


def test_nvfp4_tokens_keep_the_smallest_scale() -> None:
    """2^-9 where amax / (6 f) is less: values near it survive, where weights' rule drops them."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16] = 2688.0, 2.0**-9 * 1.5
    got = quantize_nvfp4_tokens(x)
    assert got.scales.float()[0, 1] == 2.0**-9 and got.dequantize()[0, 16] == x[0, 16]


def test_static_factors_saturate() -> None:
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 16] = 1e6, 2688.0, 6.0
    got = quantize_nvfp4_tokens(x, torch.tensor([0.5]))
    assert got.row_scales.tolist() == [0.5]
    assert got.dequantize()[0, [0, 1, 16]].tolist() == [1344.0, 1344.0, 6.0]
    fp8 = quantize_fp8_tokens(x, torch.tensor(2.0))
    assert fp8.scales.tolist() == [2.0] and fp8.dequantize()[0, [0, 1, 16]].tolist() == [
        896,
        896,
        6,
    ]


@every_token
def test_tokens_do_not_depend_on_each_other(quantize: Callable) -> None:
    x = randn(5, 64)
    got = quantize(x)
    for i in range(5):
        assert torch.equal(quantize(x[i : i + 1]).dequantize(), got.dequantize()[i : i + 1])
    assert torch.equal(quantize(in_poison(x)).dequantize(), got.dequantize())
    assert quantize(x[:0]).shape == (0, 64) and quantize(x[:, :0]).shape == (5, 0)
    assert quantize(x.reshape(5, 1, 64)).shape == (5, 1, 64)


@every_token
def test_tokens_of_zeros_and_tiny_values(quantize: Callable) -> None:
    x = torch.zeros(2, 32)
    x[1, 7] = 2.0**-120
    got = quantize(x).dequantize()
    assert (got == 0).all() and got.isfinite().all()


def test_the_floors_of_dynamic_scales() -> None:
    tiny = torch.full((1, 16), 1e-5)
    assert quantize_fp8_tokens(tiny).scales.item() == (torch.tensor(1e-4) / 448).item()
    assert quantize_nvfp4_tokens(torch.full((1, 16), 1e-30)).row_scales.item() == 2.0**-100
    assert quantize_nvfp4_tokens(torch.full((1, 16), 1e-20)).row_scales.item() > 2.0**-100


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_values_spoil_their_token_or_block(bad: float) -> None:
    x = torch.ones(3, 64)
    x[1, 20] = bad
    for quantize in TOKENS.values():
        got = quantize(x).dequantize()
        assert got[1].isnan().all() and not got[[0, 2]].isnan().any()
    one = torch.tensor(1.0)
    fp8, fp4 = (quantize(x, one).dequantize() for quantize in TOKENS.values())
    if math.isnan(bad):
        assert fp8[1, 20].isnan() and int(fp8.isnan().sum()) == 1
        assert fp4[1, 16:32].isnan().all() and int(fp4.isnan().sum()) == 16
    else:
        assert fp8[1, 20] == math.copysign(448, bad) and fp4[1, 20] == math.copysign(2688, bad)
        assert not fp8.isnan().any() and not fp4.isnan().any()


# ---------------------------------------------------------------- layout of scales


@pytest.mark.parametrize(
    "shape", [(128, 4), (1, 1), (130, 6), (256, 12), (300, 3), (0, 4)], ids=str
)
def test_128x4_layout(shape: tuple[int, int]) -> None:
    n, columns = shape
    scales = random_bytes(n, columns, seed=n, low=1)
    got = swizzle_128x4(scales)
    groups = -(-columns // 4)
    want = torch.zeros(-(-n // 128) * groups * 512, dtype=torch.uint8)
    for r in range(n):
        for c in range(columns):
            tile = (r // 128 * groups + c // 4) * 512
            want[tile + r % 32 * 16 + r % 128 // 32 * 4 + c % 4] = scales[r, c]
    assert torch.equal(got, want)
    assert torch.equal(unswizzle_128x4(got, n, columns), scales)


def test_128x4_of_stacks_and_strides() -> None:
    scales = finite_e4m3(3, 40, 5, seed=1)
    got = swizzle_128x4(scales)
    assert got.dtype == scales.dtype and got.shape == (3, 1024)
    for e in range(3):
        assert torch.equal(got[e].view(torch.uint8), swizzle_128x4(scales[e]).view(torch.uint8))
    back = unswizzle_128x4(got, 40, 5)
    assert torch.equal(back.view(torch.uint8), scales.view(torch.uint8))
    view = finite_e4m3(40, 10, seed=2)[::2, ::2]
    assert torch.equal(
        swizzle_128x4(view).view(torch.uint8), swizzle_128x4(view.contiguous()).view(torch.uint8)
    )
