"""Rotary position embedding, a row's heads a block, angles and rotation in fp32.

(a_i, b_i) <- f (a_i cos_i - b_i sin_i, b_i cos_i + a_i sin_i),  angle = position * inv_freq[i]
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.rotation import turn
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.rope.schedule import TABLE, Problem
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _rope_kernel(
    y_ptr, x_ptr, position_ptr, inv_freq_ptr, heads, half, stride_t, stride_h, factor,
    INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    i = tl.arange(0, BLOCK)
    mask = (h < heads)[:, None] & (i < half)[None, :]
    if INTERLEAVED:
        first, apart = 2 * i[None, :], 1
    else:
        first, apart = i[None, :], half

    position = tl.load(position_ptr + t).to(tl.float32)
    angle = position * tl.load(inv_freq_ptr + i, mask=i < half, other=0.0)
    cos = (tl.cos(angle) * factor)[None, :]
    sin = (tl.sin(angle) * factor)[None, :]
    row = x_ptr + t * stride_t + h[:, None].to(tl.int64) * stride_h + first
    a = tl.load(row, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(row + apart, mask=mask, other=0.0).to(tl.float32)
    out = y_ptr + (t * heads + h[:, None]) * (2 * half) + first
    dtype = y_ptr.dtype.element_ty
    a, b = turn(a, b, cos, sin)
    tl.store(out, a.to(dtype), mask=mask)
    tl.store(out + apart, b.to(dtype), mask=mask)


# ---------------------------------------------------------------- launch


def rotate(
    x: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    attention_factor: float,
    interleaved: bool,
) -> torch.Tensor:
    """`rope` of checked operands.  [T, h, d] or [T, d] -> the same, contiguous."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x if x.ndim == 3 else x[:, None]
    rows, positions = unit_stride(rows), unit_stride(positions)
    num_rows, heads, d = rows.shape
    choice = pick("rope", TABLE, Problem(heads, d), device_of(x.device).target)
    block_h = choice.schedule.block_h
    launch(
        _rope_kernel, (num_rows, triton.cdiv(heads, block_h)), y, rows, positions,
        unit_stride(inv_freq.float()), heads, d // 2, rows.stride(0), rows.stride(1),
        attention_factor, choice=choice, INTERLEAVED=interleaved, BLOCK_H=block_h,
        BLOCK=triton.next_power_of_2(max(d // 2, 1)),
    )  # fmt: skip
    return y
