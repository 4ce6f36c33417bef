"""SwiGLU in fp32 torch:  y = silu(gate) * up,  silu(g) = g * sigmoid(g)      (arXiv 2002.05202)."""

import torch


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The meaning of `swiglu`, in fp32.  [..., 2*I] -> [..., I]"""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
