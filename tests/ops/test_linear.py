"""Linear layers against explicit sums over blocks and groups."""

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_block, quantize_fp8_rows
from sparkwell.hardware.targets import target
from sparkwell.ops.linear import fp8_block_gemm_reference, linear, linear_reference
from sparkwell.ops.linear.schedule import TABLE, Problem, shared
from sparkwell.ops.schedule import pick
from sparkwell.testing import assert_matches, in_poison


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def block_weight(n: int, k: int) -> Fp8Block:
    """A weight whose blocks differ in magnitude by far, so that a wrong scale shows."""
    rows, columns = torch.arange(n) // 128, torch.arange(k) // 128
    return quantize_fp8_block(randn(n, k) * 10.0 ** (rows[:, None] - 2.0 * columns))


def dequantized_fp64(weight: Fp8Block) -> torch.Tensor:
    out = weight.values.double().clone()
    for n in range(0, out.shape[0], 128):
        for k in range(0, out.shape[1], 128):
            out[n : n + 128, k : k + 128] *= weight.scales[n // 128, k // 128].double()
    return out


@pytest.mark.parametrize("shape", [(3, 7), (0, 7), (2, 0, 7), (2, 3, 7), (7,)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_plain_weights(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight = in_poison(randn(*shape)), in_poison(randn(5, 7))
    bias = in_poison(randn(5)) if with_bias else None
    got = linear(x, weight, bias)
    want = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    assert got.shape == (*shape[:-1], 5)
    assert_matches(got, want, "matmul")
    assert torch.equal(got, torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize(("n", "k"), [(300, 200), (128, 128), (1, 129), (257, 1)])
@pytest.mark.parametrize("m", [0, 1, 5])
def test_block_weights_with_ragged_edges(m: int, n: int, k: int) -> None:
    x, weight, bias = in_poison(randn(m, k)), block_weight(n, k), randn(n)
    want = x.double() @ dequantized_fp64(weight).T
    assert linear(x, weight).shape == (m, n)
    for rows in range(0, n, 128):  # block rows differ in magnitude: judge each by itself
        part, scale = slice(rows, rows + 128), 10.0 ** -(rows // 128)
        assert_matches(linear(x, weight)[:, part] * scale, want[:, part] * scale, "matmul")
        biased = linear(x, weight, bias)[:, part]
        assert_matches(biased * scale, (want + bias)[:, part] * scale, "matmul")


def test_strided_block_weights() -> None:
    whole = block_weight(256, 256)
    view = Fp8Block(whole.values[:200, 10:], whole.scales[:, :], (128, 128))
    x = randn(4, 246)
    want = x.double() @ dequantized_fp64(view).T
    assert_matches(linear(x, view), want.float(), "matmul", label="view of a weight")


def test_half_precision_is_rounded_once_at_the_end() -> None:
    x, weight, bias = randn(4, 512).bfloat16(), randn(9, 512).bfloat16(), randn(9).bfloat16()
    got = linear(x, weight, bias)
    assert got.dtype == torch.bfloat16
    reference = linear_reference(x, weight, bias)
    assert reference.dtype == torch.float32
    assert_matches(reference, x.double() @ weight.double().T + bias.double(), "matmul")
    assert torch.equal(got, reference.bfloat16())
    assert torch.equal(linear(x.float(), weight, bias), reference)
    assert linear_reference(x, block_weight(9, 512)).dtype == torch.float32


def gemm_fp64(x_q: torch.Tensor, x_scales: torch.Tensor, weight: Fp8Block) -> torch.Tensor:
    (m, k), n = x_q.shape, weight.shape[0]
    out = torch.zeros(m, n, dtype=torch.float64)
    for g in range(x_scales.shape[1]):
        ks = slice(128 * g, min(128 * (g + 1), k))
        partial = x_q[:, ks].double() @ weight.values[:, ks].double().T
        scales = weight.scales[:, g].double().repeat_interleave(128)[:n]
        out += partial * x_scales[:, g, None].double() * scales
    return out


@pytest.mark.parametrize(("m", "n", "k"), [(5, 300, 200), (1, 128, 384), (0, 64, 130)])
@pytest.mark.parametrize("pow2", [False, True])
def test_quantized_activations_multiply_group_by_group(m: int, n: int, k: int, pow2: bool) -> None:
    x = randn(m, k) * 10.0 ** torch.arange(m)[:, None]
    x_q, x_scales = quantize_fp8_rows(x, pow2=pow2)
    weight = quantize_fp8_block(randn(n, k), pow2=pow2)
    got = fp8_block_gemm_reference(in_poison_e4m3(x_q), in_poison(x_scales), weight)
    assert got.dtype == torch.float32
    scale = 10.0 ** -torch.arange(m)[:, None]
    assert_matches(got * scale, gemm_fp64(x_q, x_scales, weight) * scale, "matmul")
    if m:
        exact = x.double() @ dequantized_fp64(weight).T
        gap = ((got - exact).norm() / exact.norm()).item()
        assert 1e-3 < gap < 0.05  # what e4m3 activations cost: this is not the exact product


def in_poison_e4m3(x: torch.Tensor) -> torch.Tensor:
    """A view inside bytes that all decode to NaN."""
    buffer = torch.full((x.shape[0] + 8, x.shape[1] + 8), 0x7F, dtype=torch.uint8)
    view = buffer[4 : 4 + x.shape[0], 4 : 4 + x.shape[1]]
    view.copy_(x.view(torch.uint8))
    return view.view(torch.float8_e4m3fn)


def test_groups_follow_the_weights_blocks() -> None:
    weight = quantize_fp8_block(randn(6, 96), block=(2, 32))
    x_q, x_scales = quantize_fp8_rows(randn(3, 96), group=32)
    want = (x_q.double() * x_scales.double().repeat_interleave(32, 1)) @ weight.dequantize(
        torch.float64
    ).T
    assert_matches(fp8_block_gemm_reference(x_q, x_scales, weight), want, "matmul")


def test_a_nan_row_spoils_no_other() -> None:
    x, weight = randn(3, 130), block_weight(140, 130)
    clean = linear(x, weight)
    x[1, 129] = torch.nan
    got = linear(x, weight)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


def test_wrong_shapes_are_named() -> None:
    same = "with the same K"
    with pytest.raises(BadInput, match=rf"x is \(2, 6\) and weight \(4, 5\), want .* {same}"):
        linear(torch.ones(2, 6), torch.ones(4, 5))
    with pytest.raises(BadInput, match=rf"x is \(2, 100\) and weight \(4, 130\), want .* {same}"):
        linear(torch.ones(2, 100), quantize_fp8_block(torch.ones(4, 130)))
    with pytest.raises(BadInput, match=rf"x is \(2, 5\) and weight \(3, 4, 5\), want .* {same}"):
        linear(torch.ones(2, 5), torch.ones(3, 4, 5))
    with pytest.raises(BadInput, match=rf"x is \(\) and weight \(4, 5\), want .* {same}"):
        linear(torch.tensor(1.0), torch.ones(4, 5))
    wrong = r"linear: bias is \(1,\) for weight \(4, 5\), want \(4,\), one value per output"
    with pytest.raises(BadInput, match=wrong):
        linear(torch.ones(2, 5), torch.ones(4, 5), torch.ones(1))


@pytest.mark.parametrize("shape", [(3, 7), (0, 7), (2, 3, 7), (7,)], ids=str)
def test_a_wider_result_than_the_operands(shape: tuple[int, ...]) -> None:
    x, weight, bias = randn(*shape).bfloat16(), randn(5, 7).bfloat16(), randn(5)
    got = linear(x, weight, bias, out_dtype=torch.float32)
    assert got.dtype == torch.float32
    assert_matches(got, x.double() @ weight.double().T + bias, "matmul")
    assert linear(x, weight, out_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "m, n, k, boxes, row",
    [
        (1, 28672, 4096, True, "nvfp4-ring-8"),
        (8, 28672, 4096, False, "nvfp4-direct"),
        (8, 21120, 4096, True, "nvfp4-ring-8"),  # five steps of 256 x 256 for 264 blocks
        (8, 21119, 4096, True, "nvfp4-direct"),
        (8, 8448, 16384, True, "nvfp4-direct-four"),  # four tiles an SM
        (8, 28672, 4352, True, "nvfp4-ring-8"),
        (8, 8500, 1056, True, "nvfp4-direct-four"),
        (16, 4096, 14336, True, "nvfp4-ring-16"),
        (16, 4096, 14336, False, "nvfp4-turned-16"),
        (9, 9504, 4096, True, "nvfp4-ring-16"),  # three steps of 128 x 256 for 396 blocks
        (9, 9503, 4096, True, "nvfp4-turned-16"),
        (17, 28672, 4096, True, "nvfp4-turned-64"),
        (0, 28672, 4096, True, "nvfp4-direct"),
    ],
)
def test_large_nvfp4_weights_of_few_rows_go_through_a_ring(
    m: int, n: int, k: int, boxes: bool, row: str
) -> None:
    problem = Problem(m, n, k, "nvfp4", "bf16", 16, boxes=boxes)
    assert pick("linear", TABLE, problem, target("sm_90"), shared=shared).row.name == row
