"""References of the mixture of experts, in fp32.

Routers: sigmoid with a selection bias (DeepSeek-V3, arXiv 2412.19437, equations 12-16) and softmax
(DeepSeek-V2, arXiv 2405.04434, equations 20-28; Qwen3-MoE without groups).
Experts: y = sum_j weights_j * down_j(swiglu(gate_up_j(x))).
"""

import torch
from torch.nn import functional

from sparkwell.formats.nvfp4 import quantize_nvfp4_tokens
from sparkwell.formats.weights import Weight, dequantize, select
from sparkwell.ops.activation import swiglu_reference
from sparkwell.ops.linear.reference import activations_reference

NORMALIZE_FLOOR = 1e-20  # added to the sum of the chosen sigmoids; all of them may underflow to 0


def route_sigmoid_reference(
    logits: torch.Tensor,
    bias: torch.Tensor,
    *,
    topk: int,
    n_group: int,
    topk_group: int,
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `route_sigmoid`, in fp32.  [T, E], [E] -> weights [T, topk], ids [T, topk]"""
    scores = logits.float().sigmoid()
    choice = scores + bias.float()  # the bias decides who is chosen, never with what weight
    if topk_group < n_group:
        grouped = choice.unflatten(-1, (n_group, -1))  # [T, n_group, E/n_group]
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        choice = choice.masked_fill(_outside(best, topk_group, grouped.shape[-1]), -torch.inf)
    ids = _largest(choice, topk)
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + NORMALIZE_FLOOR)
    return weights * scale, ids


def route_softmax_reference(
    logits: torch.Tensor,
    *,
    topk: int,
    n_group: int = 1,
    topk_group: int = 1,
    normalize: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `route_softmax`, in fp32.  [T, E] -> weights [T, topk], ids [T, topk]"""
    scores = logits.float().softmax(-1)
    if topk_group < n_group:
        grouped = scores.unflatten(-1, (n_group, -1))  # [T, n_group, E/n_group]
        best = grouped.amax(-1)
        scores = scores.masked_fill(_outside(best, topk_group, grouped.shape[-1]), 0.0)
    ids = _largest(scores, topk)
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids


def experts_reference(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    first_expert: int | None = None,
    arithmetic: str = "auto",
) -> torch.Tensor:
    """The meaning of `experts`, in fp32.  [T, h], [T, k], [T, k], [E, 2I, h], [E, h, I] -> [T, h]

    Each token's sum runs over its experts in ascending id, whatever else is in the batch.
    first_expert: which expert is the first of the E; ids outside them add nothing.
    arithmetic: "w8a8": what both products multiply is quantized first, each 128 columns of a row;
    "w4a4": to NVFP4 with a factor of the row.
    """
    x = _quantized(x, gate_up, arithmetic)
    ids = ids - (first_expert or 0)
    x = x.float()
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    by_expert, order = ids.flatten().sort(stable=True)  # order: places in the flattened [T, k]
    active, rows = by_expert.unique_consecutive(return_counts=True)
    counts = rows.tolist()
    tokens = (order // ids.shape[1]).split(counts)
    factors = weights.float().flatten()[order, None].split(counts)
    for expert, token, factor in zip(active.tolist(), tokens, factors, strict=True):
        if not 0 <= expert < gate_up.shape[0]:
            continue
        hidden = swiglu_reference(functional.linear(x[token], _expert(gate_up, expert)))
        hidden = _quantized(hidden, down, arithmetic)
        out.index_add_(0, token, functional.linear(hidden, _expert(down, expert)) * factor)
    return out


def _quantized(x: torch.Tensor, weight: Weight, arithmetic: str) -> torch.Tensor:
    """x as the product with `weight` takes it."""
    if arithmetic == "w8a8" and not isinstance(weight, torch.Tensor):
        return activations_reference(x, weight, "fp8-group")
    if arithmetic == "w4a4":
        return quantize_nvfp4_tokens(x.float()).dequantize()
    return x


def _expert(weight: Weight, expert: int) -> torch.Tensor:
    return dequantize(select(weight, expert))


def _largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Positions of the k largest of the last dimension, largest first; ties: lower position."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def _outside(best: torch.Tensor, topk_group: int, size: int) -> torch.Tensor:
    """True at the experts outside the topk_group best groups.  [T, n_group] -> [T, E]"""
    outside = torch.ones_like(best, dtype=torch.bool)
    outside.scatter_(-1, _largest(best, topk_group), False)
    return outside.repeat_interleave(size, dim=-1)
