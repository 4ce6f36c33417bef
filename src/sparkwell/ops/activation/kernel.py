"""SwiGLU, a block of a row's columns at a time, in fp32:  y = g / (1 + exp(-g)) * u."""

import torch
import triton
import triton.language as tl

from sparkwell.ops.activation.schedule import TABLE, Problem
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _swiglu_kernel(y_ptr, x_ptr, width, stride_x, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width

    gate = tl.load(x_ptr + row * stride_x + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + width + cols, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * width + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launch


def swiglu_rows(gate_up: torch.Tensor) -> torch.Tensor:
    """`swiglu` of a checked operand.  [..., 2 * width] -> [..., width]"""
    width = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * width)
    rows = unit_stride(rows)
    y = gate_up.new_empty(*gate_up.shape[:-1], width)
    choice = pick("swiglu", TABLE, Problem(width), device_of(gate_up.device).target)
    block = choice.schedule.block
    launch(
        _swiglu_kernel, (rows.shape[0], triton.cdiv(width, block)), y, rows, width,
        rows.stride(0), choice=choice, BLOCK=block,
    )  # fmt: skip
    return y
