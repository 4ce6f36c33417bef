"""Public norms over the last dimension: shapes checked, backend chosen, result in x's dtype."""

from typing import Any

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.backend import choose
from sparkwell.ops.norm.reference import (
    add_rms_norm_quantized_reference,
    add_rms_norm_reference,
    layer_norm_reference,
    rms_norm_quantized_reference,
    rms_norm_reference,
)
from sparkwell.ops.quantize.api import check_quantizer


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
    _check_delta("add_rms_norm", x, delta)
    if served_by == "reference":
        total, y = add_rms_norm_reference(x, delta, weight, eps=eps)
        return total.to(x.dtype), y.to(x.dtype)
    from sparkwell.ops.norm.kernel import norm_rows

    return norm_rows("add_rms_norm", x, weight, delta=delta, eps=eps)


def rms_norm_quantized(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    activations: str,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
    backend: str = "auto",
) -> Fp8Rows | Fp8Block | Nvfp4:
    """quantize_activations(rms_norm(x, weight)): what quantized linear layers read, in one pass.

    x: [m, d] fp32/bf16/fp16.
    weight: [d], any float type.
    eps: added to the mean square, before the root.
    activations, input_scale, group: as `quantize_activations` has them.

    Returns m rows of d; the norm is rounded to x's dtype before it is quantized.
    Raises BadInput where shapes or kinds do not fit.
    """
    served_by = choose("rms_norm_quantized", x, backend)
    _check("rms_norm_quantized", x, "weight", weight)
    input_scale = check_quantizer("rms_norm_quantized", x, activations, input_scale, group)
    how: dict[str, Any] = {"input_scale": input_scale, "group": group}
    if served_by == "reference":
        return rms_norm_quantized_reference(x, weight, eps=eps, activations=activations, **how)
    from sparkwell.ops.norm.kernel import quantized_norm

    name = "rms_norm_quantized"
    return quantized_norm(name, x, weight, eps=eps, activations=activations, **how)[1]


def add_rms_norm_quantized(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    activations: str,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
    backend: str = "auto",
) -> tuple[torch.Tensor, Fp8Rows | Fp8Block | Nvfp4]:
    """total = x + delta;  rows = quantize_activations(rms_norm(total, weight)).

    x, delta: [m, d] fp32/bf16/fp16, of one dtype.
    weight: [d], any float type.
    eps: added to the mean square, before the root.
    activations, input_scale, group: as `quantize_activations` has them.

    Returns total in x's dtype, and m rows of d, as `add_rms_norm` and then the quantizer do.
    Raises BadInput where shapes, dtypes or kinds do not fit.
    """
    op = "add_rms_norm_quantized"
    served_by = choose(op, x, backend)
    _check(op, x, "weight", weight)
    _check_delta(op, x, delta)
    input_scale = check_quantizer(op, x, activations, input_scale, group)
    how: dict[str, Any] = {"input_scale": input_scale, "group": group}
    if served_by == "reference":
        return add_rms_norm_quantized_reference(
            x, delta, weight, eps=eps, activations=activations, **how
        )
    from sparkwell.ops.norm.kernel import quantized_norm

    return quantized_norm(op, x, weight, delta, eps=eps, activations=activations, **how)


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


def _check_delta(op: str, x: torch.Tensor, delta: torch.Tensor) -> None:
    if delta.shape != x.shape or delta.dtype != x.dtype:
        raise BadInput(
            f"{op}: delta is {tuple(delta.shape)} {delta.dtype} for x {tuple(x.shape)} {x.dtype}, "
            "want the same"
        )
