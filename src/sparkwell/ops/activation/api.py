"""Public activation: shapes checked, backend chosen, result in the input's dtype."""

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.activation.reference import swiglu_reference
from sparkwell.ops.backend import choose


def swiglu(gate_up: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """y = silu(gate_up[..., :I]) * gate_up[..., I:]  (arXiv 2002.05202).

    gate_up: [..., 2*I] fp32/bf16/fp16; the gate half first.

    Returns [..., I] in gate_up's dtype; the product is formed in fp32 and cast once.
    Raises BadInput for an odd or missing last dimension.
    """
    served_by = choose("swiglu", gate_up, backend)
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2 or not gate_up.is_floating_point():
        raise BadInput(
            f"swiglu: gate_up is {tuple(gate_up.shape)} {gate_up.dtype}, "
            "want [..., 2*I] of a float type: the gate half, then the up half"
        )
    if served_by == "reference":
        return swiglu_reference(gate_up).to(gate_up.dtype)
    from sparkwell.ops.activation.kernel import swiglu_rows

    return swiglu_rows(gate_up)
