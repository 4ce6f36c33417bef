"""FP8 blocks and rows: scale rules worked by hand, error bounds by property, partial edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import (
    Fp8Block,
    dequantize_fp8_rows,
    quantize_fp8_block,
    quantize_fp8_rows,
)
from sparkwell.testing import in_poison

E4M3 = torch.float8_e4m3fn


def random(*shape: int, seed: int = 0, spread: float = 4.0) -> torch.Tensor:
    """Values whose magnitudes differ by orders, so that each block has its own scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return x * torch.exp(torch.randn(*shape[:-1], 1, generator=generator) * spread / 4)


def bound(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Largest error of e4m3: half a step, 2^-4 relative, or half the subnormal step 2^-9."""
    return torch.maximum(x.abs() * 2.0**-4, scale * 2.0**-10) * (1 + 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.booleans())
def test_block_error_is_within_half_a_step(n, k, seed, pow2):
    w = random(n, k, seed=seed)
    q = quantize_fp8_block(w, pow2=pow2)
    assert (q.values.dtype, q.shape, q.device) == (E4M3, w.shape, w.device)
    assert list(q.scales.shape) == [math.ceil(n / 128), math.ceil(k / 128)]
    per_value = torch.tensor(
        [[q.scales[i // 128, j // 128].item() for j in range(k)] for i in (0, n - 1)]
    )
    picked = torch.stack((w[0], w[n - 1]))
    got = torch.stack((q.dequantize()[0], q.dequantize()[n - 1]))
    assert ((got - picked).abs() <= bound(picked, per_value)).all()
    if pow2:
        assert (torch.frexp(q.scales).mantissa == 0.5).all()


def test_block_scales_belong_to_their_block():
    w = torch.ones(130, 260)
    w[:128, :128], w[128:, :128], w[128:, 256:] = 448.0, 896.0, -28.0
    w[3, 130] = 14.0
    q = quantize_fp8_block(w)
    want = torch.tensor([[448.0, 14.0, 1.0], [896.0, 1.0, 28.0]]) / 448
    assert torch.equal(q.scales, want)
    assert torch.equal(q.dequantize()[128:, :128], w[128:, :128])
    assert torch.equal(q.dequantize()[128:, 256:], w[128:, 256:])
    assert q.values.float()[0, 0] == 448.0


def test_pow2_rounds_the_scale_up():
    w = torch.full((1, 1), 449.0)
    assert quantize_fp8_block(w).scales.item() == pytest.approx(449 / 448, rel=1e-7)
    assert quantize_fp8_block(w, pow2=True).scales.item() == 2.0
    assert quantize_fp8_block(torch.full((1, 1), 448.0), pow2=True).scales.item() == 1.0


def test_zero_and_tiny_blocks_have_a_normal_scale():
    w = torch.zeros(1, 384)
    w[0, 130], w[0, 300] = 1e-30, 2.0**-126
    q = quantize_fp8_block(w)
    assert q.scales[0, 0] == 2.0**-126
    assert q.dequantize()[0, 130].item() == pytest.approx(1e-30, rel=2**-4)
    assert q.dequantize()[0, 300].item() == 2.0**-126
    assert not q.dequantize()[0, :128].any()


def test_other_blocks_strided_and_stacked():
    w = random(3, 5, 7, seed=5)
    q = quantize_fp8_block(in_poison(w), block=(2, 3))
    assert list(q.scales.shape) == [3, 3, 3]
    per_value = q.scales[:, [0, 0, 1, 1, 2]][:, :, [0, 0, 0, 1, 1, 1, 2]]
    assert torch.equal(q.dequantize(), q.values.float() * per_value)
    for e in range(3):
        one = quantize_fp8_block(w[e].contiguous(), block=(2, 3))
        assert torch.equal(q.select(e).dequantize(), one.dequantize())
        assert q.select(e).block == (2, 3)
    assert q.select(1).values.data_ptr() == q.values[1].data_ptr()


def test_dequantize_rounds_once_from_the_fp32_product():
    values = torch.tensor([[1.125]]).to(E4M3)
    q = Fp8Block(values, torch.tensor([[1.00390625]]))  # the scale alone is a tie in bf16
    assert q.dequantize(torch.bfloat16).item() == 1.1328125  # 1.12939...; 1.125 if rounded twice
    assert q.dequantize().dtype == torch.float32


def test_empty_weights():
    assert quantize_fp8_block(torch.empty(0, 5)).dequantize().shape == (0, 5)
    assert quantize_fp8_block(torch.empty(2, 0, 5)).scales.shape == (2, 0, 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fp8Block(torch.ones(2, 2), torch.ones(1, 1)), "values are torch.float32"),
        (lambda: Fp8Block(torch.ones(2).to(E4M3), torch.ones(1)), r"\[2\], want float8_e4m3fn"),
        (
            lambda: Fp8Block(torch.ones(129, 2).to(E4M3), torch.ones(1, 1)),
            r"scales are torch.float32 \[1, 1\], want float32 \[2, 1\]",
        ),
        (
            lambda: Fp8Block(torch.ones(2, 2).to(E4M3), torch.ones(1, 1).bfloat16()),
            "scales are torch.bfloat16",
        ),
        (
            lambda: Fp8Block(torch.ones(2, 2).to(E4M3), torch.ones(1, 1), (0, 4)),
            r"block is \(0, 4\), want two positive",
        ),
        (lambda: quantize_fp8_block(torch.ones(3)), r"w is torch.float32 \[3\]"),
        (lambda: quantize_fp8_block(torch.ones(3, 3).int()), "w is torch.int32"),
        (
            lambda: quantize_fp8_block(torch.tensor([[1.0, math.inf, math.nan]])),
            "2 of 3 values are not finite",
        ),
        (
            lambda: quantize_fp8_block(torch.ones(4, 4)).select(0),
            "is one weight, not a stack",
        ),
        (
            lambda: quantize_fp8_block(torch.ones(2, 4, 4)).select(2),
            "expert 2, want 0 <= expert < 2",
        ),
        (lambda: quantize_fp8_block(torch.ones(2, 4, 4)).select(-1), "expert -1"),
        (lambda: quantize_fp8_rows(torch.ones(3).int()), "x is torch.int32"),
        (lambda: quantize_fp8_rows(torch.ones(3), 0), "groups of 0"),
        (
            lambda: dequantize_fp8_rows(torch.ones(2, 130).to(E4M3), torch.ones(2, 1)),
            r"scales \[2, 1\]; want float8_e4m3fn and scales \[2, 2\]",
        ),
        (lambda: dequantize_fp8_rows(torch.ones(2, 3), torch.ones(2, 1)), "torch.float32"),
    ],
)
def test_refusals_say_what_came_and_what_was_wanted(make, text):
    with pytest.raises(BadInput, match=text):
        make()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 4),
    st.integers(0, 300),
    st.sampled_from([1, 16, 100, 128]),
    st.integers(0, 99),
    st.booleans(),
)
def test_row_error_is_within_half_a_step(rows, k, group, seed, pow2):
    x = random(rows, k, seed=seed)
    values, scales = quantize_fp8_rows(in_poison(x), group, pow2)
    assert (values.dtype, scales.dtype) == (E4M3, torch.float32)
    assert values.shape == x.shape and list(scales.shape) == [rows, math.ceil(k / group)]
    got = dequantize_fp8_rows(values, scales, group)
    for g in range(scales.shape[1]):
        cut = slice(g * group, (g + 1) * group)
        assert ((got - x)[:, cut].abs() <= bound(x[:, cut], scales[:, g : g + 1])).all()
        if pow2:
            assert (torch.frexp(scales[:, g]).mantissa == 0.5).all()


def test_row_scales_by_hand():
    x = torch.tensor([[448.0, 1.0, -3.0, 0.5, 1e-6]])
    values, scales = quantize_fp8_rows(x, 2)
    floor = torch.tensor(1e-4) / 448
    assert torch.equal(
        scales, torch.stack((torch.tensor(1.0), torch.tensor(3.0) / 448, floor))[None]
    )
    assert values.float()[0, :3].tolist() == [448.0, 1.0, -448.0]
    assert values.float()[0, 4].item() == 4.5  # 1e-6 / (1e-4 / 448) = 4.48
    _, up = quantize_fp8_rows(x, 2, pow2=True)
    assert up.tolist() == [[1.0, 2.0**-7, 2.0**-22]]
    _, tiny = quantize_fp8_rows(x, 2, floor=1e-9)
    assert tiny[0, 2].item() == pytest.approx(1e-6 / 448)


def test_a_bad_value_spoils_its_group_only():
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.ones(2, 8)
        x[0, 5] = bad
        for pow2 in (False, True):
            values, scales = quantize_fp8_rows(x, 4, pow2)
            got = dequantize_fp8_rows(values, scales, 4)
            assert got[0, 4:].isnan().all()
            assert torch.allclose(got[0, :4], x[0, :4]) and torch.allclose(got[1], x[1])
