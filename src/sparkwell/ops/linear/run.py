"""Launches of linear layers with quantized weights whose x is left as it is."""

import math
from dataclasses import dataclass

import torch
import triton
from torch.nn import functional

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import QuantizedTensor
from sparkwell.ops.device import Device, device_of
from sparkwell.ops.kernels.fp8_products import copyable
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.linear.arithmetic import product_like
from sparkwell.ops.linear.kernels.direct import direct_kernel
from sparkwell.ops.linear.kernels.few import few_kernel
from sparkwell.ops.linear.kernels.ring import ring
from sparkwell.ops.linear.kernels.streamed import reduce_kernel, streamed_kernel
from sparkwell.ops.linear.kernels.turned import turn_kernel, turned_kernel
from sparkwell.ops.linear.kernels.widen import widen_kernel
from sparkwell.ops.linear.schedule import (
    REDUCE,
    TABLE,
    TURN,
    Parts,
    Problem,
    few_rows,
    parts,
    shared,
)
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

FLOATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Operand:
    """A quantized weight as kernels read it: bytes, neighbours of a row side by side.

    group_k: columns of a scale, group_n: rows of one.  factor: fp32 of each row, or None.
    """

    kind: str
    codes: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    factor: torch.Tensor | None
    group_k: int
    group_n: int = 1

    @property
    def stride_scale(self) -> int:
        """From one row of scales to the next."""
        return 0 if self.scales is None else self.scales.stride(0)


def operand(weight: QuantizedTensor) -> Operand:
    """The tensors of one weight [N, K], as bytes where they are no plain floats."""
    if isinstance(weight, Fp8Block | Fp8Rows):
        codes = unit_stride(weight.values.view(torch.uint8))
        if isinstance(weight, Fp8Rows):
            factor, k = weight.scales.contiguous(), codes.shape[1]
            return Operand("fp8", codes, None, None, factor, max(1, k))
        group_n, group_k = weight.block
        return Operand("fp8", codes, unit_stride(weight.scales), None, None, group_k, group_n)
    codes = unit_stride(weight.codes)
    if isinstance(weight, Nvfp4):
        scales = unit_stride(weight.scales.view(torch.uint8))
        return Operand("nvfp4", codes, scales, None, weight.row_scales.contiguous(), 16)
    scales, zeros = unit_stride(weight.scales), None
    if isinstance(weight, Mxfp4):
        return Operand("mxfp4", codes, scales, None, None, 32)
    if weight.zeros is not None:  # kernels have one stride for both
        scales, zeros = scales.contiguous(), weight.zeros.contiguous()
    return Operand("int4", codes, scales, zeros, None, weight.group)


def problem_of(
    x: torch.Tensor, weight: QuantizedTensor, held: Operand, m: int, device: Device
) -> Problem:
    """What selection is told of a product of `m` rows of x."""
    n, k = weight.shape
    if isinstance(weight, Fp8Block | Fp8Rows):
        kind, group = "fp8", weight.block[1] if isinstance(weight, Fp8Block) else 0
    elif isinstance(weight, Int4Group):
        kind, group = "int4", weight.group
    else:
        kind, group = ("nvfp4", 16) if isinstance(weight, Nvfp4) else ("mxfp4", 32)
    zeros = isinstance(weight, Int4Group) and weight.zeros is not None
    gpu = product_like(device)
    few = few_rows(gpu.peaks["bf16"].value, gpu.bandwidth.value, device.target.tensor_path)
    return Problem(
        m, n, k, kind, FLOATS[x.dtype], group, zeros, few, _aligned(held), device.sms,
        kind == "nvfp4" and copyable(held.codes, held.scales),
    )  # fmt: skip


def _aligned(held: Operand) -> bool:
    """Whether every row's codes start at a whole word, and its NVFP4 scales at a pair."""
    start = held.codes.data_ptr() | held.codes.stride(0)
    if held.kind != "nvfp4" or held.scales is None:
        return start % 4 == 0
    return start % 4 == 0 and (held.scales.data_ptr() | held.stride_scale) % 2 == 0


def multiply_as_is(
    x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    """x W^T + bias of checked operands, x [..., K] not quantized.  -> [..., N]"""
    n, k = weight.shape
    rows = unit_stride(x.reshape(math.prod(x.shape[:-1]), k))
    if isinstance(weight, Int4Group) and weight.order is not None:
        rows = rows.index_select(1, weight.order)
    device = device_of(x.device)
    held = operand(weight)
    problem = problem_of(x, weight, held, len(rows), device)
    table = [row for row in TABLE if not (row.schedule.way != "shared" and interpreting())]  # Gluon
    choice = pick("linear", table, problem, device.target, shared=shared)
    if choice.schedule.way == "ring":
        y = _ring(rows, held, bias, out_dtype, choice, device.sms)
    elif choice.schedule.way == "turned":
        y = _turned(
            rows, held, bias, out_dtype, choice, parts(problem, choice.schedule, device.sms)
        )
    elif choice.schedule.fill:
        y = _stream(
            rows, held, bias, out_dtype, choice, parts(problem, choice.schedule, device.sms)
        )
    else:
        odd = held.group_k % 2 and held.kind == "int4"  # a byte may be of two groups
        plain = weight.dequantize(rows.dtype) if odd else _widen(held, choice, n, k, rows.dtype)
        y = multiply_plain(rows, plain, bias, out_dtype)
    return y.reshape(*x.shape[:-1], n)


def _stream(
    rows: torch.Tensor,
    held: Operand,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    choice: Choice,
    share: Parts,
) -> torch.Tensor:
    (m, k), n, s = rows.shape, len(held.codes), choice.schedule
    each = 1 if held.kind == "fp8" else 2  # columns of a byte
    x = rows if each == 1 and s.way == "shared" else _pairs(rows)
    y = torch.empty(m, n, dtype=out_dtype, device=rows.device)
    out, several = y, share.count > 1
    if several:
        out = torch.empty(share.count, m, n, dtype=torch.float32, device=rows.device)
    bias = None if bias is None else unit_stride(bias)
    grid = (triton.cdiv(n, s.block_n), share.count, triton.cdiv(m, s.block_m))
    shares = {"SHARES": s.shares} if s.shares else {}
    kernel = direct_kernel if s.way == "direct" else few_kernel if s.shares else streamed_kernel
    launch(
        kernel, grid, out, held.codes, held.scales, held.zeros,
        held.factor, x, bias, m, n, k // each, share.chunk, share.chunk * each // held.group_k,
        held.group_k // each, held.group_n, held.codes.stride(0), held.stride_scale, x.stride(0),
        choice=choice, early=s.way == "direct", KIND=held.kind, BF16=rows.dtype == torch.bfloat16,
        ASM=not interpreting(), PARTS=several, EVEN=share.even, BN=s.block_n, BM=s.block_m,
        BK=s.block_k, **shares,
    )  # fmt: skip
    if several:
        add_parts(y, out, held.factor, bias, choice)
    return y


def _turned(
    rows: torch.Tensor,
    held: Operand,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    choice: Choice,
    share: Parts,
) -> torch.Tensor:
    (m, k), n, s = rows.shape, len(held.codes), choice.schedule
    x = torch.empty(m, k, dtype=rows.dtype, device=rows.device)
    turn = pick("linear", TURN, choice.problem, choice.target)
    block = turn.schedule.block
    launch(
        turn_kernel, (m, triton.cdiv(k, block)), x, rows, k, rows.stride(0), choice=turn,
        early=True, EARLY=True, BLOCK=block,
    )  # fmt: skip
    y = torch.empty(m, n, dtype=out_dtype, device=rows.device)
    out, several = y, share.count > 1
    if several:
        out = torch.empty(share.count, m, n, dtype=torch.float32, device=rows.device)
    bias = None if bias is None else unit_stride(bias)
    grid = (triton.cdiv(n, s.block_n), share.count, triton.cdiv(m, s.block_m))
    launch(
        turned_kernel, grid, out, held.codes, held.scales, held.factor, x, bias, m, n, k // 2,
        share.chunk, held.codes.stride(0), held.stride_scale, choice=choice, early=True,
        BF16=rows.dtype == torch.bfloat16, PARTS=several, BN=s.block_n, BM=s.block_m, BK=s.block_k,
        STAGES=s.num_stages,
    )  # fmt: skip
    if several:
        add_parts(y, out, held.factor, bias, choice)
    return y


def _ring(
    rows: torch.Tensor,
    held: Operand,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    choice: Choice,
    sms: int,
) -> torch.Tensor:
    if rows.stride(0) > 1 << 24:  # the kernel has offsets of 32 bits within 16 rows
        rows = rows.contiguous()
    y = torch.empty(len(rows), len(held.codes), dtype=out_dtype, device=rows.device)
    reduced = pick("linear", REDUCE, choice.problem, choice.target)
    ring(y, rows, held, None if bias is None else unit_stride(bias), choice, reduced, sms)
    return y


def add_parts(
    y: torch.Tensor,
    parts_of_y: torch.Tensor,
    factor: torch.Tensor | None,
    bias: torch.Tensor | None,
    choice: Choice,
) -> None:
    """y = factor * (the sum of its parts, in order) + bias.  [P, m, n] -> [m, n]"""
    count, m, n = parts_of_y.shape
    reduced = pick("linear", REDUCE, choice.problem, choice.target)
    s, early = reduced.schedule, choice.target.sm == 90 and not interpreting()
    launch(
        reduce_kernel, (m, triton.cdiv(n, s.block)), y, parts_of_y, factor, bias, count, m, n,
        choice=reduced, early=early, EARLY=early, AT_ONCE=s.at_once, BLOCK=s.block,
    )  # fmt: skip


def _pairs(rows: torch.Tensor) -> torch.Tensor:
    """[m, k] of 16 bits as [m, k/2] int32; a copy where pairs are not aligned."""
    if rows.stride(0) % 2 or rows.storage_offset() % 2:
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.view(torch.int32)


def _widen(held: Operand, choice: Choice, n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight as a plain tensor, [N, K]."""
    s = choice.schedule
    out = torch.empty(n, k, dtype=dtype, device=held.codes.device)
    grid = (triton.cdiv(held.codes.shape[1], s.block_k), triton.cdiv(n, s.block_n))
    group = math.gcd(s.block_k, held.group_k // (1 if held.kind == "fp8" else 2))
    launch(
        widen_kernel, grid, out, held.codes, held.scales, held.zeros, held.factor, n, k,
        held.group_n, held.group_k, held.codes.stride(0), held.stride_scale,
        choice=choice, KIND=held.kind, ASM=not interpreting(), BN=s.block_n, BK=s.block_k,
        GROUP=group,
    )  # fmt: skip
    return out


def multiply_plain(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    """x W^T + bias by torch's own product, summed in fp32 and rounded once."""
    if x.is_cpu and torch.float32 in (x.dtype, out_dtype):  # interpreted: torch has no such product
        y = functional.linear(x.float(), weight.float())
        return (y if bias is None else y + bias.float()).to(out_dtype)
    if out_dtype == x.dtype:
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight.to(x.dtype), bias)
    if x.dtype == weight.dtype and out_dtype == torch.float32:
        # Half-precision operands as they are: a wider copy of the weight would be made every time.
        y = torch.mm(
            x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight.t(), out_dtype=out_dtype
        )
        y = y.reshape(*x.shape[:-1], len(weight))
    else:
        y = functional.linear(x.to(out_dtype), weight.to(out_dtype))
    return y if bias is None else y + bias.to(out_dtype)
