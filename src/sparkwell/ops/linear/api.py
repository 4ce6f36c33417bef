"""Linear layer: the weight's format decides the kernel; on CPU tensors the reference runs.

On a GPU a float weight is multiplied by torch's own matrix product."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.weights import Weight
from sparkwell.ops.backend import choose
from sparkwell.ops.linear.reference import linear_reference


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y = x W^T + bias.

    x: [..., K] fp32/bf16/fp16.
    weight: [N, K], a float tensor or a quantized one (which is dequantized, x is not quantized).
    bias: [N] or None.
    out_dtype: of the result; None: x's.  fp32 is what logits and scores of half-precision x need.

    Returns [..., N]; products and sums are fp32, cast once.
    Raises BadInput where the shapes do not fit.
    """
    served_by = choose("linear", x, backend)
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
    if served_by == "reference":
        return linear_reference(x, weight, bias).to(out_dtype or x.dtype)
    from sparkwell.ops.linear.run import multiply_as_is, multiply_plain

    if isinstance(weight, torch.Tensor):
        return multiply_plain(x, weight, bias, out_dtype or x.dtype)
    return multiply_as_is(x, weight, bias, out_dtype or x.dtype)
