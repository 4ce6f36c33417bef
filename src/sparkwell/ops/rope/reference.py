"""Rotary position embedding in fp32 torch: pair i turns by the angle position * inv_freq[i].

(a_i, b_i) <- (a_i cos - b_i sin, b_i cos + a_i sin);  pairs are (x_2i, x_2i+1) interleaved, or
(x_i, x_i+d/2) half-split.  RoPE: arXiv 2104.09864.
"""

import torch


def rope_reference(
    x: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    attention_factor: float = 1.0,
    interleaved: bool,
) -> torch.Tensor:
    """The meaning of `rope`, in fp32.  [T, h, d] or [T, d], [T], [d/2] -> x's shape"""
    x = x.float()
    # float32(position) * inv_freq in fp32, rounding error included: what models are trained with
    angles = positions.float()[:, None] * inv_freq.float()  # [T, d/2]
    cos, sin = angles.cos() * attention_factor, angles.sin() * attention_factor
    if x.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]  # [T, 1, d/2]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
