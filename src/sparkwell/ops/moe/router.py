"""Launches of the routers' kernel, and of the sum over a token's experts."""

import torch
import triton

from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.moe.kernels.route import route_kernel
from sparkwell.ops.moe.schedule import ROUTE, RouteProblem
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick


def route_rows(
    op: str,
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    topk: int,
    n_group: int,
    topk_group: int,
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both routers of checked operands; sigmoid with a bias, softmax without.  [T, E] -> [T, k]"""
    logits = unit_stride(logits)
    bias = None if bias is None else unit_stride(bias)
    rows, num_experts = logits.shape
    weights = torch.empty(rows, topk, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, topk, dtype=torch.int64, device=logits.device)
    choice = pick(op, ROUTE, RouteProblem(num_experts), device_of(logits.device).target)
    size = num_experts // n_group
    launch(
        route_kernel, (rows,), weights, ids, logits, bias, size, logits.stride(0), scale,
        choice=choice, TOPK=topk, GROUPS=n_group, TOPK_GROUP=topk_group, NORMALIZE=normalize,
        SIGMOID=bias is not None, BLOCK_G=triton.next_power_of_2(n_group),
        BLOCK_S=triton.next_power_of_2(size), BLOCK_K=triton.next_power_of_2(topk),
    )  # fmt: skip
    return weights, ids
