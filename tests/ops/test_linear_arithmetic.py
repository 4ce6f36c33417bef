"""Which arithmetic a linear layer gets on which GPU, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats import (
    Fp8Block,
    Fp8Rows,
    Int4Group,
    Nvfp4,
    quantize_fp8_block,
    quantize_fp8_rows,
)
from sparkwell.formats.fp8 import quantize_fp8_tokens
from sparkwell.formats.nvfp4 import quantize_nvfp4, quantize_nvfp4_tokens
from sparkwell.hardware.targets import TensorPath, target
from sparkwell.ops.device import Device, as_target
from sparkwell.ops.linear import (
    linear,
    linear_decision,
    linear_in_words,
    quantized_linear_reference,
)
from sparkwell.ops.linear.arithmetic import memory_bound_rows, product_like
from sparkwell.ops.linear.schedule import TABLE, Problem, Schedule, few_rows, parts
from sparkwell.ops.schedule import pick

META = torch.device("meta")
N, K = 6144, 4096


def nvfp4(activations: str = "nvfp4", n: int = N, k: int = K) -> Nvfp4:
    codes = torch.empty(n, k // 2, dtype=torch.uint8, device=META)
    scales = torch.empty(n, k // 16, dtype=torch.float8_e4m3fn, device=META)
    return Nvfp4(codes, scales, torch.empty(n, device=META), activations)  # type: ignore[arg-type]


def fp8(activations: str = "fp8-group", block: int = 128) -> Fp8Block:
    values = torch.empty(N, K, dtype=torch.float8_e4m3fn, device=META)
    scales = torch.empty(-(-N // block), -(-K // block), device=META)
    return Fp8Block(values, scales, (block, block), activations)  # type: ignore[arg-type]


def rows(m: int) -> torch.Tensor:
    return torch.empty(m, K, dtype=torch.bfloat16, device=META)


@pytest.mark.parametrize(
    ("name", "sms", "product", "most"),
    [("sm_90", 132, "H200", 56), ("sm_120", 170, "5090", 30), ("sm_121", 48, "Spark", 50)],
)
def test_memory_bound_rows_are_bytes_times_the_ratio_of_peaks(
    name: str, sms: int, product: str, most: int
) -> None:
    """bytes / bandwidth = 2 m n k / peak, so m = peak / bandwidth * bytes per weight / 2."""
    with as_target(name, sms=sms) as device:
        gpu, weight = product_like(device), nvfp4()
        got = memory_bound_rows(weight, device)
    want = gpu.peaks["bf16"].value / gpu.bandwidth.value * (4.5 / 8 + 4 / K) / 2
    assert abs(got - want) <= 1 and got >= most
    assert gpu.target.name == name and (product in gpu.title or name == "sm_90")


def test_few_rows_are_multiplied_as_they_are_and_many_as_the_checkpoint_asks() -> None:
    with as_target("sm_121", sms=48) as device:
        most = memory_bound_rows(nvfp4(), device)
        few, many = linear_decision(rows(most), nvfp4()), linear_decision(rows(most + 1), nvfp4())
    assert (few.arithmetic, few.activations) == ("w4a16", "none")
    assert f"memory-bound up to {most} on DGX Spark" in few.why
    assert (many.arithmetic, many.activations) == ("w4a4", "nvfp4")
    assert f"over {most} on" in many.why
    with as_target("sm_90", sms=132):
        assert linear_decision(rows(16), fp8()).arithmetic == "w8a16"
        assert linear_decision(rows(4096), fp8()).arithmetic == "w8a8"
        assert linear_decision(rows(4096), fp8("none")).why == "made for activations 'none'"
        assert linear_decision(rows(4096), nvfp4("fp8-token")).arithmetic == "w4a8"
        assert linear_decision(rows(4096), rows(1)[:, :K]).arithmetic == "w16a16"


def test_what_a_gpu_lacks_is_said_and_the_weight_multiplied_as_stored() -> None:
    with as_target("sm_90"):
        got = linear_decision(rows(4096), nvfp4())
    assert (got.arithmetic, got.why) == ("w4a16", "not w4a4: sm_90 has no FP4_BLOCK_MMA")
    with as_target("sm_80"):
        assert linear_decision(rows(4096), fp8()).why == "not w8a8: sm_80 has no FP8_MMA"
        assert linear_decision(rows(4096), fp8(), "w8a8").arithmetic == "w8a8"  # as float16
    with as_target("sm_90"):
        assert "blocks are 64 columns wide" in linear_decision(rows(4096), fp8(block=64)).why


def test_asking_for_what_there_is_no_kernel_for() -> None:
    int4 = Int4Group(
        torch.empty(N, K // 2, dtype=torch.uint8, device=META),
        torch.empty(N, K // 128, device=META), None, 128,
    )  # fmt: skip
    with as_target("sm_90"):
        with pytest.raises(Unsupported, match=r"w4a4: sm_90 has no FP4_BLOCK_MMA"):
            linear_decision(rows(1), nvfp4(), "w4a4")
        with pytest.raises(
            Unsupported, match=r'(?s)no kernel for Int4Group.*use arithmetic="w4a16"'
        ):
            linear_decision(rows(1), int4, "w4a8")
        with pytest.raises(
            Unsupported, match=r"blocks are 64 columns wide, want a multiple of 128"
        ):
            linear_decision(rows(1), fp8(block=64), "w8a8")
    with pytest.raises(BadInput, match=r"arithmetic is 'w8a4', want one of auto, w4a16, w4a8"):
        linear(torch.ones(1, 16), quantize_nvfp4(torch.ones(4, 16)), arithmetic="w8a4")
    with pytest.raises(BadInput, match=r"'w8a8' for a Nvfp4 weight of 4 bits, want auto or w4a16"):
        linear(torch.ones(1, 16), quantize_nvfp4(torch.ones(4, 16)), arithmetic="w8a8")
    with pytest.raises(BadInput, match=r"'w4a16' for a float32 weight of 16 bits, want auto$"):
        linear(torch.ones(1, 16), torch.ones(4, 16), arithmetic="w4a16")


def test_references_quantize_x_where_the_arithmetic_is_named() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 128, generator=g), torch.randn(5, 128, generator=g)
    weight = quantize_nvfp4(w)
    exact = linear(x, weight)
    for arithmetic, activations in (("w4a4", "nvfp4"), ("w4a8", "fp8-token")):
        want = quantized_linear_reference(x, weight, activations=activations)  # type: ignore[arg-type]
        got = linear(x, weight, arithmetic=arithmetic)
        assert torch.equal(got, want) and not torch.equal(got, exact)
    assert torch.equal(linear(x, weight, arithmetic="w4a16"), exact)
    static = Fp8Rows(w.to(torch.float8_e4m3fn), torch.ones(5), "fp8-tensor", torch.tensor(0.5))
    want = quantized_linear_reference(x, static, activations="fp8-tensor")
    assert torch.equal(linear(x, static, arithmetic="w8a8"), want)


def test_x_that_is_quantized_already() -> None:
    g = torch.Generator().manual_seed(1)
    x, w, bias = (torch.randn(s, generator=g) for s in ((3, 256), (6, 256), (6,)))
    block = quantize_fp8_block(w)
    x_blocks = Fp8Block(*quantize_fp8_rows(x), (1, 128))
    got = linear(x_blocks, block, bias, out_dtype=torch.float32)
    want = x_blocks.dequantize().double() @ block.dequantize().double().T + bias
    assert (got - want).abs().max() < 1e-5
    assert linear(x_blocks, block).dtype == torch.bfloat16
    fp4, tokens = quantize_nvfp4(w), quantize_fp8_tokens(x)
    for one in (quantize_nvfp4_tokens(x), tokens):
        got = linear(one, fp4, out_dtype=torch.float32)
        assert (got - one.dequantize().double() @ fp4.dequantize().double().T).abs().max() < 1e-5
    with pytest.raises(BadInput, match=r"x is Fp8Rows and the weight Fp8Block; want Fp8Rows with"):
        linear(tokens, block)
    with pytest.raises(BadInput, match=r"x is Nvfp4 and the weight float32; want"):
        linear(quantize_nvfp4_tokens(x), w)
    with pytest.raises(BadInput, match=r"per 1 rows and 64 columns, want one per row and 128"):
        linear(Fp8Block(*quantize_fp8_rows(x, 64), (1, 64)), block)
    with pytest.raises(BadInput, match=r"x is Fp8Rows \[1, 3, 256\], want \[m, K\]"):
        linear(quantize_fp8_tokens(x[None]), fp4)


@pytest.mark.parametrize("sms", [1, 48, 132, 188])
@pytest.mark.parametrize(("kind", "k"), [("nvfp4", 14336), ("mxfp4", 2880), ("fp8", 7168)])
def test_parts_cover_k_and_start_where_scales_are_aligned(sms: int, kind: str, k: int) -> None:
    for m, n in ((1, 128), (16, 2048), (200, 28672)):
        problem = Problem(m, n, k, kind, "bf16", 128)
        choice = pick("linear", TABLE, problem, target("sm_90"))
        schedule: Schedule = choice.schedule
        got = parts(problem, schedule, sms)
        block = got.chunk * max(1, schedule.shares)
        assert block * got.count >= problem.width > block * (got.count - 1)
        assert got.even == (block * got.count == problem.width)
        assert got.chunk % schedule.block_k == 0
        scales = got.chunk // {"nvfp4": 8, "mxfp4": 16, "fp8": 1}[kind]
        assert scales % 16 == 0
        tiles = -(-n // schedule.block_n) * -(-m // schedule.block_m)
        assert got.count == 1 or got.count * tiles <= schedule.fill * sms


def test_no_row_is_refused_without_a_reason() -> None:
    problem = Problem(5, 64, 96, "int4", "bf16", 24)
    choice = pick("linear", TABLE, problem, target("sm_80"))
    assert choice.row.name == "widened"
    reasons = [row.refusal(problem, target("sm_80")) for row in TABLE[:-1]]
    assert all(reason and reason.startswith(("serves ", "written for ")) for reason in reasons)


def test_a_known_product_stands_for_itself() -> None:
    sm_90, sm_120 = target("sm_90"), target("sm_120")
    assert product_like(Device(sm_90, 132, "NVIDIA H200")).name == "h200"
    assert product_like(Device(sm_90, 132, "NVIDIA H100 80GB HBM3")).name == "h100-sxm"
    assert product_like(Device(sm_90, 120, "NVIDIA H800 of another make")).name == "h100-pcie"
    assert product_like(Device(sm_120, 132, "NVIDIA H200")).target is sm_120  # retargeted
    with pytest.raises(BadInput, match="no product of target sm_87 is known"):
        product_like(Device(replace(target("sm_80"), sm=87), 16))


def test_few_rows_are_what_widening_costs() -> None:
    """4.5 bytes a weight against what the streamed product loses: 2 / 0.17 - 2 / 0.9 of a flop."""
    assert few_rows(900e12, 4.5e12, TensorPath.WGMMA) == int(900 / (2 / 0.17 - 2 / 0.9))
    assert few_rows(1e12, 1e10, TensorPath.MMA_SYNC) == int(450 / (2 / 0.55 - 2 / 0.9))


def test_in_words() -> None:
    with as_target("sm_121", sms=48) as device:
        most = memory_bound_rows(nvfp4(), device)
        assert linear_in_words(nvfp4(), META) == f"w4a16 up to {most} rows, then w4a4"
    with as_target("sm_90"):
        said = linear_in_words(nvfp4(), META)
        assert said == "w4a16 (not w4a4: sm_90 has no FP4_BLOCK_MMA)"
        assert linear_in_words(rows(1), META) == "w16a16 (a plain weight)"
