"""The shapes and constants of a model, as frozen data: what a config.json means."""

import math
from dataclasses import dataclass
from typing import Any, Literal

RopeKind = Literal["default", "linear", "yarn", "llama3"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; the arguments of `ops.rope.rope_frequencies`, in its order.

    kind: "default", "linear" (arXiv 2306.15595), "yarn" (arXiv 2309.00071) or "llama3".
    factor: how many times longer the context became.
    original_max_position: context length before that; None where the kind has no use for it.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class MoeConfig:
    """Mixture of experts.

    width, shared_width: intermediate sizes; shared_width is n_shared_experts * width, 0 if none.
    sparse_layers: per layer, whether its feed-forward block is a mixture.
    group_score: how a group of experts is ranked: its largest score, or the sum of its two largest.
    normalize, scale: weights are divided by their sum, then multiplied by scale.
    """

    num_experts: int
    topk: int
    width: int
    shared_width: int
    sparse_layers: tuple[bool, ...]
    scoring: Literal["sigmoid", "softmax"]
    n_group: int
    topk_group: int
    group_score: Literal["top2", "max"]
    normalize: bool
    scale: float


@dataclass(frozen=True)
class IndexerConfig:
    """DSA's lightning indexer (DeepSeek-V3.2).

    interleaved: rotary pairs are (2i, 2i+1); otherwise (i, i + d/2).
    full_layers: per layer, whether it has an indexer; another uses the last such layer's result.
    """

    num_heads: int
    head_dim: int
    topk: int
    interleaved: bool
    full_layers: tuple[bool, ...]


@dataclass(frozen=True)
class DeepseekConfig:
    """Multi-head latent attention: DeepSeek-V2, V3, V3.2, GLM-4.7-Flash, GLM-5.

    q_lora_rank: None where queries are projected directly (V2-Lite).
    latent_norm_eps: epsilon of q_a_layernorm and kv_a_layernorm.
    quantization: quantization_config as it stands in config.json; `schemes.scheme` reads it.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    latent_norm_eps: float
    rope: RopeConfig
    moe: MoeConfig | None
    indexer: IndexerConfig | None
    tie_word_embeddings: bool
    max_position: int
    num_mtp_layers: int
    quantization: dict[str, Any] | None

    @property
    def softmax_scale(self) -> float:
        """(d_nope + d_rope)^-0.5 * m^2, with m = 0.1 * mscale_all_dim * ln(factor) + 1.

        m is 1 for unscaled rope, whose factor is 1.  Source: DeepSeek-V2's modeling code; arXiv
        2309.00071, 3.4.
        """
        m = 0.1 * self.rope.mscale_all_dim * math.log(self.rope.factor) + 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * m * m


@dataclass(frozen=True)
class LlamaConfig:
    """Grouped-query attention: Llama, Qwen2, Qwen3, Qwen3-MoE.

    qk_norm: queries and keys are normalized per head before rope (Qwen3).
    windows: per layer, how many of the latest keys a query sees, its own included; None: all.
    quantization: quantization_config as it stands in config.json; `schemes.scheme` reads it.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    qk_norm: bool
    moe: MoeConfig | None
    windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position: int
    quantization: dict[str, Any] | None
