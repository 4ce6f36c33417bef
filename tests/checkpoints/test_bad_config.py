"""Every key that is missing, ill-typed, contradictory or asks for other mathematics is refused."""

from pathlib import Path
from typing import Any

import pytest

from checkpoints.checkpoint_files import assert_says
from checkpoints.test_parse_config import (
    GLM5,
    LLAMA31,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    V2_LITE,
    V3,
    V32,
    YARN,
)
from sparkwell.checkpoints.config import FAMILIES, parse_config
from sparkwell.checkpoints.keys import REPAIR
from sparkwell.errors import BadCheckpoint

FILE = Path("/models/some/config.json")
NO_MSCALE = {k: v for k, v in YARN.items() if not k.startswith("mscale")}
LLAMA3 = LLAMA31["rope_scaling"]


def refusal(config: dict[str, Any]) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        parse_config(config, file=FILE)
    return caught.value


# ---------------------------------------------------------------- missing

SHARED = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
SHARED += ["intermediate_size", "rms_norm_eps", "max_position_embeddings"]
OF_MLA = ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
OF_MOE = ["num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"]
OF_MOE += ["first_k_dense_replace", "routed_scaling_factor", "n_routed_experts"]
OF_INDEXER = ["index_n_heads", "index_head_dim", "index_topk"]
MISSING = [(LLAMA31, key) for key in SHARED]
MISSING += [(V3, key) for key in SHARED + OF_MLA + OF_MOE]
MISSING += [(config, key) for config in (V32, GLM5) for key in OF_INDEXER]
MISSING += [(GLM5, "rope_theta"), (QWEN3, "rope_theta"), (QWEN2, "rope_theta")]
MISSING += [(QWEN3_MOE, key) for key in [*OF_MOE[:3], "num_experts"]]


@pytest.mark.parametrize(
    ("config", "key"), MISSING, ids=[f"{c['model_type']}-{key}" for c, key in MISSING]
)
def test_missing_key(config: dict[str, Any], key: str) -> None:
    error = refusal({k: v for k, v in config.items() if k != key})
    assert_says(
        error,
        f"config.json lacks {key}",
        file=FILE,
        came=f"no key {key}",
        wanted=f"{key}: ",
        do=REPAIR,
    )


def test_null_is_missing_and_says_so() -> None:
    error = refusal(LLAMA31 | {"hidden_size": None})
    assert "config.json has a bad value of hidden_size" in str(error)
    assert "came    hidden_size = None" in str(error)


# ---------------------------------------------------------------- wrong values

WRONG: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    # config, change, line that must stand in the message, wanted
    (LLAMA31, {"hidden_size": "4096"}, "hidden_size = '4096'", "an integer of at least 1"),
    (LLAMA31, {"hidden_size": 4096.0}, "hidden_size = 4096.0", "an integer"),
    (LLAMA31, {"vocab_size": True}, "vocab_size = True", "an integer"),
    (LLAMA31, {"num_hidden_layers": 0}, "num_hidden_layers = 0", "at least 1"),
    (LLAMA31, {"num_hidden_layers": [1] * 999}, "...", "an integer of at least 1"),
    (LLAMA31, {"rms_norm_eps": 0}, "rms_norm_eps = 0", "above 0"),
    (LLAMA31, {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan", "finite number"),
    (LLAMA31, {"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5'", "a finite number"),
    (LLAMA31, {"tie_word_embeddings": 1}, "tie_word_embeddings = 1", "true or false"),
    (LLAMA31, {"num_key_value_heads": 5}, "num_key_value_heads = 5", "attention_heads = 32"),
    (LLAMA31, {"hidden_size": 4100}, "no key head_dim", "hidden_size 4100 / 32 heads"),
    (LLAMA31, {"hidden_size": 32 * 7}, "no key head_dim", "an even size"),
    (LLAMA31, {"head_dim": 127}, "head_dim = 127", "an even integer"),
    (LLAMA31, {"quantization_config": "fp8"}, "quantization_config = 'fp8'", "an object"),
    (LLAMA31, {"rope_theta": -1}, "rope_theta = -1", "above 0"),
    (LLAMA31, {"rope_scaling": [1]}, "rope_scaling = [1]", "an object {...} or null"),
    (LLAMA31, {"rope_scaling": LLAMA3 | {"factor": 0.5}}, "rope_scaling.factor = 0.5", "least 1"),
    (LLAMA31, {"rope_scaling": LLAMA3 | {"factor": None}}, "factor = None", "above 0"),
    (LLAMA31, {"rope_scaling": {"type": "linear"}}, "no key rope_scaling.factor", "a finite"),
    (
        LLAMA31,
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        "high_freq_factor = 1.0",
        "above low_freq_factor = 1",
    ),
    (V3, {"rope_scaling": YARN | {"mscale_all_dim": -1.0}}, "mscale_all_dim = -1.0", "or 0"),
    (V3, {"q_lora_rank": 0}, "q_lora_rank = 0", "at least 1"),
    (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim = 63", "an even integer"),
    (V3, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers = -1", "at least 0"),
    (V3, {"n_group": 7}, "n_group = 7", "a divisor of the 256 experts"),
    (V3, {"n_group": 256}, "n_group = 256", "groups of two or more"),
    (V3, {"topk_group": 9}, "topk_group = 9", "at most n_group = 8"),
    (V3, {"num_experts_per_tok": 129}, "= 129", "at most the experts of 4 group(s) of 32"),
    (V3, {"first_k_dense_replace": -1}, "first_k_dense_replace = -1", "at least 0"),
    (V3, {"moe_layer_freq": 0}, "moe_layer_freq = 0", "at least 1"),
    (V3, {"n_shared_experts": -1}, "n_shared_experts = -1", "at least 0"),
    (V2_LITE, {"topk_method": "random"}, "'random'", "one of greedy, group_limited_greedy"),
    (GLM5, {"index_head_dim": 32}, "index_head_dim = 32", "qk_rope_head_dim = 64"),
    (GLM5, {"index_topk": 0}, "index_topk = 0", "at least 1"),
    (GLM5, {"mlp_layer_types": ["dense"]}, "mlp_layer_types = ['dense']", "78 entries"),
    (GLM5, {"mlp_layer_types": ["moe"] * 78}, "'moe'", "each dense or sparse"),
    (GLM5, {"mlp_layer_types": 3}, "mlp_layer_types = 3", "78 entries"),
    (GLM5, {"indexer_types": ["full"] * 80}, "indexer_types = ", "78 entries"),
    (GLM5, {"indexer_types": [1] * 78}, "indexer_types = ", "each full or shared"),
    (GLM5, {"index_topk_pattern": "FS"}, "index_topk_pattern = 'FS'", "78 entries"),
    (GLM5, {"index_topk_freq": 4}, "no key index_skip_topk_offset", "at least 0"),
    (QWEN3_MOE, {"num_experts_per_tok": 129}, "num_experts_per_tok = 129", "1 group(s) of 128"),
    (QWEN3_MOE, {"mlp_only_layers": [1.5]}, "mlp_only_layers = [1.5]", "a list of layer numbers"),
    (QWEN3_MOE, {"mlp_only_layers": "0"}, "mlp_only_layers = '0'", "a list of layer numbers"),
    (QWEN3_MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step = 0", "at least 1"),
    (QWEN3, {"use_sliding_window": True}, "sliding_window = None", "an integer"),
    (
        {k: v for k, v in QWEN3.items() if k != "max_window_layers"},
        {"use_sliding_window": True, "sliding_window": 16},
        "no key max_window_layers",
        "an integer of at least 0",
    ),
    (QWEN3, {"layer_types": ["chunked_attention"] * 28}, "chunked", "full_attention or sliding"),
]


@pytest.mark.parametrize(("config", "change", "came", "wanted"), WRONG)
def test_wrong_value(
    config: dict[str, Any], change: dict[str, Any], came: str, wanted: str
) -> None:
    lines = str(refusal(config | change)).splitlines()
    assert lines[0].startswith("checkpoint: config.json ")
    assert lines[1] == f"  file    {FILE}"
    assert lines[2].startswith("  came    ") and came in lines[2] and len(lines[2]) < 300
    assert lines[3].startswith("  wanted  ") and wanted in lines[3]
    assert lines[4] == f"  do      {REPAIR}"


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
def test_yarn_without_its_constants(key: str) -> None:
    error = refusal(V3 | {"rope_scaling": {k: v for k, v in YARN.items() if k != key}})
    assert f"config.json lacks rope_scaling.{key}" in str(error)


@pytest.mark.parametrize("key", [k for k in LLAMA3 if k != "rope_type"])
def test_llama3_rope_without_its_constants(key: str) -> None:
    error = refusal(LLAMA31 | {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != key}})
    assert f"config.json lacks rope_scaling.{key}" in str(error)


# ---------------------------------------------------------------- contradictions and refusals

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    # config, change, problem, came
    (V3, {"num_experts": 128}, "n_routed_experts and num_experts contradict", "num_experts = 128"),
    (V3, {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta stands twice", "rope_theta = 5.0"),
    (
        V3,
        {"rope_parameters": YARN | {"factor": 4}},
        "rope_scaling and rope_parameters contradict each other in factor",
        "rope_parameters.factor = 4",
    ),
    (
        V3,
        {"rope_scaling": YARN | {"rope_type": "linear"}},
        "rope_type and type contradict each other",
        "rope_scaling.rope_type = 'linear'",
    ),
    (
        QWEN3,
        {"layer_types": ["sliding_attention"] * 28},
        "layer_types and use_sliding_window contradict each other",
        "layer_types = ['sliding_attention'",
    ),
    (
        GLM5,
        {"indexer_types": ["shared"] * 78},
        "the first layer would share the indices of a layer before it",
        "indexer_types = ['shared'",
    ),
    (
        QWEN3_MOE,
        {"use_sliding_window": True, "sliding_window": 16},
        "windows on some layers only have no agreed meaning in qwen3_moe",
        "max_window_layers = 48",
    ),
    (
        V2_LITE,
        {"norm_topk_prob": True, "routed_scaling_factor": 16.0},
        "norm_topk_prob with routed_scaling_factor has no agreed meaning",
        "norm_topk_prob = True",
    ),
    (
        V3,
        {"rope_scaling": NO_MSCALE | {"mscale_all_dim": 1.0}},
        "yarn with one of mscale and mscale_all_dim has no agreed meaning",
        "rope_scaling.mscale_all_dim = 1.0",
    ),
    (
        V3,
        {"rope_scaling": NO_MSCALE | {"mscale": 0.707}},
        "yarn with one of mscale and mscale_all_dim has no agreed meaning",
        "rope_scaling.mscale = 0.707",
    ),
    (
        LLAMA31,
        {"rope_scaling": {"full_attention": {"rope_type": "default"}}},
        "a rope of its own for each kind of layer is not supported",
        "rope_scaling.full_attention = {",
    ),
    (
        V3,
        {"rope_scaling": YARN | {"truncate": False}},
        "yarn with truncate = false is not supported",
        "rope_scaling.truncate = False",
    ),
    (LLAMA31, {"attention_bias": True}, "attention_bias is not supported", "attention_bias = True"),
    (QWEN3, {"attention_bias": True}, "attention_bias is not supported", "attention_bias = True"),
    (V3, {"attention_bias": True}, "attention_bias is not supported", "attention_bias = True"),
    (LLAMA31, {"mlp_bias": True}, "mlp_bias is not supported", "mlp_bias = True"),
    (V3, {"rope_interleave": False}, "MLA with half-split rope is not supp", "rope_interleave = F"),
    (GLM5, {"swiglu_limit": 10.0}, "clamped SwiGLU is not supported", "swiglu_limit = 10.0"),
    (
        LLAMA31,
        {"partial_rotary_factor": 0.5},
        "rope on a part of the head only is not supported",
        "partial_rotary_factor = 0.5",
    ),
    (
        LLAMA31,
        {"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}},
        "rope on a part of the head only is not supported",
        "rope_scaling.partial_rotary_factor = 0.5",
    ),
    (LLAMA31, {"hidden_act": "gelu"}, "config.json has a bad value of hidden_act", "'gelu'"),
    (
        LLAMA31,
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "config.json has a bad value of rope_scaling.rope_type",
        "rope_scaling.rope_type = 'dynamic'",
    ),
    (V3, {"rope_scaling": {"type": "longrope"}}, "config.json has a bad value of rope", "longrope"),
    (V3, {"scoring_func": "softmax"}, "config.json has a bad value of scoring_func", "'softmax'"),
    (V3, {"topk_method": "greedy"}, "config.json has a bad value of topk_method", "'greedy'"),
    (V2_LITE, {"scoring_func": "sigmoid"}, "config.json has a bad value of scoring", "'sigmoid'"),
]


@pytest.mark.parametrize(("config", "change", "problem", "came"), REFUSED)
def test_refused(config: dict[str, Any], change: dict[str, Any], problem: str, came: str) -> None:
    lines = str(refusal(config | change)).splitlines()
    assert lines[0].startswith(f"checkpoint: {problem}")
    assert lines[2].startswith("  came    ") and came in lines[2]
    assert lines[3].startswith("  wanted  ") and lines[4].startswith("  do      ")


def test_what_is_refused_in_one_family_and_meant_in_another() -> None:
    assert parse_config(QWEN2 | {"attention_bias": True}) == parse_config(QWEN2)
    agreed = V3 | {"rope_scaling": NO_MSCALE | {"mscale": 0.707, "attention_factor": 1.0}}
    assert parse_config(agreed).rope.attention_factor == 1.0
    assert parse_config(V3 | {"rope_scaling": NO_MSCALE | {"mscale": 1.0}}).rope.mscale == 1.0


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("deepseek_v4", "; deepseek_v4 is known but not supported yet: hyper-connections"),
        ("glm5_next", "; glm5_next is known but not supported yet: hyper-connections, linear"),
        ("mixtral", ""),
    ],
)
def test_unknown_architecture(name: str, why: str) -> None:
    error = refusal({"model_type": name})
    assert_says(
        error,
        f"no model of architecture '{name}' is implemented{why}",
        file=FILE,
        came=f"model_type = '{name}'",
        wanted="one of deepseek_v2, deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa, llama",
        do="choose a model of one of these architectures",
    )
    assert all(family in str(error) for family in FAMILIES)
    assert ("yet" in str(error)) is bool(why)


def test_no_architecture() -> None:
    assert "config.json lacks model_type" in str(refusal({}))
    assert "came    model_type = 3" in str(refusal({"model_type": 3}))


def test_the_file_is_named_even_if_unknown() -> None:
    with pytest.raises(BadCheckpoint, match=r"file    config\.json\n"):
        parse_config({"model_type": "llama"})
