"""References on quantized weights, and on quantized activations, against sums in fp64."""

from collections.abc import Callable

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats import (
    Fp8Block,
    Fp8Rows,
    Nvfp4,
    QuantizedTensor,
    dequantize,
    quantize_fp8_block,
    quantize_fp8_channels,
    quantize_fp8_rows,
    quantize_fp8_tokens,
    quantize_int4,
    quantize_mxfp4,
    quantize_nvfp4_tokens,
)
from sparkwell.ops.linear import (
    activations_reference,
    fp8_block_gemm_reference,
    linear,
    linear_reference,
    quantized_gemm_reference,
    quantized_linear_reference,
)
from sparkwell.ops.moe import experts
from sparkwell.ops.moe.reference import experts_reference
from sparkwell.testing import assert_matches, in_poison
from weights import E2M1, KINDS, int4, nvfp4, slow

Make = Callable[..., QuantizedTensor]
every = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def scaled(got: torch.Tensor, want: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both divided by the size of `want`: tolerances are for results of size 1."""
    size = want.abs().mean().clamp(min=1e-30)
    return (got.double() / size).float(), (want.double() / size).float()


# ---------------------------------------------------------------- weights only


@every
def test_linear_of_every_format(make: Make) -> None:
    weight, x, bias = make(9, 96, seed=2), in_poison(randn(2, 5, 96)), randn(9)
    want = x.double() @ slow(weight).T
    assert_matches(*scaled(linear(x, weight), want), "matmul")
    assert_matches(*scaled(linear(x, weight, bias), want + bias.double()), "matmul")
    assert torch.equal(linear(x, weight, out_dtype=torch.bfloat16), linear(x, weight).bfloat16())
    assert linear(x[:0], weight).shape == (0, 5, 9)


def test_ordered_columns_meet_the_x_they_name() -> None:
    """y = sum_j w[j] x[order[j]], formed from the stored columns."""
    weight, x = int4(7, 64, ordered=True, seed=5), randn(3, 64)
    plain = type(weight)(weight.codes, weight.scales, weight.zeros, weight.group)
    assert weight.order is not None
    want = x[:, weight.order.long()].double() @ plain.dequantize().double().T
    assert_matches(*scaled(linear(x, weight), want), "matmul")
    assert not torch.allclose(want.float(), linear(x, plain))


@every
def test_experts_of_every_format(make: Make) -> None:
    gate_up, down = make(3, 2 * 32, 64, seed=4), make(3, 64, 32, seed=6)
    x, ids = randn(5, 64) / 100, torch.tensor([[0, 2], [1, 0], [2, 2], [2, 1], [0, 1]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    got = experts(x, ids, weights, gate_up, down)
    want = experts_reference(x, ids, weights, dequantize(gate_up), dequantize(down))
    assert torch.equal(got, want)
    out = torch.zeros(5, 64, dtype=torch.float64)
    for t in range(5):
        for expert, factor in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            gate, up = (slow(gate_up.select(expert)) @ x[t].double()).chunk(2)
            hidden = torch.nn.functional.silu(gate) * up
            out[t] += factor * (slow(down.select(expert)) @ hidden)
    assert_matches(*scaled(got, out), "matmul")


# ---------------------------------------------------------------- both operands quantized


def fp4_values(weight: Nvfp4) -> torch.Tensor:
    """The codes' values in fp64, scales left out."""
    nibbles = torch.stack((weight.codes & 15, weight.codes >> 4), -1).flatten(-2).long()
    return torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=torch.float64)[nibbles]


@pytest.mark.parametrize("static", [None, 0.02])
def test_w4a4_is_a_sum_over_blocks(static: float | None) -> None:
    """y = f_m f_n sum_b s[m, b] s[n, b] (sum of 16 products), as block-scaled units form it."""
    x, weight = randn(4, 96) * 30, nvfp4(6, 96, seed=3)
    x_q = quantize_nvfp4_tokens(x, None if static is None else torch.tensor(static))
    want = torch.zeros(4, 6, dtype=torch.float64)
    for b in range(6):
        cut = slice(16 * b, 16 * b + 16)
        dots = fp4_values(x_q)[:, cut] @ fp4_values(weight)[:, cut].T
        want += dots * x_q.scales[:, b, None].double() * weight.scales[:, b].double()
    want *= x_q.row_scales[:, None].double() * weight.row_scales.double()
    assert_matches(*scaled(quantized_gemm_reference(x_q, weight), want), "matmul")
    exact = linear_reference(x, weight)
    assert 0.02 < ((want - exact).norm() / exact.norm()).item() < 0.4, "the format shows"


@pytest.mark.parametrize("static", [None, 0.02])
def test_w8a8_scales_stand_outside_the_sum(static: float | None) -> None:
    x = randn(4, 96) * 3
    weight = quantize_fp8_channels(randn(6, 96, seed=1) * torch.arange(1, 7)[:, None])
    x_q = quantize_fp8_tokens(x, None if static is None else torch.tensor(static))
    want = x_q.values.double() @ weight.values.double().T
    want *= x_q.scales[:, None].double() * weight.scales.double()
    assert_matches(*scaled(quantized_gemm_reference(x_q, weight), want), "matmul")


def test_w4a8() -> None:
    x, weight = randn(4, 96) * 3, nvfp4(6, 96, seed=3)
    x_q = quantize_fp8_tokens(x)
    want = (x_q.values.double() * x_q.scales[:, None].double()) @ slow(weight).T
    assert_matches(*scaled(quantized_gemm_reference(x_q, weight), want), "matmul")


FORMATS = ["none", "fp8-token", "fp8-tensor", "fp8-group", "nvfp4", "mxfp4"]


@pytest.mark.parametrize("activations", FORMATS)
def test_activations_of_each_format(activations: str) -> None:
    x, weight = in_poison(randn(2, 3, 256) * 5), nvfp4(6, 256, seed=3)
    rows = x.reshape(6, 256)
    values, scales = quantize_fp8_rows(rows, 128)
    want = {
        "none": rows,
        "fp8-token": quantize_fp8_tokens(rows).dequantize(),
        "fp8-tensor": quantize_fp8_tokens(rows).dequantize(),
        "fp8-group": values.float() * scales.repeat_interleave(128, 1),
        "nvfp4": quantize_nvfp4_tokens(rows).dequantize(),
        "mxfp4": quantize_mxfp4(rows).dequantize(),
    }[activations].reshape(x.shape)
    got = activations_reference(x, weight, activations)  # type: ignore[arg-type]
    assert torch.equal(got, want)
    y = quantized_linear_reference(x, weight, randn(6), activations=activations)  # type: ignore[arg-type]
    assert torch.equal(y, linear_reference(want, weight, randn(6)))
    assert quantized_linear_reference(x[:0], weight).shape == (0, 3, 6)


def test_the_checkpoints_activations_are_the_default() -> None:
    x = randn(5, 256)
    scale = torch.tensor(0.001)
    values = quantize_fp8_channels(randn(4, 256, seed=1))
    for weight in (
        Fp8Rows(values.values, values.scales, "fp8-tensor", scale),
        nvfp4(4, 256, static=True),
        nvfp4(4, 256, activations="fp8-token"),
        quantize_mxfp4(randn(4, 256)),
    ):
        got = quantized_linear_reference(x, weight)
        want = quantized_linear_reference(x, weight, activations=weight.activations)
        assert torch.equal(got, want)
        assert torch.equal(got, linear_reference(x, weight)) == (weight.activations == "none")
    static = Fp8Rows(values.values, values.scales, "fp8-tensor", scale)
    assert activations_reference(x, static).abs().max() == 448 * scale, "the static scale"
    # Another format is scaled as the activations come.
    assert activations_reference(x, static, "fp8-token").abs().max() > 1


def test_groups_are_those_of_the_weights_blocks() -> None:
    x, w = randn(3, 96) * torch.tensor([1.0, 30.0, 900.0]).repeat_interleave(32), randn(6, 96)
    blocks = quantize_fp8_block(w, block=(2, 32))
    weight = Fp8Block(blocks.values, blocks.scales, (2, 32), "fp8-group")
    x_q, x_scales = quantize_fp8_rows(x, 32)
    want = fp8_block_gemm_reference(x_q, x_scales, weight)
    assert torch.equal(quantized_linear_reference(x, weight), want)


def test_an_unknown_format_is_named() -> None:
    text = "activations_reference: activations are 'int8', want one of none, fp8-token"
    with pytest.raises(BadInput, match=text):
        activations_reference(randn(2, 256), quantize_int4(randn(4, 256)), "int8")  # type: ignore[arg-type]
