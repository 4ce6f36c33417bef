"""Public quantizer of activations: operands checked, backend chosen."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import GROUP, Nvfp4
from sparkwell.ops.backend import choose
from sparkwell.ops.quantize.reference import quantize_activations_reference

KINDS = ("fp8-token", "fp8-tensor", "fp8-group", "nvfp4")


def quantize_activations(
    x: torch.Tensor,
    activations: str,
    *,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
    backend: str = "auto",
) -> Fp8Rows | Fp8Block | Nvfp4:
    """code = round(x / scale), scale = max(amax, floor) / largest code.

    x: [m, k] fp32/bf16/fp16.
    activations: "fp8-token": one scale a row; "fp8-tensor": the same, or `input_scale`;
        "fp8-group": one each `group` values of a row; "nvfp4": an e4m3 scale each 16 values, times
        a factor of the row, or `input_scale`.
    input_scale: one fp32, the checkpoint's own; larger values saturate.
    group: values of a scale, for "fp8-group".

    Returns Fp8Rows, Fp8Block with blocks of 1 x group, or Nvfp4, whose rows are those of x; codes
    and scales are those of the references in `formats`, bit for bit.
    Raises BadInput for another kind or shape, a k that ends inside a block of 16 for "nvfp4".
    """
    served_by = choose("quantize_activations", x, backend)
    input_scale = check_quantizer("quantize_activations", x, activations, input_scale, group)
    if served_by == "reference":
        return quantize_activations_reference(x, activations, input_scale=input_scale, group=group)
    from sparkwell.ops.quantize.kernel import quantize_rows

    return quantize_rows(x, activations, input_scale, group)


def check_quantizer(
    op: str, x: torch.Tensor, activations: str, input_scale: torch.Tensor | None, group: int
) -> torch.Tensor | None:
    """The given scale, where the kind of activations has one.

    Raises BadInput where `x` [m, k], the kind, or the scale does not fit.
    """
    if activations not in KINDS:
        names = ", ".join(KINDS)
        raise BadInput(f"{op}: activations are {activations!r}, want one of {names}")
    if x.ndim != 2 or not x.is_floating_point():
        raise BadInput(
            f"{op}: x is {x.dtype} {list(x.shape)}, want float [m, k]; flatten other dimensions "
            "first"
        )
    if activations == "fp8-group" and group < 1:
        raise BadInput(f"{op}: groups of {group}, want at least 1")
    if activations == "nvfp4" and x.shape[1] % GROUP:
        raise BadInput(
            f"{op}: k is {x.shape[1]}, want a multiple of {GROUP} for NVFP4; pad x and the weight "
            "with zeros"
        )
    if input_scale is None or activations in ("fp8-token", "fp8-group"):
        return None
    if input_scale.numel() != 1 or input_scale.dtype != torch.float32:
        raise BadInput(
            f"{op}: input_scale is {input_scale.dtype} {list(input_scale.shape)}, want one fp32"
        )
    return input_scale
