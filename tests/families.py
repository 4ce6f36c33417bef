"""Tiny random checkpoints of every family, as Transformers writes them: its names, its bytes.

Kernel-shaped where that matters: 512-wide latents, 32 or 64 index heads, contexts longer than
index_topk.  Norms and biases are randomised, since 0 and 1 would hide mistakes in handling them.
"""

import atexit
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 512
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = {
    "moe_intermediate_size": 128,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
MLA: dict[str, Any] = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
GLM_HEADS: dict[str, Any] = {"qk_nope_head_dim": 192, "v_head_dim": 256, "q_lora_rank": 256}
DEEPSEEK_HEADS: dict[str, Any] = {"qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 256}
GROUPS: dict[str, Any] = {"n_routed_experts": 32, "n_group": 8, "topk_group": 4}
NO_GROUPS: dict[str, Any] = {"n_routed_experts": 16, "n_group": 1, "topk_group": 1}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
YARN_V2: dict[str, Any] = {"mscale": 0.707, "mscale_all_dim": 0.707}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
GQA: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}


def plain_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


@dataclass(frozen=True)
class Family:
    """One architecture as Transformers names it, and the models that have it."""

    name: str
    models: str
    config: str  # Transformers' configuration class
    values: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def sparse(self) -> bool:
        return "index_topk" in self.values


FAMILIES = (
    Family(
        "deepseek-v2",
        "DeepSeek-V2-Lite",
        "DeepseekV2Config",
        COMMON | MLA | MOE | NO_GROUPS | DEEPSEEK_HEADS
        | {"num_hidden_layers": 4, "q_lora_rank": None, "first_k_dense_replace": 1}
        | {"n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
        | {"topk_method": "greedy", "rope_parameters": YARN | YARN_V2},
    ),
    Family(
        "deepseek-v3",
        "DeepSeek-V3, R1, V3.1",
        "DeepseekV3Config",
        COMMON | MLA | MOE | GROUPS | DEEPSEEK_HEADS
        | {"num_hidden_layers": 4, "first_k_dense_replace": 1, "rope_parameters": YARN},
    ),
    Family(
        "deepseek-v3.2",
        "DeepSeek-V3.2",
        "DeepseekV32Config",
        COMMON | MLA | MOE | GROUPS | DEEPSEEK_HEADS
        | {"num_hidden_layers": 4, "first_k_dense_replace": 1, "rope_parameters": YARN}
        | {"index_topk": 128, "index_head_dim": 128, "index_n_heads": 64},
    ),
    Family(
        "glm-4.7-flash",
        "GLM-4.7-Flash",
        "Glm4MoeLiteConfig",
        COMMON | MLA | MOE | NO_GROUPS | GLM_HEADS
        | {"num_hidden_layers": 4, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5}
        | {"mlp_layer_types": ["dense"] + ["sparse"] * 3, "rope_parameters": plain_rope(1e6)},
    ),
    Family(
        "glm-5",
        "GLM-5, GLM-5.1",
        "GlmMoeDsaConfig",
        COMMON | MLA | MOE | NO_GROUPS | GLM_HEADS
        | {"num_hidden_layers": 4, "first_k_dense_replace": 1, "rms_norm_eps": 1e-5}
        | {"index_topk": 128, "index_head_dim": 128, "index_n_heads": 32}
        | {"mlp_layer_types": ["dense"] + ["sparse"] * 3, "rope_parameters": plain_rope(1e6)},
    ),
    Family(
        "glm-5.2",
        "GLM-5.2",
        "GlmMoeDsaConfig",
        COMMON | MLA | MOE | NO_GROUPS | GLM_HEADS
        | {"num_hidden_layers": 8, "first_k_dense_replace": 3, "rms_norm_eps": 1e-5}
        | {"index_topk": 128, "index_head_dim": 128, "index_n_heads": 32}
        | {"index_topk_freq": 4, "index_skip_topk_offset": 3, "rope_parameters": plain_rope(8e6)},
    ),
    Family(
        "llama",
        "Llama 3.x",
        "LlamaConfig",
        COMMON | GQA | {"rms_norm_eps": 1e-5, "rope_parameters": LLAMA3},
    ),
    Family(
        "qwen2",
        "Qwen2, Qwen2.5",
        "Qwen2Config",
        COMMON | GQA | {"rope_parameters": plain_rope(1e6), "tie_word_embeddings": True},
    ),
    Family(
        "qwen2-window",
        "Qwen2 with a sliding window",
        "Qwen2Config",
        COMMON | GQA
        | {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 2}
        | {"rope_parameters": plain_rope(1e6)},
    ),
    Family(
        "qwen3",
        "Qwen3",
        "Qwen3Config",
        COMMON | GQA | {"head_dim": 64, "rope_parameters": plain_rope(1e6)},
    ),
    Family(
        "qwen3-moe",
        "Qwen3-MoE",
        "Qwen3MoeConfig",
        COMMON | GQA
        | {"head_dim": 64, "moe_intermediate_size": 128, "num_experts": 16}
        | {"num_experts_per_tok": 4, "norm_topk_prob": True, "rope_parameters": plain_rope(1e6)},
    ),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


def oracle_model(family: Family) -> torch.nn.Module:
    """Transformers' model with random weights, fp32, eager attention."""
    config = getattr(transformers, family.config)(**family.values)
    config._attn_implementation = "eager"
    torch.manual_seed(family.seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, buffer in model.named_buffers():
        if "e_score" in name:
            buffer.normal_(0, 0.05)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.add_(0.1 * torch.randn_like(weight))
            if name.endswith("bias"):
                weight.normal_(0, 0.05)
    return model


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: 2 special tokens, then one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|bos|>": 0, "<|eos|>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def checkpoint(name: str) -> Path:
    """A folder as `save_pretrained` writes it, with a tokenizer; made once in a test process.

    It goes with the process: the folders of one run of all tests take two gigabytes.
    """
    folder = Path(mkdtemp(prefix=f"sparkwell-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    oracle_model(BY_NAME[name]).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), bos_token="<|bos|>", eos_token="<|eos|>"
    )
    fast.save_pretrained(folder)
    return folder
