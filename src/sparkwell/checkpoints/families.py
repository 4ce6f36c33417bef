"""The keys of each architecture's config.json: their spellings, their defaults, what is refused.

Field names and defaults: the configuration classes of Transformers 5.23 and the published files.
"""

from typing import Any

from sparkwell.checkpoints.architectures import (
    DeepseekConfig,
    IndexerConfig,
    LlamaConfig,
    MoeConfig,
)
from sparkwell.checkpoints.keys import Keys
from sparkwell.checkpoints.rope import parse_rope

GLM = {"glm4_moe_lite", "glm_moe_dsa"}
WITH_INDEXER = {"deepseek_v32", "glm_moe_dsa"}
DEFAULT_THETA = {  # rope_theta where the file has none; other families always write it
    "llama": 10000.0,
    "deepseek_v2": 10000.0,
    "deepseek_v3": 10000.0,
    "deepseek_v32": 10000.0,
}

# ---------------------------------------------------------------- both families


def _refuse_other_mathematics(keys: Keys) -> None:
    """Keys which, at any other value, would change the result without any tensor telling so."""
    keys.text("hidden_act", "silu", choices=("silu", "swish"))
    biases = ["mlp_bias"]
    if keys.values["model_type"] != "qwen2":  # its class has biases on q, k, v and no such key
        biases.append("attention_bias")
    for key in biases:
        if keys.flag(key, False):
            raise keys.wrong(key, "false or absent", problem=f"{key} is not supported")
    if not keys.flag("rope_interleave", True):
        problem = "MLA with half-split rope is not supported"
        raise keys.wrong("rope_interleave", "true or absent", problem=problem)
    if keys.has("swiglu_limit"):
        raise keys.wrong("swiglu_limit", "absent", problem="clamped SwiGLU is not supported")


def _common(keys: Keys) -> dict[str, Any]:
    _refuse_other_mathematics(keys)
    name = keys.values["model_type"]
    quantization = keys.object("quantization_config") or keys.object("compression_config")
    return {
        "model_type": name,
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": keys.integer("hidden_size"),
        "num_layers": keys.integer("num_hidden_layers"),
        "num_heads": keys.integer("num_attention_heads"),
        "intermediate_size": keys.integer("intermediate_size"),
        "rms_norm_eps": keys.real("rms_norm_eps"),
        "rope": parse_rope(keys, DEFAULT_THETA.get(name)),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
        "max_position": keys.integer("max_position_embeddings"),
        "quantization": dict(quantization.values) if quantization else None,
    }


def _num_experts(keys: Keys) -> int | None:
    """Transformers writes the count under either of its names; both are read everywhere."""
    names = [k for k in ("n_routed_experts", "num_experts", "num_local_experts") if keys.has(k)]
    counts = {keys.integer(name) for name in names}
    if len(counts) > 1:
        problem = f"{' and '.join(names)} contradict each other"
        raise keys.wrong(names[-1], f"{keys.values[names[0]]}, as {names[0]}", problem=problem)
    return counts.pop() if counts else None


def _check_routing(keys: Keys, moe: MoeConfig) -> MoeConfig:
    if moe.num_experts % moe.n_group:
        raise keys.wrong("n_group", f"a divisor of the {moe.num_experts} experts")
    if moe.topk_group > moe.n_group:
        raise keys.wrong("topk_group", f"at most n_group = {moe.n_group}")
    group = moe.num_experts // moe.n_group
    if moe.n_group > 1 and moe.group_score == "top2" and group < 2:
        raise keys.wrong("n_group", f"groups of two or more of the {moe.num_experts} experts")
    if moe.topk > group * moe.topk_group:
        eligible = f"{moe.topk_group} group(s) of {group}"
        raise keys.wrong("num_experts_per_tok", f"at most the experts of {eligible}")
    return moe


# ---------------------------------------------------------------- DeepSeek and GLM


def parse_deepseek(keys: Keys) -> DeepseekConfig:
    """MLA: deepseek_v2, deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa.

    head_dim and num_key_value_heads are not read: MLA has no use for either, and published GLM
    files hold arbitrary values there.
    """
    common = _common(keys)
    name, layers = common["model_type"], common["num_layers"]
    mtp = keys.integer("num_nextn_predict_layers", 0, least=0)
    if "q_lora_rank" not in keys.values:  # null has a meaning here: no low-rank query
        raise keys.wrong("q_lora_rank", "an integer, or null for a direct query projection")
    rope_dim = keys.integer("qk_rope_head_dim")
    if rope_dim % 2:
        raise keys.wrong("qk_rope_head_dim", "an even integer: rope turns pairs")
    return DeepseekConfig(
        **common,
        q_lora_rank=keys.integer("q_lora_rank", None),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        qk_nope_head_dim=keys.integer("qk_nope_head_dim"),
        qk_rope_head_dim=rope_dim,
        v_head_dim=keys.integer("v_head_dim"),
        latent_norm_eps=common["rms_norm_eps"] if name in GLM else 1e-6,
        moe=_deepseek_moe(keys, layers, mtp),
        indexer=_indexer(keys, layers, mtp, rope_dim) if name in WITH_INDEXER else None,
        num_mtp_layers=mtp,
    )


def _deepseek_moe(keys: Keys, layers: int, mtp: int) -> MoeConfig | None:
    num_experts = _num_experts(keys)
    if num_experts is None:
        if keys.has("moe_intermediate_size"):
            raise keys.wrong("n_routed_experts", "the number of routed experts")
        return None
    sparse = _sparse_layers(keys, layers, mtp)
    if not any(sparse):
        return None
    width = keys.integer("moe_intermediate_size")
    is_v2 = keys.values["model_type"] == "deepseek_v2"
    routing = _softmax_routing(keys) if is_v2 else _sigmoid_routing(keys)
    moe = MoeConfig(
        num_experts=num_experts,
        topk=keys.integer("num_experts_per_tok"),
        width=width,
        shared_width=keys.integer("n_shared_experts", 0, least=0) * width,
        sparse_layers=sparse,
        **routing,
    )
    return _check_routing(keys, moe)


def _sigmoid_routing(keys: Keys) -> dict[str, Any]:
    """DeepSeek-V3's auxiliary-loss-free routing (arXiv 2412.19437, 2.1.2), also GLM's."""
    keys.text("scoring_func", "sigmoid", choices=("sigmoid",))
    keys.text("topk_method", "noaux_tc", choices=("noaux_tc",))
    return {
        "scoring": "sigmoid",
        "n_group": keys.integer("n_group", 1),
        "topk_group": keys.integer("topk_group", 1),
        "group_score": "top2",
        "normalize": keys.flag("norm_topk_prob"),
        "scale": keys.real("routed_scaling_factor"),
    }


def _softmax_routing(keys: Keys) -> dict[str, Any]:
    """DeepSeek-V2's routing (arXiv 2405.04434, 2.2): "greedy" knows no groups."""
    keys.text("scoring_func", "softmax", choices=("softmax",))
    method = keys.text("topk_method", "greedy", choices=("greedy", "group_limited_greedy"))
    grouped = method == "group_limited_greedy"
    normalize, scale = keys.flag("norm_topk_prob", False), keys.real("routed_scaling_factor", 1.0)
    if normalize and scale != 1.0:
        # DeepSeek's code normalizes or scales, Transformers only scales, vLLM does both.
        problem = "norm_topk_prob with routed_scaling_factor has no agreed meaning in DeepSeek-V2"
        raise keys.wrong("norm_topk_prob", "false, or a scaling factor of 1.0", problem=problem)
    return {
        "scoring": "softmax",
        "n_group": keys.integer("n_group") if grouped else 1,
        "topk_group": keys.integer("topk_group") if grouped else 1,
        "group_score": "max",
        "normalize": normalize,
        "scale": scale,
    }


def _sparse_layers(keys: Keys, layers: int, mtp: int) -> tuple[bool, ...]:
    """An explicit list rules, as in Transformers; else from first_k_dense_replace on."""
    if keys.has("mlp_layer_types"):
        kinds = {"dense": False, "sparse": True}
        return keys.choices_per_layer("mlp_layer_types", layers, mtp, kinds)
    first = keys.integer("first_k_dense_replace", least=0)
    step = keys.integer("moe_layer_freq", 1)
    return tuple(i >= first and i % step == 0 for i in range(layers))


def _indexer(keys: Keys, layers: int, mtp: int, rope_dim: int) -> IndexerConfig:
    head_dim = keys.integer("index_head_dim")
    if head_dim < rope_dim:
        raise keys.wrong("index_head_dim", f"at least qk_rope_head_dim = {rope_dim}")
    # Transformers' GlmMoeDsaConfig neither reads nor writes the key: its GLM indexer is always
    # interleaved, as every published GLM file says, and its DeepSeek one never is.
    interleaved = keys.values["model_type"] == "glm_moe_dsa"
    return IndexerConfig(
        num_heads=keys.integer("index_n_heads"),
        head_dim=head_dim,
        topk=keys.integer("index_topk"),
        interleaved=keys.flag("indexer_rope_interleave", interleaved),
        full_layers=_full_layers(keys, layers, mtp),
    )


def _full_layers(keys: Keys, layers: int, mtp: int) -> tuple[bool, ...]:
    """Layer l is full iff max(l - offset + 1, 0) % freq == 0, unless a list or pattern says so."""
    names = {"full": True, "shared": False, "F": True, "S": False}
    key = next((k for k in ("indexer_types", "index_topk_pattern") if keys.has(k)), None)
    if key is not None:
        full = keys.choices_per_layer(key, layers, mtp, names)
    else:
        key = "index_topk_freq"
        freq = keys.integer(key, 1)
        offset = keys.integer("index_skip_topk_offset", least=0) if freq > 1 else 0
        full = tuple(max(i - offset + 1, 0) % freq == 0 for i in range(layers))
    if not full[0]:
        problem = "the first layer would share the indices of a layer before it"
        raise keys.wrong(key, "layer 0 full", problem=problem)
    return full


# ---------------------------------------------------------------- Llama and Qwen


def parse_llama(keys: Keys) -> LlamaConfig:
    """Grouped-query attention: llama, qwen2, qwen3, qwen3_moe."""
    common = _common(keys)
    name, layers, heads = common["model_type"], common["num_layers"], common["num_heads"]
    kv_heads = keys.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    return LlamaConfig(
        **common,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(keys, common["hidden_size"], heads),
        qkv_bias=name == "qwen2",
        qk_norm=name in ("qwen3", "qwen3_moe"),
        moe=_qwen_moe(keys, layers) if name == "qwen3_moe" else None,
        windows=(None,) * layers if name == "llama" else _windows(keys, layers),
    )


def _head_dim(keys: Keys, hidden: int, heads: int) -> int:
    """Where it is missing: 128 for qwen3, hidden_size / heads for the others (Transformers)."""
    if keys.has("head_dim"):
        head_dim: int = keys.integer("head_dim")
        if head_dim % 2:
            raise keys.wrong("head_dim", "an even integer: rope turns pairs")
        return head_dim
    if keys.values["model_type"] == "qwen3":
        return 128
    if hidden % (2 * heads):
        even = "an even size of each head"
        raise keys.wrong("head_dim", f"{even}; hidden_size {hidden} / {heads} heads gives none")
    return hidden // heads


def _qwen_moe(keys: Keys, layers: int) -> MoeConfig | None:
    num_experts = _num_experts(keys)
    if num_experts is None:
        raise keys.wrong("num_experts", "the number of experts")
    step = keys.integer("decoder_sparse_step", 1)
    dense = keys.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int or i < 0 for i in dense):
        raise keys.wrong("mlp_only_layers", "a list of layer numbers")
    sparse = tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    if not any(sparse):
        return None
    moe = MoeConfig(
        num_experts=num_experts,
        topk=keys.integer("num_experts_per_tok"),
        width=keys.integer("moe_intermediate_size"),
        shared_width=0,
        sparse_layers=sparse,
        scoring="softmax",
        n_group=1,
        topk_group=1,
        group_score="max",
        normalize=keys.flag("norm_topk_prob"),
        scale=1.0,
    )
    return _check_routing(keys, moe)


def _windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """Sliding windows: of the layers listed, or of those from max_window_layers on."""
    window = None
    if keys.flag("use_sliding_window", False):
        window = keys.integer("sliding_window")
    if keys.has("layer_types"):
        kinds = {"full_attention": False, "sliding_attention": True}
        slides = keys.choices_per_layer("layer_types", layers, 0, kinds)
        if any(slides) and window is None:
            raise keys.wrong(
                "layer_types",
                "full_attention everywhere, or use_sliding_window true and a sliding_window",
                problem="layer_types and use_sliding_window contradict each other",
            )
    elif window is None:
        return (None,) * layers
    else:
        moe = keys.values["model_type"] == "qwen3_moe"
        first = keys.integer("max_window_layers", *((0,) if moe else ()), least=0)
        if moe and first:  # Transformers gives every layer the window, whatever this key says
            problem = "windows on some layers only have no agreed meaning in qwen3_moe"
            raise keys.wrong("max_window_layers", "0 or absent", problem=problem)
        slides = tuple(i >= first for i in range(layers))
    return tuple(window if slide else None for slide in slides)
