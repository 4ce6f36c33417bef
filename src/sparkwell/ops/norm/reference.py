"""Norms over the last dimension in fp32 torch.

RMSNorm:    y = x / sqrt(mean(x^2) + eps) * weight                     (arXiv 1910.07467)
LayerNorm:  y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     (arXiv 1607.06450)
"""

import torch

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.quantize.reference import quantize_activations_reference


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """The meaning of `rms_norm`, in fp32.  [..., d], [d] -> [..., d]"""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def add_rms_norm_reference(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, *, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning of `add_rms_norm`: the sum is rounded to x's dtype before its norm is taken."""
    total = (x.float() + delta.float()).to(x.dtype)
    return total.float(), rms_norm_reference(total, weight, eps=eps)


def rms_norm_quantized_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    activations: str,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
) -> Fp8Rows | Fp8Block | Nvfp4:
    """The meaning of `rms_norm_quantized`: the norm is rounded to x's dtype first."""
    y = rms_norm_reference(x, weight, eps=eps).to(x.dtype)
    return quantize_activations_reference(y, activations, input_scale=input_scale, group=group)


def add_rms_norm_quantized_reference(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    activations: str,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
) -> tuple[torch.Tensor, Fp8Rows | Fp8Block | Nvfp4]:
    """The meaning of `add_rms_norm_quantized`."""
    total, y = add_rms_norm_reference(x, delta, weight, eps=eps)
    y = y.to(x.dtype)
    rows = quantize_activations_reference(y, activations, input_scale=input_scale, group=group)
    return total.to(x.dtype), rows


def layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float
) -> torch.Tensor:
    """The meaning of `layer_norm`, in fp32.  [..., d], [d], [d] -> [..., d]"""
    x = x.float()
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered * torch.rsqrt(variance + eps) * weight.float() + bias.float()
