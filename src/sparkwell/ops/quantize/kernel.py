"""Activations to FP8 or NVFP4, a row or some groups of one a block.

FP8:    scale = max(amax, floor) / 448 per token or group;  code = e4m3(x / scale)
NVFP4:  s = e4m3(clamp(amax(16) / (6 f), 2^-9, 448)),  code = e2m1(x / (s f)),
        f the checkpoint's, or max(amax(token) / 2688, 2^-100)
"""

import torch
import triton
import triton.language as tl

from sparkwell.formats.fp8 import AMAX_FLOOR, Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.e4m3 import E4M3_MAX, e4m3_code
from sparkwell.ops.kernels.quantize import (
    E2M1_E4M3_MAX,
    FACTOR_FLOOR,
    divided,
    fp8_groups,
    largest_of,
    nvfp4_blocks,
    token_scale,
)
from sparkwell.ops.launch import launch
from sparkwell.ops.quantize.schedule import TABLE, Problem
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernels


@triton.jit
def _groups_kernel(
    code_ptr, scale_ptr, x_ptr, k, rows, stride_x, floor, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = tl.arange(0, WIDTH)[None, :]
    col = group[:, None] * GROUP + inside
    mask = (inside < GROUP) & (col < k)

    x = tl.load(x_ptr + row * stride_x + col, mask=mask, other=0.0).to(tl.float32)
    codes, scale = fp8_groups(x, floor)
    tl.store(code_ptr + row * k + col, codes, mask=mask)
    # One group's scales of all rows lie together, as a product reads them.
    tl.store(scale_ptr + group.to(tl.int64) * rows + row, scale, mask=group * GROUP < k)


@triton.jit
def _tokens_kernel(
    code_ptr, scale_ptr, block_scale_ptr, x_ptr, given_ptr, k, stride_x, floor,
    FP4: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x_ptrs = x_ptr + row * stride_x + col

    if given_ptr is not None:
        scale = tl.load(given_ptr)
    else:
        largest, any_nan = 0.0, 0
        for first in range(0, k, BLOCK):
            x = tl.load(x_ptrs + first, mask=col < k - first, other=0.0).to(tl.float32)
            most, bad = largest_of(x)
            largest, any_nan = tl.maximum(largest, most), tl.maximum(any_nan, bad)
        scale = token_scale(largest, any_nan, floor, E2M1_E4M3_MAX if FP4 else E4M3_MAX)
    tl.store(scale_ptr + row, scale)
    for first in range(0, k, BLOCK):
        mask = col < k - first
        x = tl.load(x_ptrs + first, mask=mask, other=0.0).to(tl.float32)
        if FP4:
            codes, scales = nvfp4_blocks(x, scale, BLOCK // 16)
            block = tl.arange(0, BLOCK // 16)
            byte = block[:, None] * 8 + tl.arange(0, 8)[None, :]
            held = byte < (k - first) // 2
            tl.store(code_ptr + row * (k // 2) + first // 2 + byte, codes, mask=held)
            at = block_scale_ptr + row * (k // 16) + first // 16 + block
            tl.store(at, scales, mask=block < (k - first) // 16)
        else:
            tl.store(code_ptr + row * k + first + col, e4m3_code(divided(x, scale)), mask=mask)


# ---------------------------------------------------------------- launch


def quantize_groups(x: torch.Tensor, group: int) -> Fp8Block:
    """FP8 of each `group` values of a row.  [m, k] -> blocks of 1 x group"""
    (m, k), x = x.shape, unit_stride(x)
    groups = -(-k // group)
    codes = torch.empty(m, k, dtype=torch.uint8, device=x.device)
    scales = torch.empty(groups, m, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(group)
    choice = pick("quantize", TABLE, Problem(k, group), device_of(x.device).target)
    each = max(1, choice.schedule.block // width)
    launch(
        _groups_kernel, (m, triton.cdiv(groups, each)), codes, scales, x, k, m, x.stride(0),
        AMAX_FLOOR, choice=choice, GROUP=group, WIDTH=width, GROUPS=each,
    )  # fmt: skip
    return Fp8Block(codes.view(torch.float8_e4m3fn), scales.t(), (1, group))


def quantize_tokens(
    x: torch.Tensor, input_scale: torch.Tensor | None, *, fp4: bool
) -> Fp8Rows | Nvfp4:
    """FP8 or NVFP4 with a scale or factor per token, or the one given.  [m, k] -> as many"""
    (m, k), x = x.shape, unit_stride(x)
    codes = torch.empty(m, k // 2 if fp4 else k, dtype=torch.uint8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    blocks = torch.empty(m, k // 16, dtype=torch.uint8, device=x.device) if fp4 else None
    choice = pick("quantize", TABLE, Problem(k, 0), device_of(x.device).target)
    launch(
        _tokens_kernel, (m,), codes, scales, blocks, x, input_scale, k, x.stride(0),
        FACTOR_FLOOR.value if fp4 else AMAX_FLOOR / E4M3_MAX.value,
        choice=choice, FP4=fp4, BLOCK=choice.schedule.block,
    )  # fmt: skip
    if blocks is not None:
        return Nvfp4(codes, blocks.view(torch.float8_e4m3fn), scales)
    return Fp8Rows(codes.view(torch.float8_e4m3fn), scales)
