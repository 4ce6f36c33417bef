"""SwiGLU:  y = silu(gate) * up,  silu(g) = g * sigmoid(g)      (arXiv 2002.05202)."""

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose

# ---------------------------------------------------------------- reference


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The meaning of `swiglu`, in fp32.  [..., 2*I] -> [..., I]"""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


# ---------------------------------------------------------------- launch


def swiglu(gate_up: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """y = silu(gate_up[..., :I]) * gate_up[..., I:]  (arXiv 2002.05202).

    gate_up: [..., 2*I] fp32/bf16/fp16; the gate half first.

    Returns [..., I] in gate_up's dtype; the product is formed in fp32 and cast once.
    Raises BadInput for an odd or missing last dimension.
    """
    choose("swiglu", gate_up, backend)
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2 or not gate_up.is_floating_point():
        raise BadInput(
            f"swiglu: gate_up is {tuple(gate_up.shape)} {gate_up.dtype}, "
            "want [..., 2*I] of a float type: the gate half, then the up half"
        )
    return swiglu_reference(gate_up).to(gate_up.dtype)
