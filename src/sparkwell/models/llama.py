"""Llama 3.x, Qwen2/2.5, Qwen3 and Qwen3-MoE: grouped-query attention over paged K and V."""

from collections.abc import Sequence

import torch

from sparkwell.checkpoints.config import LlamaConfig
from sparkwell.formats.kv import Record, gqa_record
from sparkwell.formats.paged import PagedCache
from sparkwell.models.batch import Batch
from sparkwell.models.layers import Mlp, Moe, Rotary, joined, multiplied
from sparkwell.models.products import Rows, add_rms_norm_for, linear
from sparkwell.models.weights import Weights
from sparkwell.ops.attention import attention_paged
from sparkwell.ops.cache import cache_write
from sparkwell.ops.norm import add_rms_norm, rms_norm


class Attention:
    """softmax(q k^T / sqrt(d)) v, with `num_heads / num_kv_heads` query heads on each KV head."""

    def __init__(self, c: LlamaConfig, w: Weights, prefix: str, window: int | None) -> None:
        self.config, self.window, self.scale = c, window, c.head_dim**-0.5
        q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.widths = {"q": q_width, "k": kv_width, "v": kv_width}
        names = {f"{prefix}.{part}_proj": width for part, width in self.widths.items()}
        self.qkv = joined(*(w.linear(name, n, c.hidden_size) for name, n in names.items()))
        self.o = w.linear(f"{prefix}.o_proj", c.hidden_size, q_width)
        self.qkv_bias: torch.Tensor | None = None
        if c.qkv_bias:
            biases = [w.tensor(f"{name}.bias", (width,)) for name, width in names.items()]
            self.qkv_bias = torch.cat(biases)
        if c.qk_norm:
            self.q_norm = w.tensor(f"{prefix}.q_norm.weight", (c.head_dim,))
            self.k_norm = w.tensor(f"{prefix}.k_norm.weight", (c.head_dim,))
        self.rotary = Rotary(c.head_dim, c.rope, interleaved=False)

    def __call__(self, x: Rows, batch: Batch, cache: PagedCache) -> torch.Tensor:
        c = self.config
        q, k, v = multiplied(x, self.qkv, self.qkv_bias).split(list(self.widths.values()), -1)
        q, k = (part.unflatten(-1, (-1, c.head_dim)) for part in (q, k))
        if c.qk_norm:
            q = rms_norm(q, self.q_norm, eps=c.rms_norm_eps)
            k = rms_norm(k, self.k_norm, eps=c.rms_norm_eps)
        q, k = self.rotary(q, batch.positions), self.rotary(k, batch.positions)
        cache_write(cache, batch.slots, torch.cat([k.flatten(1), v], -1))
        out, _ = attention_paged(
            q,
            cache,
            batch.query_start,
            batch.context_lens,
            batch.block_table,
            num_kv_heads=c.num_kv_heads,
            scale=self.scale,
            window=self.window,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
        )
        return linear(out.flatten(1), self.o)


class Layer:
    """h += Attention(RMSNorm(h));  h += (Mlp | Moe)(RMSNorm(h))"""

    def __init__(self, c: LlamaConfig, w: Weights, index: int) -> None:
        prefix, self.eps = f"model.layers.{index}", c.rms_norm_eps
        self.attention_norm = w.tensor(f"{prefix}.input_layernorm.weight", (c.hidden_size,))
        self.attention = Attention(c, w, f"{prefix}.self_attn", c.windows[index])
        self.mlp_norm = w.tensor(f"{prefix}.post_attention_layernorm.weight", (c.hidden_size,))
        self.mlp: Mlp | Moe
        if c.moe is not None and c.moe.sparse_layers[index]:
            self.mlp = Moe(c.moe, w, f"{prefix}.mlp", c.hidden_size)
        else:
            self.mlp = Mlp(w, f"{prefix}.mlp", c.hidden_size, c.intermediate_size)

    def __call__(
        self, h: torch.Tensor, delta: torch.Tensor, batch: Batch, cache: PagedCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h + delta -> the same for the next layer: a sum is formed where it is next read."""
        h, x = add_rms_norm_for(self.attention.qkv, h, delta, self.attention_norm, eps=self.eps)
        out = self.attention(x, batch, cache)
        h, x = add_rms_norm_for(self.mlp.readers, h, out, self.mlp_norm, eps=self.eps)
        return h, self.mlp(x)


class LlamaModel:
    """Token ids and paged caches to logits."""

    dense_context: int | None = None  # every query attends to all its keys, or to a window of them

    def __init__(self, config: LlamaConfig, weights: Weights) -> None:
        c = self.config = config
        self.embed = weights.tensor("model.embed_tokens.weight", (c.vocab_size, c.hidden_size))
        self.layers = [Layer(c, weights, i) for i in range(c.num_layers)]
        self.norm = weights.tensor("model.norm.weight", (c.hidden_size,))
        self.lm_head = self.embed
        if not c.tie_word_embeddings:
            self.lm_head = weights.tensor("lm_head.weight", (c.vocab_size, c.hidden_size))

    def cache_records(self, dtype: str) -> list[tuple[Record, Record | None]]:
        """Each layer's record for a cache of `dtype` "fp32", "bf16" or "fp8"."""
        record = gqa_record(self.config.num_kv_heads, self.config.head_dim, dtype)
        return [(record, None) for _ in self.layers]

    def allocate(
        self, num_pages: int, *, page_size: int, dtype: str, device: str | torch.device = "cpu"
    ) -> list[PagedCache]:
        """Empty caches for every layer: `num_pages` pages of `page_size` tokens each."""
        records = [record for record, _ in self.cache_records(dtype)]
        return [PagedCache.allocate(record, num_pages, page_size, device) for record in records]

    def forward(self, batch: Batch, caches: Sequence[PagedCache]) -> torch.Tensor:
        """Logits [R, vocab] fp32 of `batch.logit_rows`; writes this step's keys to the caches."""
        h = self.embed[batch.token_ids]
        delta = torch.zeros_like(h)
        for layer, cache in zip(self.layers, caches, strict=True):
            h, delta = layer(h, delta, batch, cache)
        rows, eps = batch.logit_rows, self.config.rms_norm_eps
        _, x = add_rms_norm(h[rows], delta[rows], self.norm, eps=eps)
        return linear(x, self.lm_head, out_dtype=torch.float32)
