"""Mixture of experts: choose experts, run them, combine; on CPU tensors the references run."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight, kind
from sparkwell.ops.backend import choose
from sparkwell.ops.moe.reference import (
    experts_reference,
    route_sigmoid_reference,
    route_softmax_reference,
)

ARITHMETICS = ("auto", "w4a16", "w4a4", "w8a16", "w8a8")


def route_sigmoid(
    logits: torch.Tensor,
    bias: torch.Tensor,
    *,
    topk: int,
    n_group: int,
    topk_group: int,
    normalize: bool,
    scale: float,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids = top-k of sigmoid(logits) + bias inside the best groups; weights = their sigmoids.

    A group's score is the sum of its two largest biased sigmoids; experts outside the topk_group
    best of the n_group groups of consecutive experts are out.  The weights carry no bias;
    normalize divides them by their sum + 1e-20; scale multiplies them last.  Equal scores: the
    lower group and the lower expert win.  (DeepSeek-V3, arXiv 2412.19437, equations 12-16.)

    logits: [T, E] fp32; E a multiple of n_group.
    bias: [E], the score correction of the checkpoint.

    Returns weights [T, topk] fp32 and ids [T, topk] int64, best first.
    Raises BadInput where shapes, dtype or counts do not fit.
    """
    served_by = choose("route_sigmoid", logits, backend)
    _check_router("route_sigmoid", logits, topk, n_group, topk_group)
    if bias.shape != logits.shape[1:]:
        raise BadInput(
            f"route_sigmoid: bias is {tuple(bias.shape)} for logits {tuple(logits.shape)}, "
            f"want ({logits.shape[1]},), one value per expert"
        )
    options = {"topk": topk, "n_group": n_group, "topk_group": topk_group}
    if served_by == "reference":
        return route_sigmoid_reference(logits, bias, **options, normalize=normalize, scale=scale)
    from sparkwell.ops.moe.router import route_rows

    return route_rows("route_sigmoid", logits, bias, **options, normalize=normalize, scale=scale)


def route_softmax(
    logits: torch.Tensor,
    *,
    topk: int,
    n_group: int = 1,
    topk_group: int = 1,
    normalize: bool,
    scale: float,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids, weights = top-k of softmax(logits) inside the best groups.

    A group's score is its largest probability; probabilities outside the topk_group best of the
    n_group groups of consecutive experts become 0.  normalize divides the weights by their sum;
    scale multiplies them last.  Equal scores: the lower group and the lower expert win.
    (DeepSeek-V2, arXiv 2405.04434, equations 20-28; Qwen3-MoE without groups.)

    logits: [T, E] fp32; E a multiple of n_group.

    Returns weights [T, topk] fp32 and ids [T, topk] int64, best first.
    Raises BadInput where shapes, dtype or counts do not fit.
    """
    served_by = choose("route_softmax", logits, backend)
    _check_router("route_softmax", logits, topk, n_group, topk_group)
    options = {"topk": topk, "n_group": n_group, "topk_group": topk_group}
    if served_by == "reference":
        return route_softmax_reference(logits, **options, normalize=normalize, scale=scale)
    from sparkwell.ops.moe.router import route_rows

    return route_rows("route_softmax", logits, None, **options, normalize=normalize, scale=scale)


def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    first_expert: int | None = None,
    arithmetic: str = "auto",
    backend: str = "auto",
) -> torch.Tensor:
    """y[t] = sum_j weights[t, j] * down[e] swiglu(gate_up[e] x[t]),  e = ids[t, j].

    x: [T, h] fp32/bf16/fp16.
    ids: [T, k] int64 (or int32) in [0, E); an expert named twice counts twice.
    weights: [T, k] fp32, applied after the down projection.
    gate_up: [E, 2*I, h], gate rows first; a float tensor or a quantized one.
    down: [E, h, I]; likewise.
    first_expert: None: these are all experts.  A number: they are its E consecutive ones of more,
    e = ids[t, j] - first_expert, and those outside [0, E) add nothing (expert parallelism).

    arithmetic: "w8a16", "w4a16": x is multiplied as it is.  "w8a8", of Fp8Blocks, and "w4a4", of
    Nvfp4: x, and what stands between the products, are quantized first: to e4m3 with a scale each
    128 columns; to NVFP4 with a factor each row.  "auto": as the checkpoint was made for
    ("fp8-group", "nvfp4"), where an expert has tokens enough to pay for it and the GPU has the
    matrix units; otherwise, and in the reference, x is left as it is.

    Returns [T, h] in x's dtype.  Products and sums are fp32, cast once; a kernel casts what stands
    between the two products to x's dtype, too.  Only experts that some token names are read.
    Raises BadInput where the shapes do not fit; the reference also where an id names no expert of
    all (a kernel leaves it out).  Unsupported where no kernel's tile fits the groups of a format.
    """
    served_by = choose("experts", x, backend)
    _check_experts(x, ids, weights, gate_up, down)
    _check_arithmetic(arithmetic, gate_up, down)
    if served_by == "reference":
        if first_expert is None:
            _check_ids(ids, gate_up.shape[0])
        y = experts_reference(
            x, ids, weights, gate_up, down, first_expert=first_expert, arithmetic=arithmetic
        )
        return y.to(x.dtype)
    from sparkwell.ops.moe.run import experts_rows

    return experts_rows(x, ids, weights, gate_up, down, first_expert or 0, arithmetic)


def _check_router(op: str, logits: torch.Tensor, topk: int, n_group: int, topk_group: int) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise BadInput(
            f"{op}: logits is {tuple(logits.shape)} {logits.dtype}, want [T, E] float32; "
            "half-precision logits change the choice: multiply the router's weight in fp32"
        )
    num_experts = logits.shape[1]
    if n_group < 1 or num_experts % n_group or not 1 <= topk_group <= n_group:
        raise BadInput(
            f"{op}: n_group is {n_group} and topk_group {topk_group} for {num_experts} experts, "
            "want n_group to divide the experts and 1 <= topk_group <= n_group"
        )
    eligible = num_experts // n_group * topk_group
    if not 1 <= topk <= eligible:
        raise BadInput(
            f"{op}: topk is {topk}, want 1 to {eligible}, the experts of {topk_group} of "
            f"{n_group} groups"
        )


def _check_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: Weight, down: Weight
) -> None:
    up_shape, down_shape = tuple(gate_up.shape), tuple(down.shape)
    if (
        x.ndim != 2
        or len(up_shape) != 3
        or up_shape[1] % 2
        or up_shape[2] != x.shape[1]
        or down_shape != (up_shape[0], up_shape[2], up_shape[1] // 2)
    ):
        raise BadInput(
            f"experts: x is {tuple(x.shape)}, gate_up {up_shape} and down {down_shape}, "
            "want x [T, h], gate_up [E, 2*I, h] and down [E, h, I]"
        )
    if ids.ndim != 2 or len(ids) != len(x) or weights.shape != ids.shape:
        raise BadInput(
            f"experts: ids is {tuple(ids.shape)} and weights {tuple(weights.shape)} for x "
            f"{tuple(x.shape)}, want both [T, k]"
        )


def _check_arithmetic(arithmetic: str, gate_up: Weight, down: Weight) -> None:
    if arithmetic not in ARITHMETICS:
        raise BadInput(
            f"experts: arithmetic is {arithmetic!r}, want one of {', '.join(ARITHMETICS)}"
        )
    form = Fp8Block if arithmetic.startswith("w8") else Nvfp4
    if arithmetic != "auto" and not all(isinstance(w, form) for w in (gate_up, down)):
        raise BadInput(
            f"experts: arithmetic is {arithmetic!r} for weights of {kind(gate_up)} and "
            f'{kind(down)}, want {form.__name__} for both, or "auto"'
        )


def _check_ids(ids: torch.Tensor, num_experts: int) -> None:
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= num_experts:
            raise BadInput(
                f"experts: ids range from {low} to {high}, want 0 to {num_experts - 1}: "
                f"there are {num_experts} experts"
            )
