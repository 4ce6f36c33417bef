"""Linear layer: the weight's format decides the kernel; on CPU tensors the reference runs.

On a GPU a float weight is multiplied by torch's own matrix product."""

import torch
from torch.nn import functional

from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.weights import Weight, kind
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
    Raises BadInput where the shapes do not fit, Unsupported for quantized weights on a GPU.
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
    if not isinstance(weight, torch.Tensor):
        raise Unsupported(
            "linear",
            f"x {list(x.shape)} on {x.device}, {kind(weight)} {list(weight.shape)}",
            {"kernel": "multiplies float weights only"},
            'load the model on the CPU, or pass backend="reference"',
        )
    if out_dtype in (None, x.dtype):
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight.to(x.dtype), bias)
    assert out_dtype is not None
    if x.dtype == weight.dtype and out_dtype == torch.float32:
        # Half-precision operands as they are: a wider copy of the weight would be made every time.
        y = torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out_dtype=out_dtype)
        y = y.reshape(*x.shape[:-1], len(weight))
    else:
        y = functional.linear(x.to(out_dtype), weight.to(out_dtype))
    return y if bias is None else y + bias.to(out_dtype)
