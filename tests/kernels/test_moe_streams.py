"""What streams of NVFP4 are made of, without the GPU that they need: instructions on codes and
scales, the order of columns that these make, rows of x as float16."""

import re

import pytest
import torch

from sparkwell.formats.nvfp4 import e2m1_decode
from sparkwell.hardware.targets import target
from sparkwell.ops.kernels.nvfp4_stream import factors_text, values_text
from sparkwell.ops.moe.kernels.turned import STREAMED, turned_place
from sparkwell.ops.moe.products import turned

WIDE = 0xFFFFFFFF
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def pair(register: int, kind: torch.dtype) -> torch.Tensor:
    """Both 16-bit floats of a register, the low one first."""
    words = torch.tensor([register & 0xFFFF, register >> 16], dtype=torch.int32)
    return words.to(torch.int16).view(kind)


def product(a: int, b: int, kind: torch.dtype) -> int:
    low, high = (pair(a, kind) * pair(b, kind)).view(torch.int16).tolist()
    return (low & 0xFFFF) | (high & 0xFFFF) << 16


def permuted(a: int, b: int, picks: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(data[picks >> 4 * i & 7] for i in range(4)), "little")


def run(text: str, held: dict[str, int], kind: torch.dtype) -> dict[str, int]:
    """What registers hold after the instructions; of a pair of outputs, both."""
    for line in text.strip("{} \n").replace("\n", " ").split(";"):
        op, *names = re.findall(r"[^\s,{}]+", line)[:6] or [""]
        if op in ("", ".reg"):
            continue
        if op == "mov.b32" and len(names) == 3:
            low, high, word = names
            held[low], held[high] = held[word] & 0xFFFF, held[word] >> 16
            continue
        args = [held[name] if name in held else int(name, 0) for name in names[1:]]
        assert op != "lop3.b32" or args[3] == 0xEA
        held[names[0]] = {
            "mov.b32": lambda a: a,
            "shl.b32": lambda a, b: a << b & WIDE,
            "shr.b32": lambda a, b: a >> b,
            "and.b32": lambda a, b: a & b,
            "mul.lo.u32": lambda a, b: a * b & WIDE,
            "lop3.b32": lambda a, b, c, _: a & b | c,
            "prmt.b32": permuted,
            "mul.rn.bf16x2": lambda a, b: product(a, b, kind),
            "mul.rn.f16x2": lambda a, b: product(a, b, kind),
        }[op](*args)
    return held


def factors(scales: torch.Tensor, name: str) -> dict[int, list[int]]:
    """Registers by group, then row, for [rows, 4] bytes of e4m3."""
    rows = len(scales)
    words = {
        f"${4 * rows + i}": int.from_bytes(bytes(r.tolist()), "little")
        for i, r in enumerate(scales)
    }
    held = run(factors_text(name == "bf16", rows), words, TYPES[name])
    return {g: [held[f"${rows * g + i}"] for i in range(rows)] for g in range(4)}


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_every_scale_twice(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0
    want = codes.view(torch.float8_e4m3fn).double() * 2.0 ** (119 if name == "bf16" else 7)
    for first in range(0, 256, 8):
        found = factors(codes[first : first + 8].reshape(2, 4), name)
        for g in range(4):
            for row in range(2):
                got = pair(found[g][row], TYPES[name]).double()
                assert torch.equal(got, want[first + 4 * row + g].expand(2))


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("name, times", [("bf16", False), ("bf16", True), ("f16", True)])
def test_codes_meet_their_columns(name: str, times: bool, rows: int) -> None:
    """A thread's share of every instruction's operand is the column that x has there."""
    make = torch.Generator().manual_seed(3)
    scales = torch.randint(0, 127, (rows, 4), generator=make, dtype=torch.uint8)
    codes = torch.randint(0, 16, (rows, 64), generator=make, dtype=torch.uint8)
    values = e2m1_decode(codes).double() * scales.view(
        torch.float8_e4m3fn
    ).double().repeat_interleave(16, 1)
    found, thread = factors(scales, name), 2
    at = torch.tensor([turned_place.fn(64 * thread + c, STREAMED.value) for c in range(64)])
    for g in range(4):
        held = {f"${24 * rows + i}": found[g][i] for i in range(rows)}
        for row in range(rows):
            for j in range(8):
                word = sum(int(c) << 4 * i for i, c in enumerate(codes[row, 8 * j : 8 * j + 8]))
                held[f"${16 * rows + 8 * row + j}"] = word
        run(values_text(g, name == "bf16", rows, times), held, TYPES[name])
        for row in range(rows):
            for step, h, e in torch.cartesian_prod(*(torch.arange(n) for n in (4, 2, 2))).tolist():
                out = 32 * (row // 2) + 8 * step + 4 * h + 2 * (row % 2) + e  # as mma.sync has it
                column = int((at == 64 * g + 16 * step + 8 * h + 2 * thread + e).nonzero())
                got = pair(held[f"${out}"], TYPES[name])[0].double() * 128
                assert got == values[row, column]


def test_rows_of_x_as_float16() -> None:
    """Exact with a power of two a row; each column at its place."""
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    x[1] *= 1e30
    x[2] *= 1e-36
    x[3] = 0
    x[4, 7], x[4, 9] = float("inf"), 1e-9
    place = torch.tensor([turned_place.fn(c, STREAMED.value) for c in range(512)])
    assert sorted(place.tolist()) == list(range(512))
    rows = turned(x, STREAMED.value, target("sm_90"))
    assert rows.values.dtype == torch.float16 and rows.factors is not None
    got = rows.values[:, place].double() * rows.factors.double()[:, None]
    assert torch.equal(got, x.double())
    assert torch.log2(rows.factors).frac().eq(0).all()
    halves = turned(x.half(), STREAMED.value, target("sm_90"))
    assert halves.factors is None and torch.equal(halves.values[:, place], x.half())
