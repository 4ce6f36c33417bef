"""RMSNorm and LayerNorm against fp64 formulas, torch, and Transformers."""

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.ops.norm import (
    add_rms_norm,
    layer_norm,
    layer_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from sparkwell.testing import assert_matches, in_poison

SHAPES = [(0, 5), (1, 1), (3, 257), (2, 0, 8), (2, 3, 64), (7,)]


def tensors(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=g) for s in (shape, shape[-1:], shape[-1:]))
    return in_poison(3.0 * x + 0.5), in_poison(weight), in_poison(bias)


def rms_fp64(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def layer_fp64(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    x = x.double()
    mean = x.mean(-1, keepdim=True)
    variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0.0)
    return (x - mean) / (variance + eps).sqrt() * weight.double() + bias.double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_are_their_formulas(shape: tuple[int, ...]) -> None:
    x, weight, bias = tensors(shape)
    before = x.clone()
    assert_matches(rms_norm(x, weight, eps=1e-5), rms_fp64(x, weight, 1e-5), "elementwise")
    got = layer_norm(x, weight, bias, eps=1e-5)
    if shape != (1, 1):  # one element has no variance: what is left of it is rounding
        assert_matches(got, layer_fp64(x, weight, bias, 1e-5), "elementwise")
    assert got.shape == torch.Size(shape)
    assert torch.equal(x, before)


def test_torch_and_transformers_agree() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

    x, weight, bias = tensors((5, 96), seed=1)
    theirs = DeepseekV3RMSNorm(96, eps=3e-2)
    theirs.weight.data.copy_(weight)
    assert_matches(rms_norm(x, weight, eps=3e-2), theirs(x).detach(), "elementwise")
    torchs = torch.nn.functional.layer_norm(x, (96,), weight, bias, eps=3e-2)
    assert_matches(layer_norm(x, weight, bias, eps=3e-2), torchs, "elementwise")


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1.0])
def test_eps_is_added_to_the_square_inside_the_root(eps: float) -> None:
    x = in_poison(torch.tensor([[1e-3, -1e-3, 2e-3, 1e-3], [0.0, 0.0, 0.0, 0.0]]))
    one, zero = torch.ones(4), torch.zeros(4)
    assert_matches(rms_norm(x, one, eps=eps), rms_fp64(x, one, eps), "elementwise")
    got = layer_norm(x, one, zero, eps=eps)
    assert_matches(got, layer_fp64(x, one, zero, eps), "elementwise")
    other = rms_norm(x, one, eps=2 * eps)
    assert not torch.allclose(rms_norm(x, one, eps=eps), other, rtol=1e-2)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    g = torch.Generator().manual_seed(2)
    x = 1e4 + torch.randn(3, 128, generator=g)  # x^2 - mean^2 in fp32 would keep no digit of it
    got = layer_norm(x, torch.ones(128), torch.zeros(128), eps=1e-6)
    assert (got - layer_fp64(x, torch.ones(128), torch.zeros(128), 1e-6)).abs().max() < 2e-3
    assert abs(float(got.std(correction=0)) - 1.0) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    x = (400.0 * torch.randn(6, 300, generator=g)).to(dtype)  # squares overflow fp16
    weight, bias = torch.randn(300, generator=g).to(dtype), torch.randn(300, generator=g)
    rms, layer = rms_norm(x, weight, eps=1e-6), layer_norm(x, weight, bias, eps=1e-6)
    assert rms.dtype == layer.dtype == dtype
    assert torch.equal(rms, rms_norm_reference(x, weight, eps=1e-6).to(dtype))
    assert torch.equal(layer, layer_norm_reference(x, weight, bias, eps=1e-6).to(dtype))
    assert_matches(
        rms_norm_reference(x, weight, eps=1e-6), rms_fp64(x, weight, 1e-6), "elementwise"
    )
    assert rms_norm_reference(x, weight, eps=1e-6).dtype == torch.float32
    assert layer_norm_reference(x, weight, bias, eps=1e-6).dtype == torch.float32


def test_a_nan_row_spoils_no_other() -> None:
    x, weight, bias = tensors((3, 9))
    clean = rms_norm(x, weight, eps=1e-6), layer_norm(x, weight, bias, eps=1e-6)
    x[1, 4] = torch.nan
    for got, want in zip(
        (rms_norm(x, weight, eps=1e-6), layer_norm(x, weight, bias, eps=1e-6)), clean, strict=True
    ):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_wrong_shapes_and_types_are_named() -> None:
    x = torch.ones(2, 6)
    wrong = r"weight is \(5,\) for x \(2, 6\), want one value per element of x's last"
    with pytest.raises(BadInput, match=f"rms_norm: {wrong}"):
        rms_norm(x, torch.ones(5), eps=1e-6)
    with pytest.raises(BadInput, match=f"layer_norm: {wrong}"):
        layer_norm(x, torch.ones(5), torch.ones(6), eps=1e-6)
    with pytest.raises(BadInput, match=r"layer_norm: bias is \(1,\) for x \(2, 6\)"):
        layer_norm(x, torch.ones(6), torch.ones(1), eps=1e-6)
    with pytest.raises(BadInput, match=r"rms_norm: weight is \(1,\) for x \(2, 6\)"):
        rms_norm(x, torch.ones(1), eps=1e-6)  # would broadcast
    with pytest.raises(BadInput, match=r"rms_norm: weight is \(\) for x \(\), want"):
        rms_norm(torch.tensor(1.0), torch.tensor(1.0), eps=1e-6)
    with pytest.raises(BadInput, match=r"rms_norm: x is torch.int64, want a float type"):
        rms_norm(x.long(), torch.ones(6), eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_and_its_norm_are_two_steps_in_one(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(5)
    x, delta = (in_poison(torch.randn(6, 40, generator=g).to(dtype)) for _ in range(2))
    weight = in_poison(torch.randn(40, generator=g))
    total, y = add_rms_norm(x, delta, weight, eps=1e-5)
    assert torch.equal(total, x + delta) and total.dtype == y.dtype == dtype
    assert torch.equal(y, rms_norm(x + delta, weight, eps=1e-5))  # of the rounded sum
    with pytest.raises(BadInput, match=r"add_rms_norm: delta is \(6, 39\) .* want the same"):
        add_rms_norm(x, delta[:, 1:], weight, eps=1e-5)
    with pytest.raises(BadInput, match="want the same"):
        add_rms_norm(x, delta.double(), weight, eps=1e-5)
