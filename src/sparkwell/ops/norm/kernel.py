"""RMSNorm and LayerNorm, one row per block, everything before the final cast in fp32.

RMSNorm:    y = x / sqrt(mean(x^2) + eps) * weight
LayerNorm:  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

With a delta x + delta, rounded to x's type, is kept and normed.  With FORM y, rounded to x's type,
is quantized as `quantize_activations` does it.
"""

import torch
import triton
import triton.language as tl

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.quantize import store_quantized
from sparkwell.ops.launch import launch
from sparkwell.ops.norm.schedule import TABLE, Problem
from sparkwell.ops.quantize.kernel import Rows, quantize_rows, rows_for
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _norm_kernel(
    y_ptr, sum_ptr, x_ptr, delta_ptr, weight_ptr, bias_ptr, d, stride_x, stride_delta,
    stride_weight, stride_bias, eps, code_ptr, scale_ptr, block_ptr, given_ptr, floor, rows,
    CENTER: tl.constexpr, BLOCK: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31 on long prefills
    cols = tl.arange(0, BLOCK)
    mask = cols < d

    x = tl.load(x_ptr + row * stride_x + cols, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    weight = tl.load(weight_ptr + cols * stride_weight, mask=mask, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + row * stride_delta + cols, mask=mask, other=0.0)
        total = (x + delta.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * d + cols, total, mask=mask)
        x = total.to(tl.float32)
    if CENTER:
        x = tl.where(mask, x - tl.sum(x) / d, 0.0)
    y = x / tl.sqrt(tl.sum(x * x) / d + eps) * weight
    if CENTER:
        y += tl.load(bias_ptr + cols * stride_bias, mask=mask, other=0.0).to(tl.float32)
    if FORM == "none":
        tl.store(y_ptr + row * d + cols, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        store_quantized(
            y, code_ptr, scale_ptr, block_ptr, given_ptr, row, rows, 0, d, floor, FORM, GROUP, BLOCK
        )


# ---------------------------------------------------------------- launch


def norm_rows(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    *,
    eps: float,
    quantized: Rows | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + delta, and its norm: RMSNorm without a bias, LayerNorm with one.  [..., d] -> both.

    quantized: takes the norm instead.
    """
    d = x.shape[-1]
    rows = unit_stride(x.reshape(-1, d))  # a view where the rows are evenly spaced, else a copy
    deltas, total = None, x
    if delta is not None:
        deltas = unit_stride(delta.reshape(-1, d))
        total = torch.empty_like(x, memory_format=torch.contiguous_format)
    y = total
    if quantized is None:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
    q = quantized
    block = max(triton.next_power_of_2(max(d, 1)), 1 if q is None else q.group)
    grouped = q is not None and q.form == "fp8-group"  # a code a value changes its place
    shared = (lambda *_: block) if grouped else None
    choice = pick(op, TABLE, Problem(d), device_of(x.device).target, shared=shared)
    launch(
        _norm_kernel, (rows.shape[0],), y, None if delta is None else total, rows, deltas, weight,
        bias, d, rows.stride(0), 0 if deltas is None else deltas.stride(0), weight.stride(0),
        0 if bias is None else bias.stride(0), eps, *_arguments(q), rows.shape[0],
        choice=choice, CENTER=bias is not None,
        BLOCK=block, FORM="none" if q is None else q.form, GROUP=1 if q is None else q.group,
    )  # fmt: skip
    return total, y


def _arguments(q: Rows | None) -> tuple[object, ...]:
    """What a kernel is told of quantized rows: where they are written, and how small scales are."""
    if q is None:
        return None, None, None, None, 0.0
    return q.codes, q.scales, q.blocks, q.given, q.floor


def quantized_norm(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    delta: torch.Tensor | None = None,
    *,
    eps: float,
    activations: str,
    input_scale: torch.Tensor | None,
    group: int,
) -> tuple[torch.Tensor, Fp8Rows | Fp8Block | Nvfp4]:
    """x + delta, and its RMSNorm quantized; checked operands.  [m, d] -> both"""
    m, d = x.shape
    if activations == "fp8-group" and group & (group - 1):  # a tile's rows are powers of two
        total, y = norm_rows(op, x, weight, delta=delta, eps=eps)
        return total, quantize_rows(y, activations, input_scale, group)
    rows = rows_for(m, d, activations, input_scale, group, x.device)
    total, _ = norm_rows(op, x, weight, delta=delta, eps=eps, quantized=rows)
    return total, rows.made()
