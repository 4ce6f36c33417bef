"""SwiGLU in fp32 torch:  y = silu(gate) * up,  silu(g) = g * sigmoid(g)      (arXiv 2002.05202)."""

import torch

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.ops.quantize.reference import quantize_activations_reference


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The meaning of `swiglu`, in fp32.  [..., 2*I] -> [..., I]"""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def swiglu_quantized_reference(
    gate_up: torch.Tensor,
    activations: str,
    *,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
) -> Fp8Rows | Fp8Block | Nvfp4:
    """The meaning of `swiglu_quantized`: the product is rounded to gate_up's dtype first."""
    y = swiglu_reference(gate_up).to(gate_up.dtype)
    return quantize_activations_reference(y, activations, input_scale=input_scale, group=group)
