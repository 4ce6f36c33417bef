"""config.json of published models becomes the right description, in every spelling."""

from dataclasses import replace
from typing import Any

import pytest
import transformers

from sparkwell.checkpoints.config import (
    FAMILIES,
    DeepseekConfig,
    LlamaConfig,
    MoeConfig,
    RopeConfig,
    parse_config,
)
from sparkwell.errors import BadCheckpoint

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
MLA: dict[str, Any] = {
    "hidden_act": "silu",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}
V2_LITE: dict[str, Any] = MLA | {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "rope_theta": 10000,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "max_position_embeddings": 163840,
}
V3: dict[str, Any] = MLA | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "rope_theta": 10000,
    "rope_scaling": YARN,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
V32 = V3 | {
    "model_type": "deepseek_v32",
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
FLASH: dict[str, Any] = MLA | {
    "model_type": "glm4_moe_lite",
    "vocab_size": 154880,
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "max_position_embeddings": 202752,
}
GLM5: dict[str, Any] = FLASH | {
    "model_type": "glm_moe_dsa",
    "hidden_size": 6144,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "head_dim": 64,
    "q_lora_rank": 2048,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 2048,
    "indexer_rope_interleave": True,
}
GLM52 = GLM5 | {
    "head_dim": 192,
    "rope_theta": 8000000,
    "max_position_embeddings": 1048576,
    "index_topk_freq": 4,
    "index_skip_topk_offset": 3,
    "index_topk_pattern": None,
    "index_share_for_mtp_iteration": True,
    "moe_router_dtype": "float32",
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75,
}
LLAMA31: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 28,
    "attention_bias": False,
}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_window_layers": 48,
    "tie_word_embeddings": False,
}
QWEN2 = {k: v for k, v in QWEN3.items() if k not in ("head_dim", "attention_bias")} | {
    "model_type": "qwen2",
    "rope_scaling": {"type": "linear", "factor": 4.0},
}
PUBLISHED = [V2_LITE, V3, V32, FLASH, GLM5, GLM52, LLAMA31, QWEN2, QWEN3, QWEN3_MOE]


def deepseek(config: dict[str, Any], **changes: Any) -> DeepseekConfig:
    parsed = parse_config(config | changes)
    assert isinstance(parsed, DeepseekConfig)
    return parsed


def llama(config: dict[str, Any], **changes: Any) -> LlamaConfig:
    parsed = parse_config(config | changes)
    assert isinstance(parsed, LlamaConfig)
    return parsed


def sparse(first: int, layers: int) -> tuple[bool, ...]:
    return (False,) * first + (True,) * (layers - first)


# ---------------------------------------------------------------- published models


def test_every_family_is_covered_by_a_published_model() -> None:
    assert {c["model_type"] for c in PUBLISHED} == set(FAMILIES)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (V2_LITE, (2048, 27, 16, None, 512, 128, 64, 128, 10944, 1e-6, 1e-6, 102400, 163840, 0)),
        (V3, (7168, 61, 128, 1536, 512, 128, 64, 128, 18432, 1e-6, 1e-6, 129280, 163840, 1)),
        (FLASH, (2048, 47, 20, 768, 512, 192, 64, 256, 10240, 1e-5, 1e-5, 154880, 202752, 1)),
        (GLM5, (6144, 78, 64, 2048, 512, 192, 64, 256, 12288, 1e-5, 1e-5, 154880, 202752, 1)),
        (GLM52, (6144, 78, 64, 2048, 512, 192, 64, 256, 12288, 1e-5, 1e-5, 154880, 1048576, 1)),
    ],
    ids=["V2-Lite", "V3", "GLM-4.7-Flash", "GLM-5", "GLM-5.2"],
)
def test_mla_shapes(config: dict[str, Any], want: tuple[Any, ...]) -> None:
    c = deepseek(config)
    got = (
        (c.hidden_size, c.num_layers, c.num_heads, c.q_lora_rank, c.kv_lora_rank)
        + (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.intermediate_size)
        + (c.rms_norm_eps, c.latent_norm_eps, c.vocab_size, c.max_position, c.num_mtp_layers)
    )
    assert got == want
    assert c.model_type == config["model_type"] and not c.tie_word_embeddings


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (V2_LITE, MoeConfig(64, 6, 1408, 2816, sparse(1, 27), "softmax", 1, 1, "max", False, 1.0)),
        (V3, MoeConfig(256, 8, 2048, 2048, sparse(3, 61), "sigmoid", 8, 4, "top2", True, 2.5)),
        (V32, MoeConfig(256, 8, 2048, 2048, sparse(3, 61), "sigmoid", 8, 4, "top2", True, 2.5)),
        (FLASH, MoeConfig(64, 4, 1536, 1536, sparse(1, 47), "sigmoid", 1, 1, "top2", True, 1.8)),
        (GLM52, MoeConfig(256, 8, 2048, 2048, sparse(3, 78), "sigmoid", 1, 1, "top2", True, 2.5)),
        (QWEN3_MOE, MoeConfig(128, 8, 768, 0, sparse(0, 48), "softmax", 1, 1, "max", True, 1.0)),
        (QWEN3, None),
    ],
    ids=["V2-Lite", "V3", "V3.2", "GLM-4.7-Flash", "GLM-5.2", "Qwen3-30B-A3B", "Qwen3-0.6B"],
)  # fmt: skip
def test_mixtures_of_experts(config: dict[str, Any], want: MoeConfig | None) -> None:
    assert parse_config(config).moe == want


@pytest.mark.parametrize(
    ("config", "scale"),
    [(V3, 0.1352337788608801), (V2_LITE, 0.1147213867929261), (GLM5, 0.0625), (FLASH, 0.0625)],
    ids=["V3", "V2-Lite", "GLM-5", "GLM-4.7-Flash"],
)
def test_softmax_scale(config: dict[str, Any], scale: float) -> None:
    assert deepseek(config).softmax_scale == pytest.approx(scale, rel=1e-15)


def test_softmax_scale_of_rope_that_is_not_longer() -> None:
    assert deepseek(V3, rope_scaling=YARN | {"factor": 1.0}).softmax_scale == 192**-0.5
    assert deepseek(V3, rope_scaling=None).softmax_scale == 192**-0.5
    without = {k: v for k, v in YARN.items() if not k.startswith("mscale")}
    assert deepseek(V3, rope_scaling=without).softmax_scale == 192**-0.5


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (V2_LITE, RopeConfig(1e4, "yarn", 40.0, 4096, 32.0, 1.0, 0.707, 0.707)),
        (V3, RopeConfig(1e4, "yarn", 40.0, 4096, 32.0, 1.0, 1.0, 1.0)),
        (GLM5, RopeConfig(1e6)),
        (GLM52, RopeConfig(8e6)),
        (QWEN2, RopeConfig(1e6, "linear", 4.0)),
        (LLAMA31, RopeConfig(5e5, "llama3", 8.0, 8192)),
    ],
    ids=["V2-Lite", "V3", "GLM-5", "GLM-5.2", "linear", "Llama-3.1"],
)
def test_rope(config: dict[str, Any], want: RopeConfig) -> None:
    assert parse_config(config).rope == want


def test_indexers() -> None:
    v32, glm5, glm52 = (deepseek(c).indexer for c in (V32, GLM5, GLM52))
    assert v32 is not None and glm5 is not None and glm52 is not None
    assert (v32.num_heads, v32.head_dim, v32.topk) == (64, 128, 2048)
    assert (glm5.num_heads, glm5.head_dim, glm5.topk) == (32, 128, 2048)
    assert v32.full_layers == (True,) * 61 and glm5.full_layers == (True,) * 78
    full = [i for i, is_full in enumerate(glm52.full_layers) if is_full]
    assert full == [0, 1, 2, *range(6, 78, 4)] and len(full) == 21
    assert not v32.interleaved and glm5.interleaved and glm52.interleaved
    assert deepseek(V3).indexer is None and deepseek(FLASH).indexer is None


def test_grouped_query_shapes() -> None:
    c = llama(LLAMA31)
    assert (c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads) == (4096, 32, 32, 8)
    assert (c.head_dim, c.intermediate_size, c.rms_norm_eps) == (128, 14336, 1e-5)
    assert (c.qkv_bias, c.qk_norm, c.tie_word_embeddings) == (False, False, False)
    assert (c.vocab_size, c.max_position, c.windows) == (128256, 131072, (None,) * 32)
    q = llama(QWEN3)
    assert (q.num_heads, q.num_kv_heads, q.head_dim, q.hidden_size) == (16, 8, 128, 1024)
    assert (q.qkv_bias, q.qk_norm, q.tie_word_embeddings) == (False, True, True)
    assert (llama(QWEN2).qkv_bias, llama(QWEN2).qk_norm) == (True, False)
    assert (llama(QWEN3_MOE).qkv_bias, llama(QWEN3_MOE).qk_norm) == (False, True)


# ---------------------------------------------------------------- other spellings


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda c: c["model_type"])
def test_new_rope_spelling_means_the_same(config: dict[str, Any]) -> None:
    scaling = dict(config["rope_scaling"] or {"rope_type": "default"})
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
    scaling["rope_theta"] = float(config["rope_theta"])
    new = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    assert parse_config(new | {"rope_parameters": scaling}) == parse_config(config)
    both = config | {"rope_parameters": scaling}
    assert parse_config(both) == parse_config(config)


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda c: c["model_type"])
def test_what_transformers_saves_means_the_same(config: dict[str, Any]) -> None:
    source = {k: v for k, v in config.items() if v is not None or k == "q_lora_rank"}
    saved = transformers.AutoConfig.for_model(**source).to_dict()
    assert parse_config(saved) == parse_config(config)


def test_saved_glm_without_the_interleave_key() -> None:
    saved = {k: v for k, v in GLM52.items() if k != "indexer_rope_interleave"}
    assert deepseek(saved) == deepseek(GLM52)
    for config, stated in ((GLM5, False), (V32, True)):
        indexer = deepseek(config, indexer_rope_interleave=stated).indexer
        assert indexer is not None and indexer.interleaved is stated


@pytest.mark.parametrize(
    "spelling",
    [
        {"indexer_types": ["full", "shared", "full", "shared"], "index_topk_freq": 3},
        {"index_topk_pattern": "FSFS", "index_topk_freq": 3, "index_skip_topk_offset": 0},
        {"index_topk_pattern": ["full", "shared", "full", "shared"]},
        {"indexer_types": ["full", "shared", "full", "shared", "full"]},  # with the MTP layer
        {"index_topk_freq": 2, "index_skip_topk_offset": 1},
    ],
)
def test_index_sharing(spelling: dict[str, Any]) -> None:
    indexer = deepseek(GLM5, num_hidden_layers=4, **spelling).indexer
    assert indexer is not None and indexer.full_layers == (True, False, True, False)


@pytest.mark.parametrize(("offset", "full"), [(0, [0, 2, 5]), (1, [0, 3]), (2, [0, 1, 4])])
def test_index_sharing_offset(offset: int, full: list[int]) -> None:
    if offset == 0:  # layer l is full where (l + 1) % 3 == 0, so layer 0 is not
        with pytest.raises(BadCheckpoint, match="layer before it"):
            deepseek(GLM5, num_hidden_layers=6, index_topk_freq=3, index_skip_topk_offset=0)
        return
    changes = {"index_topk_freq": 3, "index_skip_topk_offset": offset}
    indexer = deepseek(GLM5, num_hidden_layers=6, **changes).indexer
    assert indexer is not None
    assert [i for i, is_full in enumerate(indexer.full_layers) if is_full] == full


def moe_of(config: dict[str, Any], **changes: Any) -> MoeConfig:
    moe = parse_config(config | changes).moe
    assert moe is not None
    return moe


def test_sparse_layers() -> None:
    every_second = moe_of(V3, num_hidden_layers=6, first_k_dense_replace=1, moe_layer_freq=2)
    assert every_second.sparse_layers == (False, False, True, False, True, False)
    kinds = ["dense", "sparse", "dense", "sparse"]
    listed = moe_of(GLM5, num_hidden_layers=4, mlp_layer_types=kinds)
    assert listed.sparse_layers == (False, True, False, True)
    with_mtp = moe_of(GLM5, num_hidden_layers=3, mlp_layer_types=kinds)
    assert with_mtp.sparse_layers == (False, True, False)
    qwen = moe_of(QWEN3_MOE, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert qwen.sparse_layers == (False, True, False, False, False, True)
    assert deepseek(V3, first_k_dense_replace=61).moe is None
    assert llama(QWEN3_MOE, mlp_only_layers=list(range(48))).moe is None
    dense = {k: v for k, v in V3.items() if k not in ("n_routed_experts", "moe_intermediate_size")}
    assert deepseek(dense).moe is None


def test_expert_counts_under_either_name() -> None:
    for config, old, new in (
        (V3, "n_routed_experts", "num_local_experts"),
        (QWEN3_MOE, "num_experts", "num_local_experts"),
    ):
        renamed = {k: v for k, v in config.items() if k != old} | {new: config[old]}
        assert parse_config(renamed) == parse_config(config)
        assert parse_config(config | {new: config[old]}) == parse_config(config)


def test_v2_routing() -> None:
    groups = {"n_group": 8, "topk_group": 3}
    greedy = moe_of(V2_LITE, **groups)
    assert (greedy.n_group, greedy.topk_group) == (1, 1)
    limited = moe_of(V2_LITE, **groups, topk_method="group_limited_greedy")
    assert (limited.n_group, limited.topk_group, limited.group_score) == (8, 3, "max")
    assert moe_of(V2_LITE, routed_scaling_factor=16.0).scale == 16.0
    assert moe_of(V2_LITE, norm_topk_prob=True).normalize
    assert moe_of(V2_LITE, n_shared_experts=None).shared_width == 0


def test_latent_norm_eps() -> None:
    assert deepseek(V3, rms_norm_eps=1e-3).latent_norm_eps == 1e-6
    assert deepseek(GLM5, rms_norm_eps=1e-3).latent_norm_eps == 1e-3
    chosen = parse_config(GLM5, latent_norm_eps=1e-6)
    assert chosen == replace(deepseek(GLM5), latent_norm_eps=1e-6)
    assert parse_config(QWEN3, latent_norm_eps=1e-6) == parse_config(QWEN3)


def test_head_dim_and_kv_heads_where_missing() -> None:
    bare = {k: v for k, v in QWEN3_MOE.items() if k not in ("head_dim", "num_key_value_heads")}
    assert (llama(bare).head_dim, llama(bare).num_kv_heads) == (64, 32)
    assert llama({k: v for k, v in QWEN3.items() if k != "head_dim"}).head_dim == 128
    assert llama(LLAMA31, head_dim=None).head_dim == 128
    assert llama(LLAMA31, head_dim=64).head_dim == 64


def test_glm_head_dim_is_noise() -> None:
    noise = deepseek(GLM5, head_dim=7, num_key_value_heads=5)
    assert noise == deepseek(GLM5)


def test_windows() -> None:
    on = {"use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 4}
    assert llama(QWEN3, **on, max_window_layers=3).windows == (None, None, None, 16)
    assert llama(QWEN2, **on, max_window_layers=0).windows == (16,) * 4
    assert llama(QWEN2, **on, max_window_layers=4).windows == (None,) * 4
    kinds = ["sliding_attention", "full_attention"] * 2
    assert llama(QWEN3, **on, layer_types=kinds).windows == (16, None, 16, None)
    off = on | {"use_sliding_window": False}
    assert llama(QWEN3, **off, max_window_layers=0).windows == (None,) * 4
    assert llama(QWEN3_MOE, **on, max_window_layers=0).windows == (16,) * 4
    assert llama(QWEN3_MOE, **on, max_window_layers=None).windows == (16,) * 4
    assert llama(LLAMA31, sliding_window=16, use_sliding_window=True).windows == (None,) * 32


def test_defaults() -> None:
    bare = {k: v for k, v in LLAMA31.items() if not k.startswith(("rope", "tie"))}
    assert llama(bare).rope == RopeConfig(10000.0) and not llama(bare).tie_word_embeddings
    assert llama(bare).quantization is None
    assert deepseek(V3).quantization == V3["quantization_config"]
    assert llama(LLAMA31, compression_config={"a": 1}).quantization == {"a": 1}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert llama(QWEN3, rope_scaling=yarn).rope == RopeConfig(1e6, "yarn", 4.0, 32768, 32.0, 1.0)
    factors = llama(QWEN3, rope_scaling=yarn | {"attention_factor": 1.5, "mscale": 0.5}).rope
    assert (factors.attention_factor, factors.mscale) == (1.5, 0.5)
    betas = llama(QWEN3, rope_scaling=yarn | {"beta_fast": 16, "beta_slow": 2}).rope
    assert (betas.beta_fast, betas.beta_slow) == (16.0, 2.0)
    other = LLAMA31["rope_scaling"] | {"low_freq_factor": 2, "high_freq_factor": 5}
    ends = llama(LLAMA31, rope_scaling=other).rope
    assert (ends.low_freq_factor, ends.high_freq_factor) == (2.0, 5.0)
    assert llama(LLAMA31, hidden_act="swish") == llama(LLAMA31)
