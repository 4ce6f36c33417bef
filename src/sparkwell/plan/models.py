"""Published models by name: config.json's keys that matter, so that planning works offline.

Values: the models' own config.json files.  Aliases share a config.
"""

from typing import Any

from sparkwell.errors import BadInput

Config = dict[str, Any]

_YARN: Config = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
_MLA: Config = {"hidden_act": "silu", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
_DEEPSEEK: Config = _MLA | {
    "qk_nope_head_dim": 128, "v_head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "rope_scaling": _YARN, "max_position_embeddings": 163840, "tie_word_embeddings": False,
}  # fmt: skip
_V3: Config = _DEEPSEEK | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "n_group": 8,
    "topk_group": 4, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
}  # fmt: skip
_GLM: Config = _MLA | {
    "vocab_size": 154880, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "qk_nope_head_dim": 192,
    "v_head_dim": 256, "max_position_embeddings": 202752, "tie_word_embeddings": False,
    "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "n_shared_experts": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip
_GLM_5: Config = _GLM | {
    "model_type": "glm_moe_dsa", "hidden_size": 6144, "num_hidden_layers": 78,
    "num_attention_heads": 64, "q_lora_rank": 2048, "intermediate_size": 12288,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "index_n_heads": 32,
    "index_head_dim": 128, "index_topk": 2048, "indexer_rope_interleave": True,
}  # fmt: skip
_LLAMA3: Config = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def _llama(hidden: int, layers: int, heads: int, ffn: int) -> Config:
    return {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
        "intermediate_size": ffn, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": _LLAMA3, "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _qwen(hidden: int, layers: int, heads: int, kv: int, ffn: int, **more: Any) -> Config:
    return {
        "model_type": "qwen3", "hidden_act": "silu", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": 128, "intermediate_size": ffn, "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": False,
        **more,
    }  # fmt: skip


def _qwen_moe(hidden: int, layers: int, heads: int, ffn: int, width: int) -> Config:
    moe = {
        "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": width, "norm_topk_prob": True, "decoder_sparse_step": 1,
    }  # fmt: skip
    return _qwen(hidden, layers, heads, 4, ffn, **moe)


MODELS: dict[str, Config] = {
    "deepseek-v2-lite": _DEEPSEEK | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
        "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "scoring_func": "softmax", "topk_method": "greedy",
        "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek-v3": _V3,
    "deepseek-v3.2": _V3 | {
        "model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128,
        "index_topk": 2048,
    },
    "glm-4.7-flash": _GLM | {
        "model_type": "glm4_moe_lite", "hidden_size": 2048, "num_hidden_layers": 47,
        "num_attention_heads": 20, "q_lora_rank": 768, "intermediate_size": 10240,
        "moe_intermediate_size": 1536, "n_routed_experts": 64, "num_experts_per_tok": 4,
        "first_k_dense_replace": 1, "routed_scaling_factor": 1.8,
    },
    "glm-5": _GLM_5,
    "glm-5.2": _GLM_5 | {
        "rope_theta": 8e6, "max_position_embeddings": 1048576, "index_topk_freq": 4,
        "index_skip_topk_offset": 3,
    },
    "llama-3.1-8b": _llama(4096, 32, 32, 14336),
    "llama-3.1-70b": _llama(8192, 80, 64, 28672),
    "llama-3.1-405b": _llama(16384, 126, 128, 53248),
    "qwen3-0.6b": _qwen(1024, 28, 16, 8, 3072, tie_word_embeddings=True),
    "qwen3-1.7b": _qwen(2048, 28, 16, 8, 6144, tie_word_embeddings=True),
    "qwen3-8b": _qwen(4096, 36, 32, 8, 12288),
    "qwen3-32b": _qwen(5120, 64, 64, 8, 25600),
    "qwen3-30b-a3b": _qwen_moe(2048, 48, 32, 6144, 768),
    "qwen3-235b-a22b": _qwen_moe(4096, 94, 64, 12288, 1536),
    # Known by name; their mathematics is not implemented, and reading these says so.
    "glm-5.3-flash": {"model_type": "glm5_next"},
    "deepseek-v4-flash": {"model_type": "deepseek_v4"},
}  # fmt: skip
ALIASES = {
    "deepseek-r1": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-v3.2-exp": "deepseek-v3.2",
    "glm-5.1": "glm-5",
}


def builtin(name: str) -> tuple[str, Config] | None:
    """(name, config) of a published model, by its name or an alias in any case, or None."""
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    plain = plain.removeprefix("meta-").removesuffix("-instruct")
    plain = ALIASES.get(plain, plain)
    return (plain, MODELS[plain]) if plain in MODELS else None


def known() -> str:
    """All names, for errors and help."""
    return ", ".join([*MODELS, *ALIASES])


def need_builtin(name: str) -> tuple[str, Config]:
    """`builtin`.  Raises BadInput with all names for another."""
    if (found := builtin(name)) is None:
        raise BadInput(f"model {name!r} is not known; want one of {known()}")
    return found
