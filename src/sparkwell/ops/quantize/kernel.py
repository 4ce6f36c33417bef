"""Activations to FP8 or NVFP4, a row or some groups of one a block.

FP8:    scale = max(amax, floor) / 448 per token or group;  code = e4m3(x / scale)
NVFP4:  s = e4m3(clamp(amax(16) / (6 f), 2^-9, 448)),  code = e2m1(x / (s f)),
        f the checkpoint's, or max(amax(token) / 2688, 2^-100)
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Rows:
    """What a kernel writes of m quantized rows; `store_quantized` takes these in this order.

    scales: of groups [k / group, m], of tokens [m].  blocks: e4m3 bytes of NVFP4, or None.
    given: the checkpoint's scale, or None.  floor: of scales made here.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    blocks: torch.Tensor | None
    given: torch.Tensor | None
    form: str
    group: int
    floor: float

    def made(self) -> Fp8Rows | Fp8Block | Nvfp4:
        """The rows as a weight's class, once they are written."""
        if self.blocks is not None:
            return Nvfp4(self.codes, self.blocks.view(torch.float8_e4m3fn), self.scales)
        values = self.codes.view(torch.float8_e4m3fn)
        if self.form == "fp8-group":
            return Fp8Block(values, self.scales.t(), (1, self.group))
        return Fp8Rows(values, self.scales)


def rows_for(
    m: int, k: int, form: str, given: torch.Tensor | None, group: int, device: torch.device
) -> Rows:
    """Uninitialised rows of the kind `form`, one of the public quantizer's."""
    fp4, blocks = form == "nvfp4", None
    codes = torch.empty(m, k // 2 if fp4 else k, dtype=torch.uint8, device=device)
    if form == "fp8-group":
        scales = torch.empty(-(-k // group), m, dtype=torch.float32, device=device)
        return Rows(codes, scales, None, None, form, group, AMAX_FLOOR)
    scales = torch.empty(m, dtype=torch.float32, device=device)
    if fp4:
        blocks = torch.empty(m, k // 16, dtype=torch.uint8, device=device)
    floor = FACTOR_FLOOR.value if fp4 else AMAX_FLOOR / E4M3_MAX.value
    return Rows(codes, scales, blocks, given, form, group, floor)


def quantize_rows(
    x: torch.Tensor, form: str, given: torch.Tensor | None, group: int
) -> Fp8Rows | Fp8Block | Nvfp4:
    """`quantize_activations` of checked operands.  [m, k] -> as many"""
    (m, k), x = x.shape, unit_stride(x)
    rows = rows_for(m, k, form, given, group, x.device)
    by_group = form == "fp8-group"
    problem = Problem(k, group if by_group else 0)
    choice = pick("quantize", TABLE, problem, device_of(x.device).target)
    block = choice.schedule.block
    if by_group:
        width = triton.next_power_of_2(group)
        each = max(1, block // width)
        launch(
            _groups_kernel, (m, triton.cdiv(-(-k // group), each)), rows.codes, rows.scales, x, k,
            m, x.stride(0), rows.floor, choice=choice, GROUP=group, WIDTH=width, GROUPS=each,
        )  # fmt: skip
    else:
        launch(
            _tokens_kernel, (m,), rows.codes, rows.scales, rows.blocks, x, given, k, x.stride(0),
            rows.floor, choice=choice, FP4=form == "nvfp4", BLOCK=block,
        )  # fmt: skip
    return rows.made()
