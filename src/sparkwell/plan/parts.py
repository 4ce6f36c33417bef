"""A model as weights of a few kinds: their shapes, in which layers, how several GPUs share them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sparkwell.checkpoints.architectures import DeepseekConfig, LlamaConfig, MoeConfig

Config = DeepseekConfig | LlamaConfig
Group = Literal[
    "embedding", "head", "attention", "absorbed", "indexer", "dense", "shared", "experts",
    "router", "weights_proj", "vectors",
]  # fmt: skip
Split = Literal["rows", "columns", "none"]  # of [n, k]: n, k or nothing is divided among GPUs
QUANTIZABLE: frozenset[Group] = frozenset({"attention", "indexer", "dense", "shared", "experts"})


@dataclass(frozen=True)
class Part:
    """Weights [n, k] of one name in some layers; `experts` of them in each.

    name: with {layer} and {expert} in it.  k 0: a vector of n values.
    nbytes: of a value where it stays plain.
    """

    name: str
    group: Group
    n: int
    k: int
    layers: tuple[int, ...] = (0,)
    experts: int = 1
    split: Split = "none"
    nbytes: int = 2

    @property
    def count(self) -> int:
        """Weights of this name in the model."""
        return len(self.layers) * self.experts

    @property
    def parameters(self) -> int:
        """Values of all of them."""
        return self.count * self.n * max(1, self.k)

    def names(self) -> Iterator[str]:
        """As a checkpoint calls them."""
        for layer in self.layers:
            for expert in range(self.experts):
                yield self.name.format(layer=layer, expert=expert)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches their names."""
        text = re.escape(self.name).replace(r"\{layer\}", r"(?P<layer>\d+)")
        return re.compile(text.replace(r"\{expert\}", r"\d+"))


def parts(config: Config) -> tuple[Part, ...]:
    """Every weight that a model of this config loads; multi-token-prediction layers are not."""
    c, hidden = config, config.hidden_size
    layers = tuple(range(c.num_layers))
    found = [Part("model.embed_tokens.weight", "embedding", c.vocab_size, hidden, split="rows")]
    if not c.tie_word_embeddings:
        found.append(Part("lm_head.weight", "head", c.vocab_size, hidden, split="rows"))
    found.append(Part("model.norm.weight", "vectors", hidden, 0))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        found.append(Part(f"{LAYER}.{norm}.weight", "vectors", hidden, 0, layers))
    found += _mla(c, layers) if isinstance(c, DeepseekConfig) else _gqa(c, layers)
    sparse = c.moe.sparse_layers if c.moe else (False,) * c.num_layers
    dense = tuple(i for i in layers if not sparse[i])
    if dense:
        found += _mlp("mlp", "dense", hidden, c.intermediate_size, dense)
    if c.moe:
        found += _moe(c.moe, hidden, tuple(i for i in layers if sparse[i]))
    return tuple(found)


LAYER = "model.layers.{layer}"
ATTENTION = f"{LAYER}.self_attn"


def _mla(c: DeepseekConfig, layers: tuple[int, ...]) -> Iterable[Part]:
    hidden, heads, latent = c.hidden_size, c.num_heads, c.kv_lora_rank
    query = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)

    def part(name: str, n: int, k: int, group: Group = "attention", split: Split = "none") -> Part:
        return Part(f"{ATTENTION}.{name}.weight", group, n, k, layers, split=split)

    if c.q_lora_rank is None:
        yield part("q_proj", query, hidden, split="rows")
    else:
        yield part("q_a_proj", c.q_lora_rank, hidden)
        yield part("q_a_layernorm", c.q_lora_rank, 0, "vectors")
        yield part("q_b_proj", query, c.q_lora_rank, split="rows")
    yield part("kv_a_proj_with_mqa", latent + c.qk_rope_head_dim, hidden)
    yield part("kv_a_layernorm", latent, 0, "vectors")
    yield part("kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), latent, "absorbed", "rows")
    yield part("o_proj", hidden, heads * c.v_head_dim, split="columns")
    if c.indexer is not None:
        index, full = c.indexer, tuple(i for i in layers if c.indexer.full_layers[i])
        at, width = f"{ATTENTION}.indexer", index.num_heads * index.head_dim
        yield Part(f"{at}.wq_b.weight", "indexer", width, c.q_lora_rank or hidden, full)
        yield Part(f"{at}.wk.weight", "indexer", index.head_dim, hidden, full)
        yield Part(f"{at}.weights_proj.weight", "weights_proj", index.num_heads, hidden, full)
        for name in ("weight", "bias"):
            yield Part(f"{at}.k_norm.{name}", "vectors", index.head_dim, 0, full)


def _gqa(c: LlamaConfig, layers: tuple[int, ...]) -> Iterable[Part]:
    query, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    for name, n in (("q", query), ("k", kv), ("v", kv)):
        at = f"{ATTENTION}.{name}_proj"
        yield Part(f"{at}.weight", "attention", n, c.hidden_size, layers, split="rows")
        if c.qkv_bias:
            yield Part(f"{at}.bias", "vectors", n, 0, layers)
    yield Part(
        f"{ATTENTION}.o_proj.weight", "attention", c.hidden_size, query, layers, 1, "columns"
    )
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            yield Part(f"{ATTENTION}.{name}.weight", "vectors", c.head_dim, 0, layers)


def _mlp(
    at: str, group: Group, hidden: int, width: int, layers: tuple[int, ...], experts: int = 1
) -> Iterable[Part]:
    for name in ("gate_proj", "up_proj"):
        full = f"{LAYER}.{at}.{name}.weight"
        yield Part(full, group, width, hidden, layers, experts, "rows")
    yield Part(f"{LAYER}.{at}.down_proj.weight", group, hidden, width, layers, experts, "columns")


def _moe(moe: MoeConfig, hidden: int, layers: tuple[int, ...]) -> Iterable[Part]:
    yield Part(f"{LAYER}.mlp.gate.weight", "router", moe.num_experts, hidden, layers)
    if moe.scoring == "sigmoid":
        bias = f"{LAYER}.mlp.gate.e_score_correction_bias"
        yield Part(bias, "vectors", moe.num_experts, 0, layers, nbytes=4)
    yield from _mlp("mlp.experts.{expert}", "experts", hidden, moe.width, layers, moe.num_experts)
    if moe.shared_width:
        yield from _mlp("mlp.shared_experts", "shared", hidden, moe.shared_width, layers)
