"""A matrix product with the defects that `verify` must find."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from sparkwell.hardware.targets import target
from sparkwell.ops.kernels.barriers import arrive_alone, settled
from sparkwell.ops.launch import Launch, launch, recording
from sparkwell.ops.schedule import EVERY, Choice, Row
from sparkwell.verify.case import Case
from sparkwell.verify.compile import specialise
from sparkwell.verify.matrix import Use


@triton.jit
def matmul(c_ptr, a_ptr, b_ptr, k, stride, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, i = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :], tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        a = tl.load(a_ptr + m * stride + start + i[None, :])
        b = tl.load(b_ptr + n * stride + start + i[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + m * BN + n, acc)


@dataclass(frozen=True)
class Schedule:
    block_m: int = 64
    block_n: int = 64
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 3


CASE = Case("linear", "planted", lambda make: {}, "model")


def shared(schedule: Schedule, sm: int) -> int:
    """Buffers of both operands, bf16; Hopper keeps one more."""
    buffers = schedule.num_stages - (sm != 90)
    return buffers * (schedule.block_m + schedule.block_n) * schedule.block_k * 2


def row(schedule: Schedule, emits: str, name: str = "planted") -> Row:
    return Row(name, schedule, EVERY, lambda problem: True, "everything", emits)


def launched(
    emits: str, sm: int, schedule: Schedule | None = None, stride: int = 256, formula: int = 0
) -> Launch:
    """The launch of one tile on a target.  formula: bytes added to the right ones."""
    schedule = schedule or Schedule()
    size = shared(schedule, sm) + formula
    choice = Choice("linear", row(schedule, emits), None, target(sm), size)
    a, b = (torch.empty(n, stride, dtype=torch.bfloat16, device="meta") for n in (64, 64))
    c = torch.empty(schedule.block_m, schedule.block_n, device="meta")
    blocks = {"BM": schedule.block_m, "BN": schedule.block_n, "BK": schedule.block_k}
    with recording() as launches:
        launch(matmul, (1,), c, a, b, 256, stride, choice=choice, **blocks)
    return launches[0]


def use(*arguments: object, **options: object) -> Use:
    """The same as verify sees it."""
    one = launched(*arguments, **options)  # type: ignore[arg-type]
    return Use(CASE, one.choice.target, one.choice, specialise(one))


@gluon.jit
def explicit(out_ptr, BLOCK: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    i = gl.arange(0, BLOCK, layout=layout)
    gl.store(out_ptr + i, i)


@gluon.jit
def handed_back(out_ptr, BLOCK: gl.constexpr, SETTLED: gl.constexpr):
    """Reads a buffer, and arrives at the barrier that lets others write it."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    buffer = gl.allocate_shared_memory(gl.float32, [BLOCK], flat)
    free = mbarrier.allocate_mbarrier()
    mbarrier.init(free, count=gl.num_warps())
    i = gl.arange(0, BLOCK, layout=layout)
    buffer.store(gl.load(out_ptr + i))
    gl.barrier()
    values = buffer.load(layout)
    if SETTLED:
        settled(values)
    arrive_alone(free)
    gl.store(out_ptr + BLOCK + i, values)


@triton.jit
def no_instruction(out_ptr):
    i = tl.inline_asm_elementwise("nothing.u32 $0;", "=r", [], tl.int32, is_pure=True, pack=1)
    tl.store(out_ptr, i)
