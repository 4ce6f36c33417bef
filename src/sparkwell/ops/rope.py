"""Rotary position embedding: pair i turns by the angle position * inv_freq[i].

(a_i, b_i) <- (a_i cos - b_i sin, b_i cos + a_i sin);  pairs are (x_2i, x_2i+1) interleaved, or
(x_i, x_i+d/2) half-split.  RoPE: arXiv 2104.09864; linear scaling: arXiv 2306.15595; YaRN: arXiv
2309.00071; "llama3": the rope_scaling of the Llama 3.1 checkpoints.
"""

import math

import torch

from sparkwell.errors import BadInput
from sparkwell.ops.backend import choose

KINDS = ("default", "linear", "yarn", "llama3")

# ---------------------------------------------------------------- frequencies


def rope_frequencies(
    dim: int,
    *,
    theta: float,
    kind: str = "default",
    factor: float = 1.0,
    original_max_position: int | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float | None = None,
    mscale_all_dim: float = 0.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    attention_factor: float | None = None,
) -> tuple[torch.Tensor, float]:
    """inv_freq[i] = theta^(-2i/dim), rescaled as `kind` says, and the factor on cos and sin.

    dim: rotated dimensions, even.
    kind: "default"; "linear" (all divided by factor); "yarn" (fast dims kept, slow ones divided
        by factor, a ramp between); "llama3" (the same idea, the ramp in wavelengths).
    factor: how many times longer the context became.
    original_max_position: context length before the rescaling; needed by yarn and llama3.
    beta_fast, beta_slow: yarn: turns over the original context at the ramp's two ends.
    mscale, mscale_all_dim: yarn: the factor on cos and sin is M(mscale) / M(mscale_all_dim) with
        M(a) = 0.1 a ln(factor) + 1; without them 0.1 ln(factor) + 1.
    low_freq_factor, high_freq_factor: llama3: the ramp's ends, in turns over the original context.
    attention_factor: replaces yarn's factor on cos and sin.

    Returns (inv_freq [dim/2] fp32 on CPU, attention factor).  fp32 throughout, as every published
    implementation computes it: an fp64 "correction" would differ from all of them at long range.
    Raises BadInput for an unknown kind, an odd dim, or a missing or non-positive constant.
    """
    _check_frequencies(dim, theta, kind, factor, original_max_position)
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    inv_freq = 1.0 / theta**exponent
    if kind == "linear":
        return inv_freq / factor, 1.0
    if original_max_position is None or kind == "default":
        return inv_freq, 1.0
    if kind == "llama3":
        turns = original_max_position / (2 * math.pi / inv_freq)
        keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        attention_factor = 1.0
    else:
        keep = _yarn_keep(dim, theta, original_max_position, beta_fast, beta_slow)
        if attention_factor is None:
            attention_factor = _yarn_magnitude(factor, 1.0 if mscale is None else mscale)
            attention_factor /= _yarn_magnitude(factor, mscale_all_dim)
    keep = keep.clamp(0.0, 1.0)
    return inv_freq / factor * (1.0 - keep) + inv_freq * keep, attention_factor


def _yarn_keep(
    dim: int, theta: float, original_max_position: int, beta_fast: float, beta_slow: float
) -> torch.Tensor:
    """How much of each frequency stays unscaled, before clamping to [0, 1].  -> [dim/2]"""
    first, last = (
        dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (beta_fast, beta_slow)
    )
    low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    length = high - low or 0.001  # a ramp of no length is a step just after `low`
    return 1.0 - (torch.arange(dim // 2, dtype=torch.float32) - low) / length


def _yarn_magnitude(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _check_frequencies(
    dim: int, theta: float, kind: str, factor: float, original_max_position: int | None
) -> None:
    if kind not in KINDS:
        raise BadInput(f"rope_frequencies: kind is {kind!r}, want one of {', '.join(KINDS)}")
    if dim <= 0 or dim % 2:
        raise BadInput(f"rope_frequencies: dim is {dim}, want a positive even number")
    if not theta > 1.0 or not factor > 0.0:
        raise BadInput(
            f"rope_frequencies: theta is {theta} and factor {factor}, want theta > 1 and factor > 0"
        )
    if kind in ("yarn", "llama3") and not (original_max_position or 0) > 0:
        raise BadInput(
            f"rope_frequencies: original_max_position is {original_max_position}, and {kind} "
            "needs the context length before the rescaling; take it from the model's config"
        )


# ---------------------------------------------------------------- reference


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


# ---------------------------------------------------------------- launch


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
    choose("rope", x, backend)
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
    out = rope_reference(
        x, positions, inv_freq, attention_factor=attention_factor, interleaved=interleaved
    )
    return out.to(x.dtype)
