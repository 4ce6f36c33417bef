"""Our quantizers against the compressed-tensors library: its bytes and what it makes of them."""

from typing import Any

import pytest
import torch

from sparkwell.formats import (
    Fp8Block,
    quantize_fp8_block,
    quantize_fp8_channels,
    quantize_fp8_tokens,
    quantize_int4,
    quantize_mxfp4,
    quantize_nvfp4,
    quantize_nvfp4_tokens,
)

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    compute_dynamic_scales_and_zp,
    generate_gparam,
)

E4M3 = torch.float8_e4m3fn
NVFP4 = QuantizationArgs(
    num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=E4M3
)
MXFP4 = QuantizationArgs(
    num_bits=4, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8
)


def weights(n: int = 96, k: int = 512, seed: int = 0) -> torch.Tensor:
    """Rows and blocks of far differing sizes, zeros of both signs, values on the ties."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=generator)
    w *= torch.exp(torch.randn(n, 1, generator=generator) * 2)
    w[2, ::3], w[3], w[4, 5:9] = 0.0, 0.0, -0.0
    w[5, :32] = 1e-7  # scales that round to zero or nearly
    w[6, :32] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 4)
    w[6, 1:32:2] *= -1
    return w


def scaled(w: torch.Tensor, args: QuantizationArgs, **options: Any) -> dict[str, torch.Tensor]:
    """The library's scales and zero points for a weight, by its smallest and largest values."""
    groups = w.unflatten(-1, (-1, args.group_size)) if args.group_size else w
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, **options)
    return {"weight": w, "weight_scale": scale, "weight_zero_point": zero}


def written(name: str, state: dict[str, torch.Tensor], args: QuantizationArgs) -> Any:
    """(compressed state, weight the library reads back from it)."""
    writer = BaseCompressor.get_value_from_registry(name)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressed = writer.compress(state, scheme)
    return compressed, writer.decompress(compressed, scheme)["weight"]


def bytes_of(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1.0, 1e-4, 3e4])
def test_nvfp4_is_bit_exact(seed: int, size: float) -> None:
    w = weights(seed=seed) * size
    g = generate_gparam(w.min(), w.max())
    state = scaled(w, NVFP4, global_scale=g) | {"weight_global_scale": g}
    compressed, read = written("nvfp4-pack-quantized", state, NVFP4)
    got = quantize_nvfp4(w)
    assert torch.equal(got.codes, compressed["weight_packed"])
    assert torch.equal(bytes_of(got.scales), bytes_of(compressed["weight_scale"]))
    assert torch.equal(got.row_scales, (1 / g).expand(len(w)))
    assert (got.scales.float() == 0.125).any() and len(got.scales.float().unique()) > 20
    # The library multiplies in bfloat16.
    assert torch.allclose(got.dequantize(), read.float(), rtol=2**-7, atol=0)


def test_nvfp4_between_two_codes() -> None:
    """Values that lie on the edges, as exactly as fp32 tells: one rounding more would show."""
    w = weights(64)
    g = generate_gparam(w.min(), w.max())
    steps = (quantize_nvfp4(w).scales.float() / g).repeat_interleave(16, -1)
    edges = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    largest = w.unflatten(-1, (-1, 16)).abs().amax(-1).repeat_interleave(16, -1) == w.abs()
    w = torch.where(largest, w, edges[torch.arange(512) % 7] * steps * w.sign())
    state = scaled(w, NVFP4, global_scale=g) | {"weight_global_scale": g}
    compressed, _ = written("nvfp4-pack-quantized", state, NVFP4)
    assert torch.equal(quantize_nvfp4(w).codes, compressed["weight_packed"])


def test_nvfp4_of_shards_that_share_a_global_scale() -> None:
    q, k = weights(seed=1), weights(seed=2) * 5
    amax = torch.maximum(q.abs().max(), k.abs().max())
    g = generate_gparam(-amax, amax)
    state = scaled(q, NVFP4, global_scale=g) | {"weight_global_scale": g}
    compressed, _ = written("nvfp4-pack-quantized", state, NVFP4)
    got = quantize_nvfp4(q, amax=amax)
    assert torch.equal(got.codes, compressed["weight_packed"])
    assert torch.equal(bytes_of(got.scales), bytes_of(compressed["weight_scale"]))
    assert not torch.equal(got.codes, quantize_nvfp4(q).codes), "the shared scale shows"


def test_nvfp4_of_nothing() -> None:
    w = torch.zeros(4, 32)
    g = generate_gparam(w.min(), w.max())
    state = scaled(w, NVFP4, global_scale=g) | {"weight_global_scale": g}
    compressed, _ = written("nvfp4-pack-quantized", state, NVFP4)
    got = quantize_nvfp4(w)
    assert torch.equal(got.codes, compressed["weight_packed"]) and not got.codes.any()
    assert torch.equal(bytes_of(got.scales), bytes_of(compressed["weight_scale"]))
    assert (got.row_scales == 1).all() and g == 1


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e20])
def test_mxfp4_is_bit_exact(size: float) -> None:
    w = weights() * size
    compressed, read = written("mxfp4-pack-quantized", scaled(w, MXFP4), MXFP4)
    got = quantize_mxfp4(w)
    assert torch.equal(got.scales, compressed["weight_scale"])
    assert torch.equal(got.codes, compressed["weight_packed"])
    assert torch.equal(got.dequantize(), read.float())
    assert not torch.equal(got.scales, quantize_mxfp4(w, rule="floor").scales)
    assert not torch.equal(got.scales, quantize_mxfp4(w, rule="ceil").scales)


@pytest.mark.parametrize("group", [32, 128, 512])
@pytest.mark.parametrize("zero_points", [False, True])
def test_int4_is_bit_exact(group: int, zero_points: bool) -> None:
    w = weights()
    w[7] = w[7].abs()  # min beyond 0: the range still holds it
    w[3] = 0.5 if zero_points else 0.0  # of zeros that library makes NaN zero points
    w[2, :group] = 0.25
    args = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=group, symmetric=not zero_points
    )
    state = scaled(w, args)
    compressed, read = written("pack-quantized", state, args)
    got = quantize_int4(w, group=group, zero_points=zero_points)
    assert torch.equal(got.scales, compressed["weight_scale"])
    shifts = torch.arange(0, 32, 4)
    codes = (compressed["weight_packed"][..., None] >> shifts & 15).flatten(-2)
    assert torch.equal(got.codes & 15, codes[:, 0::2].byte())
    assert torch.equal(got.codes >> 4, codes[:, 1::2].byte())
    if zero_points:
        packed = compressed["weight_zero_point"]  # eight rows a word
        zeros = (packed[:, None] >> shifts[:, None] & 15).flatten(0, 1)
        assert got.zeros is not None and torch.equal(got.zeros, zeros.byte())
        assert len(got.zeros.unique()) > 3
    assert torch.equal(got.dequantize(), read)


def test_fp8_channels_are_bit_exact() -> None:
    w = weights()
    w[3] = 1.0  # of zeros that library takes another scale
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel")
    scale, _ = calculate_qparams(w.amin(-1, True), w.amax(-1, True), args)
    compressed, read = written("float-quantized", {"weight": w, "weight_scale": scale}, args)
    got = quantize_fp8_channels(w)
    assert torch.equal(bytes_of(got.values), bytes_of(compressed["weight"]))
    assert torch.equal(got.scales, scale[:, 0]) and torch.equal(got.dequantize(), read)


def test_fp8_blocks_are_bit_exact() -> None:
    w = weights(200, 300) + 0.01
    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[128, 128])
    padded = (
        torch.nn.functional.pad(w, (0, 84, 0, 56)).unflatten(1, (3, 128)).unflatten(0, (2, 128))
    )
    scale, _ = calculate_qparams(padded.amin((1, 3)), padded.amax((1, 3)), args)
    compressed, read = written("float-quantized", {"weight": w, "weight_scale": scale}, args)
    got = quantize_fp8_block(w)
    assert torch.equal(bytes_of(got.values), bytes_of(compressed["weight"]))
    assert torch.equal(got.scales, scale) and torch.equal(got.dequantize(), read)
    assert isinstance(got, Fp8Block)


def test_fp8_tokens_are_the_librarys() -> None:
    x = weights(40, 512) + 1e-3
    args = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x[:, None], args, torch.nn.Module())
    want = fake_quantize(x[:, None], scale, zero, args)[:, 0]
    assert torch.equal(quantize_fp8_tokens(x).dequantize(), want)
    fixed = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
    scale = torch.tensor([0.003])  # saturates the largest
    want = fake_quantize(x, scale, torch.zeros(1), fixed)
    assert torch.equal(quantize_fp8_tokens(x, scale).dequantize(), want)
    assert want.abs().max() == 448 * scale and x.abs().max() > 448 * scale


def test_nvfp4_tokens_are_nearly_the_librarys() -> None:
    """It multiplies by 1 / f where we divide: a value on the edge may round the other way."""
    x = weights(64, 512) + 1e-3
    args = NVFP4.model_copy(update={"dynamic": "local"})
    g = generate_gparam(x.min() / 2, x.max() / 2)  # the largest saturate
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module(), global_scale=g)
    want = fake_quantize(x, scale, zero, args, global_scale=g)
    got = quantize_nvfp4_tokens(x, (1 / g).reshape(())).dequantize()
    kept = (scale.float() > 2.0**-8).repeat_interleave(16, -1)
    close = torch.isclose(got, want, rtol=1e-6, atol=0)
    assert close[kept].float().mean() > 0.999 and kept.float().mean() > 0.5
    # Below, it gives up the block where we keep the smallest scale.
    assert (got - x)[~kept].norm() <= (want - x)[~kept].norm()
