"""Norms over the last dimension.

RMSNorm:    y = x / sqrt(mean(x^2) + eps) * weight                     (arXiv 1910.07467)
LayerNorm:  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     (arXiv 1607.06450)
"""

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose

# ---------------------------------------------------------------- reference


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """The meaning of `rms_norm`, in fp32.  [..., d], [d] -> [..., d]"""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float
) -> torch.Tensor:
    """The meaning of `layer_norm`, in fp32.  [..., d], [d], [d] -> [..., d]"""
    x = x.float()
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered * torch.rsqrt(variance + eps) * weight.float() + bias.float()


# ---------------------------------------------------------------- launch


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
    choose("rms_norm", x, backend)
    _check("rms_norm", x, "weight", weight)
    return rms_norm_reference(x, weight, eps=eps).to(x.dtype)


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
    choose("layer_norm", x, backend)
    _check("layer_norm", x, "weight", weight)
    _check("layer_norm", x, "bias", bias)
    return layer_norm_reference(x, weight, bias, eps=eps).to(x.dtype)


def _check(op: str, x: torch.Tensor, name: str, vector: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise BadInput(f"{op}: x is {x.dtype}, want a float type")
    if vector.ndim != 1 or x.shape[-1:] != vector.shape:
        raise BadInput(
            f"{op}: {name} is {tuple(vector.shape)} for x {tuple(x.shape)}, "
            f"want one value per element of x's last dimension"
        )
