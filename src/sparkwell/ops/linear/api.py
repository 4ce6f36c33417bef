"""Linear layer: the weight's format decides the kernel; on CPU tensors the reference runs."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.weights import Weight
from sparkwell.ops.backend import choose
from sparkwell.ops.linear.reference import linear_reference


def linear(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """y = x W^T + bias.

    x: [..., K] fp32/bf16/fp16.
    weight: [N, K], a float tensor or an Fp8Block (which is dequantized, x is not quantized).
    bias: [N] or None.

    Returns [..., N] in x's dtype; products and sums are fp32, cast once.
    Raises BadInput where the shapes do not fit.
    """
    choose("linear", x, backend)
    if len(weight.shape) != 2 or x.shape[-1:] != weight.shape[1:]:
        raise BadInput(
            f"linear: x is {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "want x [..., K] and weight [N, K] with the same K"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise BadInput(
            f"linear: bias is {tuple(bias.shape)} for weight {tuple(weight.shape)}, "
            f"want ({weight.shape[0]},), one value per output"
        )
    return linear_reference(x, weight, bias).to(x.dtype)
