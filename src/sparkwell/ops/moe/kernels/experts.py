"""Experts with float weights:  y = sum_j w_j down_j swiglu(gate_up_j x).

Every (token, expert) pair multiplies by itself, in fp32, and a token's pairs are added in the order
of its list: deterministic, the same in any batch, and memory-bound as a decode step is.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.activation import swiglu
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.moe.schedule import COMBINE, TABLE, CombineProblem, Problem
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

# ---------------------------------------------------------------- kernel


@triton.jit
def _pairs_kernel(
    y_ptr, x_ptr, weight_ptr, id_ptr, n, k, num_experts, per_row, stride_x, stride_e, stride_n,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    row = pair // per_row
    expert = tl.load(id_ptr + pair).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    of_n = cols < n

    total = tl.zeros((BLOCK_N,), tl.float32)
    if (expert >= 0) & (expert < num_experts):
        weight = weight_ptr + expert * stride_e + cols[:, None].to(tl.int64) * stride_n
        for first in range(0, k, BLOCK_K):
            inner = first + tl.arange(0, BLOCK_K)
            of_k = inner < k
            x = tl.load(x_ptr + row * stride_x + inner, mask=of_k, other=0.0).to(tl.float32)
            w = tl.load(
                weight + inner[None, :], mask=of_n[:, None] & of_k[None, :], other=0.0
            ).to(tl.float32)  # fmt: skip
            total += tl.sum(w * x[None, :], 1)
    tl.store(y_ptr + pair * n + cols, total, mask=of_n)


@triton.jit
def _combine_kernel(
    y_ptr, part_ptr, weight_ptr, k, width, stride_t, stride_k, BLOCK: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width

    total = tl.zeros((BLOCK,), tl.float32)
    for j in range(k):  # in the order of the list
        part = tl.load(part_ptr + (t * k + j) * width + cols, mask=mask, other=0.0)
        weight = tl.load(weight_ptr + t * stride_t + j * stride_k).to(tl.float32)
        total += part * weight
    tl.store(y_ptr + t * width + cols, total.to(y_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launch


def _multiply(
    x: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, per_row: int
) -> torch.Tensor:
    """y[i] = weight[ids[i]] x[i // per_row] in fp32.  [R, K], [P], [E, N, K] -> [P, N]"""
    num_experts, n, k = weight.shape
    y = torch.empty(len(ids), n, dtype=torch.float32, device=x.device)
    choice = pick("experts", TABLE, Problem(n, k), device_of(x.device).target)
    s = choice.schedule
    launch(
        _pairs_kernel, (len(ids), triton.cdiv(n, s.block_n)), y, x, weight, ids, n, k,
        num_experts, per_row, x.stride(0), weight.stride(0), weight.stride(1),
        choice=choice, BLOCK_N=s.block_n, BLOCK_K=s.block_k,
    )  # fmt: skip
    return y


def experts_rows(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """`experts` of checked operands with float weights.  [T, h] -> [T, h]"""
    x, gate_up, down = map(unit_stride, (x, gate_up, down))
    flat = ids.reshape(-1)
    hidden = swiglu(_multiply(x, flat, gate_up, ids.shape[1]), backend="kernel")
    parts = _multiply(hidden, flat, down, 1)  # [T * k, h]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = x.shape
    choice = pick("experts", COMBINE, CombineProblem(width), device_of(x.device).target)
    block = choice.schedule.block
    launch(
        _combine_kernel, (rows, triton.cdiv(width, block)), out, parts, weights, ids.shape[1],
        width, weights.stride(0), weights.stride(1), choice=choice, BLOCK=block,
    )  # fmt: skip
    return out
