"""Launches of linear layers both of whose operands are quantized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import QuantizedTensor
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.fp8_products import copyable, fp8_products
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.linear.kernels.blockscaled import blockscaled_kernel
from sparkwell.ops.linear.kernels.expanded import expanded_kernel
from sparkwell.ops.linear.kernels.fp8_few import fp8_few
from sparkwell.ops.linear.kernels.scaled import scaled_kernel
from sparkwell.ops.linear.run import add_parts
from sparkwell.ops.linear.schedule import (
    BLOCKSCALED,
    EXPANDED,
    SCALED,
    Parts,
    Problem,
    Schedule,
    blockscaled_shared,
    expanded_shared,
    parts,
    scaled_shared,
)
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, Row, pick


def multiply_quantized(
    x: QuantizedTensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """x W^T + bias of two quantized operands that `check_pair` allows.  [m, K], [N, K] -> [m, N]"""
    if isinstance(weight, Fp8Rows | Fp8Block):
        assert isinstance(x, Fp8Rows | Fp8Block)
        group = weight.block[1] if isinstance(weight, Fp8Block) else 0
        return _fp8(x, weight, bias, out_dtype, group)
    assert isinstance(weight, Nvfp4 | Mxfp4)
    if isinstance(x, Nvfp4) and isinstance(weight, Nvfp4):
        return _fp4(x, weight, bias, out_dtype)
    assert isinstance(x, Fp8Rows)
    return _expanded(x, weight, bias, out_dtype)


@dataclass(frozen=True)
class Run:
    """What a launch needs beside its operands.

    y: the result.  out: what the kernel writes: y, or parts of it in fp32.
    """

    choice: Choice
    sms: int
    share: Parts
    y: torch.Tensor
    out: torch.Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of y, and the parts of K."""
        p, s = self.choice.problem, self.choice.schedule
        assert isinstance(p, Problem)
        return triton.cdiv(p.n, s.block_n) * triton.cdiv(p.m, s.block_m), self.share.count

    @property
    def several(self) -> bool:
        """Whether K is shared among blocks."""
        return self.share.count > 1

    def finished(self, bias: torch.Tensor | None) -> torch.Tensor:
        """y, its parts added where there are several."""
        if self.several:
            add_parts(self.y, self.out, None, bias, self.choice)
        return self.y


def _run(
    table: Sequence[Row],
    shared: Callable[[Problem, Schedule, Target], int],
    problem: Problem,
    x: QuantizedTensor,
    out_dtype: torch.dtype,
) -> Run:
    device = device_of(x.device)
    choice = pick("linear", table, problem, device.target, shared=shared)
    share = parts(problem, choice.schedule, device.sms)
    y = torch.empty(problem.m, problem.n, dtype=out_dtype, device=x.device)
    out = y
    if share.count > 1:
        shape = (share.count, problem.m, problem.n)
        out = torch.empty(shape, dtype=torch.float32, device=x.device)
    return Run(choice, device.sms, share, y, out)


def _fp4(
    x: Nvfp4, weight: Nvfp4, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    problem = Problem(m, n, k, "fp4", "fp4", 16)
    run = _run(BLOCKSCALED, blockscaled_shared, problem, x, out_dtype)
    s, bias = run.choice.schedule, None if bias is None else unit_stride(bias)
    w, w_scales = unit_stride(weight.codes), unit_stride(weight.scales)
    rows, x_scales = unit_stride(x.codes), unit_stride(x.scales)
    launch(
        blockscaled_kernel, run.grid, run.out, w, w_scales, weight.row_scales.contiguous(), rows,
        x_scales, x.row_scales.contiguous(), bias, m, n, k, run.share.chunk // 16, w.stride(0),
        w_scales.stride(0), rows.stride(0), x_scales.stride(0), choice=run.choice,
        PARTS=run.several, EVEN=run.share.even, BN=s.block_n, BM=s.block_m, BK=s.block_k,
    )  # fmt: skip
    return run.finished(bias)


def _expanded(
    x: Fp8Rows, weight: Nvfp4 | Mxfp4, bias: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    name, group, factor = "mxfp4", 16, None  # bytes of a scale
    if isinstance(weight, Nvfp4):
        name, group, factor = "nvfp4", 8, weight.row_scales.contiguous()
    run = _run(EXPANDED, expanded_shared, Problem(m, n, k, name, "fp8", 2 * group), x, out_dtype)
    s, bias = run.choice.schedule, None if bias is None else unit_stride(bias)
    w, w_scales = unit_stride(weight.codes), unit_stride(weight.scales.view(torch.uint8))
    rows = x.values.view(torch.uint8).contiguous().view(torch.int16)
    launch(
        expanded_kernel, run.grid, run.out, w, w_scales, factor, rows, x.scales.contiguous(), bias,
        m, n, run.share.chunk // group, k // (2 * group), w.stride(0), w_scales.stride(0),
        rows.stride(0), choice=run.choice, GROUP=group, ASM=not interpreting(), PARTS=run.several,
        EVEN=run.share.even, BN=s.block_n, BM=s.block_m, BK=s.block_k,
    )  # fmt: skip
    return run.finished(bias)


def _fp8(
    x: Fp8Rows | Fp8Block,
    weight: Fp8Rows | Fp8Block,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    group: int,
) -> torch.Tensor:
    (m, k), n = x.shape, weight.shape[0]
    group_n = weight.block[0] if isinstance(weight, Fp8Block) else 1
    boxes = copyable(x.values, weight.values) and not (group and group_n % 128)
    problem = Problem(
        m, n, k, "fp8", "fp8", group, sms=device_of(x.device).sms, boxes=boxes,
        result=torch.finfo(out_dtype).bits // 8,
    )  # fmt: skip
    run = _run(SCALED, scaled_shared, problem, x, out_dtype)
    bias = None if bias is None else unit_stride(bias)
    if run.choice.schedule.roles and run.choice.schedule.block_m <= 64 and not interpreting():
        fp8_few(
            run.out, x.values, x.scales, weight.values, unit_stride(weight.scales),
            choice=run.choice, sms=run.sms, group_n=group_n, group=group, bias=bias,
        )  # fmt: skip
        return run.y
    if run.choice.schedule.roles and not interpreting():
        fp8_products(
            run.out, x.values, x.scales, weight.values[None],
            unit_stride(weight.scales)[None],
            choice=run.choice, sms=run.sms, group_n=group_n, group=group, parts=run.share.count,
            bias=None if run.several else bias,
        )  # fmt: skip
        return run.finished(bias)
    s, widen = run.choice.schedule, bool(run.choice.target.missing(Feature.FP8_MMA))
    kind_of = torch.uint8 if widen else torch.float8_e4m3fn
    w, rows = unit_stride(weight.values.view(kind_of)), unit_stride(x.values.view(kind_of))
    w_scales = unit_stride(weight.scales)
    stride_group = x.scales.stride(1) if isinstance(x, Fp8Block) else 0
    launch(
        scaled_kernel, run.grid, run.out, w, w_scales, rows, x.scales, bias, m, n, k,
        run.share.chunk, group_n, w.stride(0), w_scales.stride(0), rows.stride(0),
        x.scales.stride(0), stride_group, choice=run.choice, GROUPED=group > 0,
        UNIFORM=group > 0 and group_n % s.block_n == 0, BY_X=s.block_m >= 64, WIDEN=widen,
        ASM=not interpreting(), PARTS=run.several, EVEN=run.share.even, GROUP=max(1, group),
        BN=s.block_n, BM=s.block_m, BK=s.block_k,
    )  # fmt: skip
    return run.finished(bias)
