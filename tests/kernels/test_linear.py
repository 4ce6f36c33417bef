"""Linear layers: packed instructions, targets without FP8 units, quantizers that are fused."""

import itertools
import re
from typing import Any

import pytest
import torch

from sparkwell.formats.floats import e2m1_decode, e4m3_decode
from sparkwell.formats.fp8 import Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.activation import swiglu, swiglu_quantized
from sparkwell.ops.device import as_target
from sparkwell.ops.kernels import nibbles
from sparkwell.ops.linear import linear
from sparkwell.ops.linear.kernels import fragments
from sparkwell.ops.linear.kernels.ring import _owner, join_kernel
from sparkwell.ops.linear.kernels.turned import turn_kernel
from sparkwell.ops.moe.kernels.turned import STREAMED, turned_place
from sparkwell.ops.norm import add_rms_norm, add_rms_norm_quantized, rms_norm, rms_norm_quantized
from sparkwell.ops.quantize import quantize_activations
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases.linear import CASES

SMALL = [case for case in CASES if case.size == "small"]
NAMED = [case for case in SMALL if re.search("w8a8|w4a8|w4a4", case.name)]
WIDE = 0xFFFFFFFF


def run(asm: str, held: dict[str, int]) -> dict[str, int]:
    """What instructions leave in registers that held this before."""
    held = dict(held)

    def value(name: str) -> int:
        return held[name] if name in held else int(name, 0)

    for line in asm.strip("{} \n").replace("\n", " ").split(";"):
        op, *names = re.split(r"[,\s]+", line.strip())
        if not op or op == ".reg":
            continue
        to, args = names[0], [value(name) for name in names[1:]]
        if op == "prmt.b32":
            data = (args[1] << 32 | args[0]).to_bytes(8, "little")
            picked = bytes(data[args[2] >> 4 * i & 7] for i in range(4))
            assert args[2] & 0x8888 == 0
            held[to] = int.from_bytes(picked, "little")
        elif op == "lop3.b32":
            assert args[3] == 0xEA
            held[to] = args[0] & args[1] | args[2]
        elif op.endswith("16x2"):
            held[to] = packed(op, args)
        else:
            held[to] = {
                "shl.b32": lambda a, b: a << b & WIDE,
                "shr.b32": lambda a, b: a >> b,
                "and.b32": lambda a, b: a & b,
                "mul.lo.u32": lambda a, b: a * b & WIDE,
                "mov.b32": lambda a: a,
                "cvt.u32.u16": lambda a: a & 0xFFFF,
            }[op](*args)
    return held


def packed(op: str, args: list[int]) -> int:
    """Arithmetic on the two halves of registers, rounded once."""
    kind = torch.bfloat16 if "bf16" in op else torch.float16
    a, b, *c = (halves([word], kind) for word in args)
    out = {"mul": lambda: a * b, "sub": lambda: a - b, "fma": lambda: a * b + c[0]}[op[:3]]()
    low, high = (int(bits) & 0xFFFF for bits in out.to(kind).view(torch.int16))
    return high << 16 | low


def halves(registers: list[int], kind: torch.dtype) -> torch.Tensor:
    """The two 16-bit floats of each register, low one first, as fp32."""
    words = [half for r in registers for half in (r & 0xFFFF, r >> 16)]
    return torch.tensor(words, dtype=torch.int32).to(torch.int16).view(kind).double()


def ran(asm: Any, codes: list[int], outputs: int) -> list[int]:
    """What the instructions of `nibbles` make of four bytes."""
    held = run(asm.value, {f"${outputs}": int.from_bytes(bytes(codes), "little")})
    return [held[f"${i}"] for i in range(outputs)]


@pytest.mark.parametrize(
    ("asm", "kind", "scale"),
    [
        (nibbles._E2M1_BF16, torch.bfloat16, 2.0**126),
        (nibbles._E2M1_F16, torch.float16, 2.0**14),
        (nibbles._INT4_BF16, torch.bfloat16, None),
        (nibbles._INT4_F16, torch.float16, None),
    ],
    ids=["e2m1-bf16", "e2m1-f16", "int4-bf16", "int4-f16"],
)
def test_packed_nibbles(asm: Any, kind: torch.dtype, scale: float | None) -> None:
    for first in range(256):
        codes = [first, 255 - first, first ^ 0x5A, (first * 7 + 3) % 256]
        got = halves(ran(asm, codes, 4), kind)
        every = torch.tensor([c & 15 for c in codes] + [c >> 4 for c in codes], dtype=torch.uint8)
        want = e2m1_decode(every).double() if scale else every.double()
        offset = 0.0 if scale else 128.0 if kind == torch.bfloat16 else 1024.0
        assert torch.equal(got * (scale or 1.0) - offset, want), codes


@pytest.mark.parametrize(
    ("asm", "kind", "scale"),
    [(nibbles._E4M3_BF16, torch.bfloat16, 2.0**120), (nibbles._E4M3_F16, torch.float16, 2.0**8)],
    ids=["bf16", "f16"],
)
def test_packed_bytes(asm: Any, kind: torch.dtype, scale: float) -> None:
    for first in range(256):
        codes = [first, 255 - first, first ^ 0x5A, (first * 7 + 3) % 256]
        got = halves(ran(asm, codes, 2), kind) * scale
        want = e4m3_decode(torch.tensor(codes, dtype=torch.uint8)).double()
        want = torch.where(want.isnan(), 480.0 * torch.where(got < 0, -1.0, 1.0), want)
        assert torch.equal(got, want), codes
        assert torch.equal(got.signbit(), torch.tensor([c > 127 for c in codes]))


KINDS = pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])


@KINDS
@pytest.mark.parametrize("form", ["e2m1", "int4", "int4-zero", "e4m3"])
def test_a_word_becomes_its_lanes_share(form: str, kind: torch.dtype) -> None:
    """Code i shares a register with the one half a word on."""
    bf16 = kind == torch.bfloat16
    for first in range(256):
        codes = torch.tensor([first, 255 - first, first ^ 0x5A, (first * 7 + 3) % 256])
        word, zero = int.from_bytes(bytes(codes.tolist()), "little"), 100 + first % 156
        to = ["a", "b"] if form == "e4m3" else ["a", "b", "c", "d"]
        if form == "e4m3":
            lines = fragments._e4m3("w", to, bf16)
            want = e4m3_decode(codes.to(torch.uint8)).double() * (1.0 if bf16 else 2.0**-8)
            want = torch.where(want.isnan(), 0.0, want)
        else:
            every = torch.stack([codes & 15, codes >> 4], 1).flatten()
            if form == "e2m1":
                lines = fragments._e2m1("w", to, bf16)
                want = e2m1_decode(every.to(torch.uint8)).double() * 2.0 ** (-126 if bf16 else -14)
            else:
                lines = fragments._int4("w", to, bf16, "z" if "zero" in form else None)
                want = every.double() - (zero if "zero" in form else 8)
        twice = torch.tensor([zero, zero], dtype=kind).view(torch.int16).tolist()
        held = run(" ".join(lines), {"w": word, "z": (twice[1] & 0xFFFF) << 16 | twice[0] & 0xFFFF})
        got = halves([held[name] for name in to], kind).reshape(-1, 2).T.flatten()
        got = torch.where(got.abs() == (480 if bf16 else 480 / 256), 0.0, got)
        assert torch.equal(got, want), (codes, got, want)


@KINDS
def test_two_scales_in_both_halves(kind: torch.dtype) -> None:
    for low, high in itertools.product(range(0, 256, 5), range(255)):
        lines = fragments._factors("s", ["a", "b"], kind == torch.bfloat16)
        held = run(" ".join(lines), {"s": 0xABC0000 | high << 8 | low})
        got = halves([held["a"], held["b"]], kind) * 2.0 ** (-119 if kind == torch.bfloat16 else -7)
        want = e4m3_decode(torch.tensor([low, low, high, high], dtype=torch.uint8)).double()
        assert torch.equal(got, torch.where(want.isnan(), got, want)), (low, high)


def test_columns_are_turned_as_lanes_hold_codes(cpu: torch.device) -> None:
    """Lane t has words 4 t + j of a chunk; pair p of a word is columns p and p + 4."""
    x = torch.arange(3 * 512, dtype=torch.int32).reshape(3, 512)[:, :384]
    out = torch.full((3, 384), -1, dtype=torch.int32)
    turn_kernel[(3, 1)](out, x, 384, 512, EARLY=False, BLOCK=512)
    chunk, lane, word, pair, half = (
        v.flatten() for v in torch.meshgrid(*map(torch.arange, (3, 4, 4, 4, 2)), indexing="ij")
    )
    step, second = 2 * word + pair // 2, pair % 2
    place = 128 * chunk + 16 * step + 8 * second + 2 * lane + half  # as wgmma reads them
    column = 128 * chunk + 8 * (4 * lane + word) + pair + 4 * half
    assert torch.equal(out[:, place], x[:, column])


def test_rows_of_a_ring_take_the_same_places() -> None:
    """The dimensions that a copying warp of `ring` swaps give the order of `turned_place`."""
    x = torch.arange(256)
    swapped = x.reshape(4, 4, 2, 2, 2, 2).permute(1, 2, 4, 5, 0, 3).reshape(256)
    place = torch.tensor([turned_place.fn(c, STREAMED.value) for c in range(256)])
    assert torch.equal(swapped[place], x)


@pytest.mark.parametrize("tiles, steps, blocks", [(7, 5, 4), (3, 8, 24), (5, 7, 12), (6, 4, 8)])
def test_blocks_share_steps(tiles: int, steps: int, blocks: int) -> None:
    """Each step has the owner whose share it lies in, and a tile at most so many as have room."""
    total = tiles * steps
    owners = [_owner.fn(step, blocks, total) for step in range(total)]
    shares = [range(b * total // blocks, (b + 1) * total // blocks) for b in range(blocks)]
    assert all(step in shares[b] for step, b in enumerate(owners))
    most = -(-steps * blocks // total) + 1
    for tile in range(tiles):
        mine = owners[tile * steps : (tile + 1) * steps]
        assert mine == sorted(mine) and len(set(mine)) <= most


@pytest.mark.parametrize("m, rows, at_once", [(1, 1, 4), (5, 2, 2)])
@pytest.mark.parametrize("blocks, whole", [(4, [0, 4]), (13, [])])
def test_parts_are_joined_where_blocks_share_a_tile(
    blocks: int, whole: list[int], m: int, rows: int, at_once: int, cpu: torch.device
) -> None:
    tiles, steps, tile, n = 5, 6, 16, 70
    total = tiles * steps
    make = torch.Generator().manual_seed(4)
    owners = [_owner.fn(step, blocks, total) for step in range(total)]
    parts = torch.full((4, m, n), float("nan"))
    factor, bias = torch.rand(n, generator=make), torch.randn(n, generator=make)
    y = torch.full((m, n), -1.0)
    want = y.clone()
    for i in set(range(tiles)) - set(whole):
        at = slice(i * tile, min(n, (i + 1) * tile))
        count = len(set(owners[i * steps : (i + 1) * steps]))
        parts[:count, :, at] = torch.randn(parts[:count, :, at].shape, generator=make)
        want[:, at] = parts[:count, :, at].sum(0) * factor[at] + bias[at]
    join_kernel[(tiles, -(-m // rows))](
        y, parts, factor, bias, m, n, total, steps, blocks, TILE=tile, ROWS=rows, AT_ONCE=at_once,
        EARLY=False,
    )  # fmt: skip
    assert torch.allclose(y, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", [case for case in NAMED if "w8a8" in case.name], ids=lambda case: case.name
)
def test_fp8_as_float16_where_there_are_no_fp8_units(case: Case, cpu: torch.device) -> None:
    want = case.call(case.make(Maker(cpu)), "reference")
    with as_target("sm_80"):
        got = case.call(case.make(Maker(cpu, hostile=True)), "kernel")
    case.compare({}, got, want)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_x_quantized_before_gives_the_same_bits(case: Case, cpu: torch.device) -> None:
    inputs = case.make(Maker(cpu))
    kinds = {"w4a4": "nvfp4", "w4a8": "fp8-token"}
    form = kinds.get(inputs["arithmetic"], "fp8-group" if "block" in case.name else "fp8-token")
    out_dtype = inputs.get("out_dtype", inputs["x"].dtype)
    with as_target("sm_120"):
        want = linear(**inputs, backend="kernel")
        rows = quantize_activations(inputs["x"], form, backend="kernel")
        got = linear(
            rows, inputs["weight"], inputs.get("bias"), out_dtype=out_dtype, backend="kernel"
        )
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["nvfp4-2x20x4128", "int4-2x20x4224", "fp8-rows-2x20x2112"])
def test_scratch_is_written_before_it_is_read(
    name: str, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in SMALL if case.name.startswith(name))
    want = case.call(case.make(Maker(cpu)), "reference")
    shapes: list[tuple[int, ...]] = []
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        made = empty(*args, **options)
        shapes.append(tuple(made.shape))
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(0x7F)

    monkeypatch.setattr(torch, "empty", poisoned)
    with as_target("sm_121", sms=132):
        got = case.call(case.make(Maker(cpu)), "kernel")
    monkeypatch.undo()
    case.compare({}, got, want)
    assert any(len(shape) == 3 and shape[0] > 1 for shape in shapes)  # parts of K


@pytest.mark.parametrize("form", ["fp8-token", "fp8-group", "nvfp4"])
def test_fused_quantizers_are_the_two_steps(form: str, cpu: torch.device) -> None:
    make = Maker(cpu, hostile=True)
    x, delta = (make.randn(3, 1040, dtype=torch.bfloat16) for _ in range(2))
    weight = make.randn(1040)
    with as_target("sm_90"):
        total, y = add_rms_norm(x, delta, weight, eps=1e-6, backend="kernel")
        how: dict[str, Any] = {"eps": 1e-6, "activations": form, "backend": "kernel"}
        added = add_rms_norm_quantized(x, delta, weight, **how)
        pairs = [
            (added[1], y),
            (rms_norm_quantized(x, weight, **how), rms_norm(x, weight, eps=1e-6, backend="kernel")),
            (
                swiglu_quantized(x[:, :1024], form, backend="kernel"),
                swiglu(x[:, :1024], backend="kernel"),
            ),
        ]
        for fused, plain in pairs:
            want = quantize_activations(plain, form, backend="kernel")
            for name, held in want.tensors().items():
                assert torch.equal(fused.tensors()[name].float(), held.float()), name
    assert torch.equal(added[0], total)


def test_mxfp4_scales_far_apart_stay_exact_in_fp8(cpu: torch.device) -> None:
    case = next(case for case in SMALL if case.name.startswith("mxfp4-3x70x1056"))
    inputs = case.make(Maker(cpu))
    scales = inputs["weight"].scales
    scales.copy_(100 + torch.arange(scales.numel()).reshape(scales.shape) * 11 % 15)
    scales[1] = 0  # every value below fp32's normal numbers
    scales[2, ::2] = 0  # 2^-100 beside 2^0 and more
    want = case.call(dict(inputs), "reference")
    with as_target("sm_121"):
        got = case.call(dict(inputs), "kernel")
    size = want.abs().amax(0).clamp(min=1e-38)
    assert ((got - want).abs() / size).max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_of_a_weight_beyond_2_to_31_bytes(dtype: torch.dtype, cpu: torch.device) -> None:
    """bf16: streamed; fp32: widened.  Pages that nothing touches are never there."""
    stride, n, k = 1 << 26, 34, 64
    make = Maker(cpu)
    values = torch.empty(stride * n, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = values.as_strided((n, k), (stride, 1))
    values.copy_(make.randn(n, k).to(torch.float8_e4m3fn))
    weight = Fp8Rows(values, make.randn(n).abs())
    x = make.randn(2, k).to(dtype)
    with as_target("sm_121"):
        got = linear(x, weight, out_dtype=torch.float32, backend="kernel")
    assert_matches(got, linear(x, weight, out_dtype=torch.float32), "matmul", "fp32")


def test_sums_of_nothing_are_the_bias(cpu: torch.device) -> None:
    e4m3 = torch.float8_e4m3fn
    fp4 = Nvfp4(torch.empty(5, 0, dtype=torch.uint8), torch.empty(5, 0, dtype=e4m3), torch.ones(5))
    fp8, bias = Fp8Rows(torch.empty(5, 0, dtype=e4m3), torch.ones(5)), torch.arange(5.0)
    with as_target("sm_121"):
        for weight, kind in itertools.product((fp4, fp8), (torch.bfloat16, torch.float32)):
            got = linear(torch.empty(3, 0, dtype=kind), weight, bias, backend="kernel")
            assert torch.equal(got.float(), bias.expand(3, 5)), weight
        none = Fp8Rows(torch.empty(0, 64, dtype=e4m3), torch.empty(0))
        assert linear(torch.ones(2, 64).bfloat16(), none, backend="kernel").shape == (2, 0)
