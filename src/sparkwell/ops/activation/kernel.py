"""SwiGLU, a block of a row's columns at a time, in fp32:  y = g / (1 + exp(-g)) * u.

With FORM y, rounded to the input's type, is quantized as `quantize_activations` does it.
"""

import torch
import triton
import triton.language as tl

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.activation.schedule import TABLE, WHOLE, Problem
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.quantize import store_quantized
from sparkwell.ops.launch import launch
from sparkwell.ops.quantize.kernel import quantize_rows, rows_for
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _swiglu_kernel(
    y_ptr, x_ptr, width, stride_x, code_ptr, scale_ptr, block_ptr, given_ptr, floor, rows,
    BLOCK: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    cols = first + tl.arange(0, BLOCK)
    mask = cols < width

    gate = tl.load(x_ptr + row * stride_x + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + width + cols, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    if FORM == "none":
        tl.store(y_ptr + row * width + cols, y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        store_quantized(
            y.to(x_ptr.dtype.element_ty).to(tl.float32), code_ptr, scale_ptr, block_ptr, given_ptr,
            row, rows, first, width, floor, FORM, GROUP, BLOCK,
        )  # fmt: skip


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
        rows.stride(0), None, None, None, None, 0.0, rows.shape[0], choice=choice, BLOCK=block,
        FORM="none", GROUP=1,
    )  # fmt: skip
    return y


def swiglu_to_codes(
    gate_up: torch.Tensor, activations: str, input_scale: torch.Tensor | None, group: int
) -> Fp8Rows | Fp8Block | Nvfp4:
    """`swiglu_quantized` of checked operands.  [m, 2 * width] -> m rows of width"""
    m, width = gate_up.shape[0], gate_up.shape[1] // 2
    whole = input_scale is None and activations != "fp8-group"  # one scale needs all of a row
    odd = activations == "fp8-group" and group & (group - 1)  # a tile's rows are powers of two
    if odd or (whole and width > WHOLE):
        return quantize_rows(swiglu_rows(gate_up), activations, input_scale, group)
    x, q = unit_stride(gate_up), rows_for(m, width, activations, input_scale, group, gate_up.device)
    padded = triton.next_power_of_2(max(1, width))
    # Bytes of two codes change their place, from where values are to where bytes are stored.
    shared = (lambda *_: padded // 2) if whole and q.form == "nvfp4" else None
    target = device_of(x.device).target
    choice = pick("swiglu", TABLE, Problem(width, whole), target, shared=shared)
    block = max(choice.schedule.block, padded if whole else group)
    launch(
        _swiglu_kernel, (m, triton.cdiv(width, block)), x, x, width, x.stride(0), q.codes,
        q.scales, q.blocks, q.given, q.floor, m, choice=choice, BLOCK=block, FORM=q.form,
        GROUP=group,
    )  # fmt: skip
    return q.made()
