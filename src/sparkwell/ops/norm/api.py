"""Public norms over the last dimension: shapes checked, backend chosen, result in x's dtype."""

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose
from sparkwell.ops.norm.reference import (
    add_rms_norm_reference,
    layer_norm_reference,
    rms_norm_reference,
)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, eps: float, backend: str = "auto"
) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (arXiv 1910.07467).

    x: [..., d] fp32/bf16/fp16.
    weight: [d], any float type.
    eps: added to the mean square, before the root.

    Returns [..., d] in x's dtype; everything before the final cast is fp32.
    Raises BadInput where the shapes do not fit.
    """
    served_by = choose("rms_norm", x, backend)
    _check("rms_norm", x, "weight", weight)
    if served_by == "reference":
        return rms_norm_reference(x, weight, eps=eps).to(x.dtype)
    from sparkwell.ops.norm.kernel import norm_rows

    return norm_rows("rms_norm", x, weight, eps=eps)[1]


def add_rms_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """total = x + delta;  y = rms_norm(total): what a layer adds, and what the next one reads.

    x: [..., d] fp32/bf16/fp16.
    delta: the same shape and dtype.
    weight: [d], any float type.
    eps: added to the mean square, before the root.

    Returns total and y, [..., d] in x's dtype; y is of the total as rounded to it.
    Raises BadInput where the shapes or dtypes do not fit.
    """
    served_by = choose("add_rms_norm", x, backend)
    _check("add_rms_norm", x, "weight", weight)
    if delta.shape != x.shape or delta.dtype != x.dtype:
        raise BadInput(
            f"add_rms_norm: delta is {tuple(delta.shape)} {delta.dtype} for x {tuple(x.shape)} "
            f"{x.dtype}, want the same"
        )
    if served_by == "reference":
        total, y = add_rms_norm_reference(x, delta, weight, eps=eps)
        return total.to(x.dtype), y.to(x.dtype)
    from sparkwell.ops.norm.kernel import norm_rows

    return norm_rows("add_rms_norm", x, weight, delta=delta, eps=eps)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> torch.Tensor:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension.

    The variance is the biased one, the mean of the squared distances (arXiv 1607.06450).

    x: [..., d] fp32/bf16/fp16.
    weight, bias: [d], any float type.
    eps: added to the variance, before the root.

    Returns [..., d] in x's dtype; everything before the final cast is fp32.
    Raises BadInput where the shapes do not fit.
    """
    served_by = choose("layer_norm", x, backend)
    _check("layer_norm", x, "weight", weight)
    _check("layer_norm", x, "bias", bias)
    if served_by == "reference":
        return layer_norm_reference(x, weight, bias, eps=eps).to(x.dtype)
    from sparkwell.ops.norm.kernel import norm_rows

    return norm_rows("layer_norm", x, weight, bias, eps=eps)[1]


def _check(op: str, x: torch.Tensor, name: str, vector: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise BadInput(f"{op}: x is {x.dtype}, want a float type")
    if vector.ndim != 1 or x.shape[-1:] != vector.shape:
        raise BadInput(
            f"{op}: {name} is {tuple(vector.shape)} for x {tuple(x.shape)}, "
            f"want one value per element of x's last dimension"
        )
