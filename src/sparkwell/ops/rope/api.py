"""Public rotary embedding: shapes checked, backend chosen, result in x's dtype."""

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose
from sparkwell.ops.rope.reference import rope_reference


def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    attention_factor: float = 1.0,
    interleaved: bool,
    backend: str = "auto",
) -> torch.Tensor:
    """(a_i, b_i) <- attention_factor * (a_i cos_i - b_i sin_i, b_i cos_i + a_i sin_i), all d dims.

    x: [T, h, d] or [T, d] fp32/bf16/fp16.
    positions: [T] int64 (or int32).
    inv_freq: [d/2] fp32, from `rope_frequencies`.
    attention_factor: on cos and sin (YaRN's).
    interleaved: pairs (x_2i, x_2i+1), and the output stays interleaved; else (x_i, x_i+d/2).

    Returns x's shape and dtype; angles and rotation are fp32, cast once (arXiv 2104.09864).
    Raises BadInput where the shapes do not fit or the positions are not integers.
    """
    served_by = choose("rope", x, backend)
    if x.ndim not in (2, 3) or not x.is_floating_point():
        raise BadInput(f"rope: x is {tuple(x.shape)} {x.dtype}, want [T, h, d] or [T, d] floats")
    if positions.shape != x.shape[:1] or positions.dtype not in (torch.int64, torch.int32):
        raise BadInput(
            f"rope: positions is {tuple(positions.shape)} {positions.dtype} for x "
            f"{tuple(x.shape)}, want ({x.shape[0]},) int64, one position per row"
        )
    if inv_freq.ndim != 1 or 2 * inv_freq.shape[0] != x.shape[-1]:
        raise BadInput(
            f"rope: inv_freq is {tuple(inv_freq.shape)} for x {tuple(x.shape)}, want d/2 values "
            "for d rotated dims; slice x to its rope dims first"
        )
    if served_by == "reference":
        out = rope_reference(
            x, positions, inv_freq, attention_factor=attention_factor, interleaved=interleaved
        )
        return out.to(x.dtype)
    from sparkwell.ops.rope.kernel import rotate

    return rotate(x, positions, inv_freq, attention_factor, interleaved)
