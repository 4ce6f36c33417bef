"""Public activation: shapes checked, backend chosen, result in the input's dtype."""

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.activation.reference import swiglu_quantized_reference, swiglu_reference
from sparkwell.ops.backend import choose
from sparkwell.ops.quantize.api import check_quantizer


def swiglu(gate_up: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """y = silu(gate_up[..., :I]) * gate_up[..., I:]  (arXiv 2002.05202).

    gate_up: [..., 2*I] fp32/bf16/fp16; the gate half first.

    Returns [..., I] in gate_up's dtype; the product is formed in fp32 and cast once.
    Raises BadInput for an odd or missing last dimension.
    """
    served_by = choose("swiglu", gate_up, backend)
    _check("swiglu", gate_up)
    if served_by == "reference":
        return swiglu_reference(gate_up).to(gate_up.dtype)
    from sparkwell.ops.activation.kernel import swiglu_rows

    return swiglu_rows(gate_up)


def swiglu_quantized(
    gate_up: torch.Tensor,
    activations: str,
    *,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
    backend: str = "auto",
) -> Fp8Rows | Fp8Block | Nvfp4:
    """quantize_activations(swiglu(gate_up)): what a quantized down projection reads, in one pass.

    gate_up: [m, 2*I] fp32/bf16/fp16; the gate half first.
    activations, input_scale, group: as `quantize_activations` has them.

    Returns m rows of I; the product is rounded to gate_up's dtype before it is quantized.
    Raises BadInput for an odd last dimension, or kinds that do not fit.
    """
    op = "swiglu_quantized"
    served_by = choose(op, gate_up, backend)
    _check(op, gate_up)
    half = gate_up[..., : gate_up.shape[-1] // 2]
    input_scale = check_quantizer(op, half, activations, input_scale, group)
    if served_by == "reference":
        return swiglu_quantized_reference(
            gate_up, activations, input_scale=input_scale, group=group
        )
    from sparkwell.ops.activation.kernel import swiglu_to_codes

    return swiglu_to_codes(gate_up, activations, input_scale, group)


def _check(op: str, gate_up: torch.Tensor) -> None:
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2 or not gate_up.is_floating_point():
        raise BadInput(
            f"{op}: gate_up is {tuple(gate_up.shape)} {gate_up.dtype}, "
            "want [..., 2*I] of a float type: the gate half, then the up half"
        )
