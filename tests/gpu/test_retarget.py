"""Code of other targets on the GPU at hand: each emulation against fp64, and small cases."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton
import triton.language as tl

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import target
from sparkwell.ops.launch import interpreting
from sparkwell.verify.case import Maker
from sparkwell.verify.matrix import cases_of
from sparkwell.verify.retarget import WouldNotLoad, retargeted, runs_here, target_here
from sparkwell.verify.run import FAILED, PASSED, run_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreting(), reason="needs a GPU"),
]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
NEAR = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")  # whose code a Hopper GPU can be given


@triton.jit
def scaled_product(
    c_ptr, a_ptr, sa_ptr, b_ptr, sb_ptr, k,
    M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, FA: tl.constexpr, FB: tl.constexpr,
    PACK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)
    i, s = tl.arange(0, BK // PACK), tl.arange(0, BK // VECTOR)[None, :]
    acc = tl.zeros((M, N), tl.float32)
    for start in range(0, k, BK):
        a = tl.load(a_ptr + m * (k // PACK) + start // PACK + i[None, :])
        b = tl.load(b_ptr + n[None, :] * (k // PACK) + start // PACK + i[:, None])
        sa = tl.load(sa_ptr + m * (k // VECTOR) + start // VECTOR + s)
        sb = tl.load(sb_ptr + n[:, None] * (k // VECTOR) + start // VECTOR + s)
        acc = tl.dot_scaled(a, sa, FA, b, sb, FB, acc)
    tl.store(c_ptr + m * N + n[None, :], acc)


@triton.jit
def to_fp4(out_ptr, low_ptr, high_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.load(low_ptr + i, mask=i < n, other=0.0)
    high = tl.load(high_ptr + i, mask=i < n, other=0.0)
    byte = tl.inline_asm_elementwise(
        "{ .reg .b8 t;\n cvt.rn.satfinite.e2m1x2.f32 t, $1, $2;\n cvt.u32.u8 $0, t;\n }",
        "=r,f,f", [high, low], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    tl.store(out_ptr + i, byte.to(tl.uint8), mask=i < n)


@triton.jit
def pairs_and_threes(out_ptr, a_ptr, b_ptr, c_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, c = tl.load(a_ptr + i), tl.load(b_ptr + i), tl.load(c_ptr + i)
    most = tl.inline_asm_elementwise(
        "max.f32 $0, $1, $2, $3;", "=f,f,f,f", [a, b, c], dtype=tl.float32, is_pure=True, pack=1
    )
    both, _ = tl.inline_asm_elementwise(
        "{ .reg .b64 x, y;\n mov.b64 x, {$2, $3};\n mov.b64 y, {$4, $4};\n"
        " fma.rn.f32x2 x, x, y, y;\n mov.b64 {$0, $1}, x;\n }",
        "=f,=f,f,f,f", [a, b, c], dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip
    tl.store(out_ptr + i, most)
    tl.store(out_ptr + BLOCK + i, both)


def fp4(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two codes a byte, the first in the low bits, and their values."""
    codes = torch.randint(0, 16, (rows, k), device="cuda")
    table = torch.tensor(E2M1 + [-x for x in E2M1], dtype=torch.float64, device="cuda")
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), table[codes]


def fp8(rows: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every finite code."""
    codes = torch.randint(0, 256, (rows, k), device="cuda").to(torch.uint8)
    special = 0x7F if dtype == torch.float8_e4m3fn else 0x7C
    x = torch.where((codes & 0x7F) >= special, 0, codes).view(dtype)
    return x, x.double()


def scales(rows: int, n: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "ue4m3":
        x = torch.randint(0, 0x7F, (rows, n), device="cuda").to(torch.uint8)
        return x.view(torch.float8_e4m3fn), x.view(torch.float8_e4m3fn).double()
    x = torch.randint(117, 138, (rows, n), device="cuda").to(torch.uint8)
    return x, torch.exp2(x.double() - 127)


@pytest.mark.parametrize(
    ("formats", "vector", "kind"),
    [
        (("e2m1", "e2m1"), 16, "ue4m3"),
        (("e2m1", "e2m1"), 32, "ue8m0"),
        (("e4m3", "e4m3"), 32, "ue8m0"),
        (("e5m2", "e4m3"), 32, "ue8m0"),
        (("e5m2", "e5m2"), 32, "ue8m0"),
    ],
)
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 128), (64, 64, 512), (128, 32, 256)])
def test_block_scaled_products(
    formats: tuple[str, str], vector: int, kind: str, m: int, n: int, k: int
) -> None:
    torch.manual_seed(m + k)
    pack = 2 if formats[0] == "e2m1" else 1
    types = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    (a, x), (b, y) = (
        fp4(rows, k) if fmt == "e2m1" else fp8(rows, k, types[fmt])
        for rows, fmt in zip((m, n), formats, strict=True)
    )
    (sa, u), (sb, v) = scales(m, k // vector, kind), scales(n, k // vector, kind)
    x, y = x * u.repeat_interleave(vector, 1), y * v.repeat_interleave(vector, 1)
    out = torch.full((m, n), float("nan"), device="cuda")
    with retargeted("sm_121"):
        kernel = scaled_product[(1,)](
            out, a, sa, b, sb, k, M=m, N=n, BK=128, FA=formats[0], FB=formats[1], PACK=pack,
            VECTOR=vector,
        )  # fmt: skip
    error = (out.double() - x @ y.T).abs() / (x.abs() @ y.abs().T).clamp_min(1e-300)
    assert error.max().item() < 3 * 2**-24 * k**0.5
    assert ".target sm_90a" in kernel.asm["ptx"] and "bf16.bf16.f32" in kernel.asm["ptx"]


def test_conversion_to_fp4_is_to_nearest_even() -> None:
    ties = [(a + b) / 2 for a, b in itertools.pairwise(E2M1)]
    values = [*E2M1, *ties, *(x * (1 + s * 2**-20) for x in ties for s in (-1, 1)), 1e3, 1e-9]
    x = torch.tensor([*values, *(-v for v in values), float("nan")], device="cuda")
    table = torch.tensor(E2M1, device="cuda")
    distance = (x.abs()[:, None] - table).abs()
    odd = torch.arange(8, device="cuda") % 2
    want = (distance.double() + odd * 1e-12).argmin(1) + 8 * x.signbit()
    want[-1] = 7
    out = torch.zeros(len(x), dtype=torch.uint8, device="cuda")
    with retargeted("sm_121"):
        to_fp4[(1,)](out, x, x.flip(0), len(x), BLOCK=128)
    assert (out & 15).tolist() == want.tolist()
    assert (out >> 4).tolist() == want.flip(0).tolist()


def test_packed_arithmetic_and_three_operands() -> None:
    a, b, c = (torch.randn(256, device="cuda") for _ in range(3))
    out = torch.empty(2, 256, device="cuda")
    with retargeted("sm_121"):
        kernel = pairs_and_threes[(1,)](out, a, b, c, BLOCK=256)
    assert out[0].equal(torch.maximum(a, torch.maximum(b, c)))
    assert torch.allclose(out[1].double(), a.double() * c.double() + c.double(), atol=1e-6)
    assert "f32x2" not in kernel.asm["ptx"]


@pytest.mark.parametrize("name", NEAR)
def test_small_cases_as_another_target(name: str) -> None:
    outcomes = run_cases([c for c in cases_of(["norm"]) if c.size == "small"], target(name))
    assert outcomes and all(one.status == PASSED for one in outcomes), outcomes
    assert {one.rung for one in outcomes} == {"ran" if target_here().name == name else "retargeted"}


def test_the_other_targets_rows_and_code_are_what_runs() -> None:
    """A kernel's shared memory over the other target's limit is refused on this larger GPU."""
    out, a = torch.empty(128, 128, device="cuda"), torch.zeros(128, 1024, dtype=torch.int8)
    a = a.cuda().to(torch.float8_e4m3fn)
    sa = torch.full((128, 32), 127, dtype=torch.uint8, device="cuda")
    with retargeted("sm_121"), pytest.raises(WouldNotLoad, match="bytes of shared memory a block"):
        scaled_product[(1,)](
            out, a, sa, a, sa, 1024, M=128, N=128, BK=512, FA="e4m3", FB="e4m3", PACK=1, VECTOR=32,
            num_stages=3,
        )  # fmt: skip


def test_a_thread_that_chose_for_another_target_is_refused() -> None:
    case = cases_of(["rms_norm"])[0]
    inputs = case.make(Maker(torch.device("cuda")))
    with retargeted("sm_80"), ThreadPoolExecutor(1) as pool:
        done = pool.submit(case.call, inputs, "kernel")
        with pytest.raises(Unsupported, match="code is for sm_80"):
            done.result()


def test_what_cannot_run_here_is_refused() -> None:
    if runs_here(target("sm_100"), target_here()) is None:
        pytest.skip("this GPU runs it")
    with pytest.raises(Unsupported, match="has no TCGEN05"), retargeted("sm_100"):
        pass


def test_a_wrong_kernel_fails() -> None:
    case = next(c for c in cases_of(["rms_norm"]) if c.name.startswith("3x128"))

    def wrong(inputs: object, got: torch.Tensor, want: torch.Tensor) -> None:
        raise AssertionError("planted")

    bad = type(case)(case.op, case.name, case.make, case.size, case.tolerances, wrong)
    (outcome,) = run_cases([bad], target_here())
    assert (outcome.status, outcome.detail) == (FAILED, "planted")
