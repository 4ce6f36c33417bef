"""Rotary frequencies: inv_freq[i] = theta^(-2i/d), and how models stretch them for long contexts.

Linear scaling: arXiv 2306.15595; YaRN: arXiv 2309.00071; "llama3": the rope_scaling of the Llama
3.1 checkpoints.
"""

import math

import torch

from sparkwell.errors import BadInput

KINDS = ("default", "linear", "yarn", "llama3")


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
