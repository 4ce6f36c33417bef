"""Linear layer: the weight's format decides the kernel; on CPU tensors the reference runs.

On a GPU a float weight is multiplied by torch's own matrix product."""

import math

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.quantized import Quantized
from sparkwell.formats.weights import QuantizedTensor, Weight
from sparkwell.ops.backend import choose
from sparkwell.ops.device import device_of
from sparkwell.ops.linear.arithmetic import (
    Decision,
    Quantizer,
    activations_of,
    check_arithmetic,
    check_pair,
    decide,
    memory_bound_rows,
    quantizer,
)
from sparkwell.ops.linear.reference import linear_reference
from sparkwell.ops.quantize import quantize_activations


def linear(
    x: torch.Tensor | QuantizedTensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    arithmetic: str = "auto",
    backend: str = "auto",
) -> torch.Tensor:
    """y = x W^T + bias.

    x: [..., K] fp32/bf16/fp16; or quantized, [m, K], as `quantize_activations` makes it.
    weight: [N, K], a float tensor or a quantized one.  Nothing launched shortly before may write a
        quantized one: kernels for Hopper read it while those before them still run.
    bias: [N] or None.
    out_dtype: of the result; None: x's, bf16 of a quantized one.  fp32 is what logits and scores of
        half-precision x need.
    arithmetic: "w4a16", "w8a16": x is left as it is; "w8a8", "w4a8", "w4a4": x is quantized to FP8
        or NVFP4 first; "auto": the former on CPU tensors, elsewhere what `linear_decision` says.

    Returns [..., N]; products and sums are fp32, cast once.  On a GPU:
    as it is: weights and products are exact; for more than some hundred rows (`few_rows`), or fp32
        x, the weight is rounded to x's type first.  NaN codes of FP8 and of scales read as 480,
        E8M0's as infinity.
    "w8a8", "w4a4": the products of codes are exact; sums of 128 columns as the FP8 units add.
    "w4a8": NVFP4's e2m1 * scale is rounded to e4m3, a relative error of at most 2^-4 a weight;
        MXFP4's is exact where a row's scales of 128 or 256 columns differ by at most 2^14.
    Raises BadInput where shapes or formats do not fit, Unsupported where the arithmetic asked for
    has no kernel for the weight on the device.
    """
    operand = x if isinstance(x, torch.Tensor) else next(iter(x.tensors().values()))
    served_by = choose("linear", operand, backend)
    _check(x, weight, bias)
    check_arithmetic(weight, arithmetic)
    if out_dtype is None:
        out_dtype = torch.bfloat16 if isinstance(x, Quantized) else x.dtype
    if served_by == "reference":
        return linear_reference(x, weight, bias, arithmetic=arithmetic).to(out_dtype)
    from sparkwell.ops.linear.both import multiply_quantized
    from sparkwell.ops.linear.run import multiply_as_is, multiply_plain

    if isinstance(x, Quantized):
        assert isinstance(weight, Quantized)
        return multiply_quantized(x, weight, bias, out_dtype)
    if isinstance(weight, torch.Tensor):
        return multiply_plain(x, weight, bias, out_dtype)
    rows = math.prod(x.shape[:-1])
    how = quantizer(decide(rows, weight, device_of(x.device), arithmetic).activations, weight)
    if how is None:
        return multiply_as_is(x, weight, bias, out_dtype)
    flat = x.reshape(rows, x.shape[-1])
    quantized = quantize_activations(flat, **how._asdict(), backend="kernel")
    y = multiply_quantized(quantized, weight, bias, out_dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def linear_decision(x: torch.Tensor, weight: Weight, arithmetic: str = "auto") -> Decision:
    """In which arithmetic `linear` multiplies on x's device, and why.

    x: [..., K]; its values are not read.
    Raises as `linear` does.
    """
    return decide(math.prod(x.shape[:-1]), weight, device_of(x.device), arithmetic)


def linear_quantizer(
    rows: int, weight: Weight, device: torch.device, arithmetic: str = "auto"
) -> Quantizer | None:
    """How `linear` quantizes so many rows of x on a device; None: it leaves them as they are.

    What makes x can do that in its own pass (`rms_norm_quantized`, `swiglu_quantized`).
    Raises as `linear` does.
    """
    if isinstance(weight, torch.Tensor):
        return None
    if device.type == "cpu":
        check_arithmetic(weight, arithmetic)
        return quantizer(activations_of(arithmetic, weight), weight)
    return quantizer(decide(rows, weight, device_of(device), arithmetic).activations, weight)


def linear_in_words(weight: Weight, device: torch.device) -> str:
    """What `linear` does with a weight on a device, for logs: "w4a16 up to 50 rows, then w4a4"."""
    here = device_of(device)
    few, many = decide(1, weight, here), decide(1 << 30, weight, here)
    if few.arithmetic == many.arithmetic:
        return f"{few.arithmetic} ({few.why})"
    assert isinstance(weight, Quantized)
    return f"{few.arithmetic} up to {memory_bound_rows(weight, here)} rows, then {many.arithmetic}"


def _check(x: torch.Tensor | QuantizedTensor, weight: Weight, bias: torch.Tensor | None) -> None:
    """Raises BadInput where the operands do not fit together."""
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
    if isinstance(x, Quantized):
        check_pair(x, weight)
