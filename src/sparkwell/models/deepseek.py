"""DeepSeek-V2/V3/V3.2 and GLM-4.7-Flash/5/5.1/5.2: MLA, DSA and MoE, one forward for all.

MLA caches c (the normed latent) and k_r (the rotated shared key) for each token.  With
W_kvb = [UK; UV] a score is q_nope.(UK c) + q_rope.k_r = (UK^T q_nope).c + q_rope.k_r, so attention
runs either over expanded heads or, "absorbed", over the cached latent itself (arXiv 2405.04434).
DSA restricts each query to the keys its lightning indexer ranks highest (arXiv 2512.02556).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparkwell.checkpoints.config import DeepseekConfig, IndexerConfig
from sparkwell.formats.kv import Record, index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.formats.weights import Weight
from sparkwell.models.batch import Batch
from sparkwell.models.layers import Mlp, Moe, Rotary, joined, multiplied
from sparkwell.models.products import add_rms_norm_for, linear
from sparkwell.models.weights import Weights
from sparkwell.ops.attention import attention_prefill
from sparkwell.ops.cache import cache_gather, index_key_write, latent_write
from sparkwell.ops.indexer import index_select, logical_to_physical
from sparkwell.ops.mla import mla_paged, mla_sparse
from sparkwell.ops.norm import add_rms_norm, rms_norm

INDEX_NORM_EPS = 1e-6  # fixed in every published model, whatever rms_norm_eps says


@dataclass(frozen=True)
class LayerCache:
    """One layer's paged caches: latent and, on layers that own an indexer, index keys."""

    latent: PagedCache
    index: PagedCache | None


Share = tuple[torch.Tensor | slice, Batch]


@dataclass(frozen=True)
class Split:
    """A batch's requests by the form of attention that serves them, each with its rows."""

    expanded: Share | None
    absorbed: Share | None
    sparse: Share | None


class Indexer:
    """I(t,s) = sum_h w[t,h] relu(q[t,h].k[s]); keeps the `topk` highest visible s of each t."""

    def __init__(self, c: DeepseekConfig, index: IndexerConfig, w: Weights, prefix: str) -> None:
        self.config, self.rope_dim = index, c.qk_rope_head_dim
        assert c.q_lora_rank is not None
        width = index.num_heads * index.head_dim
        self.wq_b = w.linear(f"{prefix}.wq_b", width, c.q_lora_rank)
        self.wk = w.linear(f"{prefix}.wk", index.head_dim, c.hidden_size)
        self.norm_weight = w.tensor(f"{prefix}.k_norm.weight", (index.head_dim,))
        self.norm_bias = w.tensor(f"{prefix}.k_norm.bias", (index.head_dim,))
        self.weights_proj = w.dense(f"{prefix}.weights_proj", index.num_heads, c.hidden_size)
        self.rotary = Rotary(c.qk_rope_head_dim, c.rope, interleaved=index.interleaved)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # The indexer rotates the FIRST rope_dim dimensions, MLA's heads the last.
        head, tail = x[..., : self.rope_dim], x[..., self.rope_dim :]
        return torch.cat([self.rotary(head, positions), tail], -1)

    def write_keys(self, x: torch.Tensor, batch: Batch, cache: PagedCache) -> None:
        """cache[slots] = rope(LayerNorm(W_k x)) of the batch's rows."""
        index_key_write(
            cache,
            batch.slots,
            linear(x, self.wk),
            self.norm_weight,
            self.norm_bias,
            batch.positions,
            self.rotary.table(x.device),
            eps=INDEX_NORM_EPS,
            attention_factor=self.rotary.attention_factor,
            interleaved=self.rotary.interleaved,
        )

    def queries(
        self, x: torch.Tensor, c_q: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, heads, head_dim], and w [T, heads] fp32 with both scale factors folded in."""
        heads, dim = self.config.num_heads, self.config.head_dim
        q = linear(c_q, self.wq_b).unflatten(-1, (heads, dim))
        w = linear(x, self.weights_proj, out_dtype=torch.float32) * (heads**-0.5 * dim**-0.5)
        return self._rotate(q, positions), w

    def select(
        self, x: torch.Tensor, c_q: torch.Tensor, batch: Batch, cache: PagedCache
    ) -> torch.Tensor:
        """[T, topk] int32: positions each query keeps in its own request, ascending, then -1."""
        q, w = self.queries(x, c_q, batch.positions)
        return index_select(
            q,
            w,
            cache,
            batch.query_start,
            batch.context_lens,
            batch.block_table,
            topk=self.config.topk,
            fp8_query=cache.record.fields[0].dtype == torch.float8_e4m3fn,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
        )


class Attention:
    """Multi-head latent attention; `slots` carries one layer's selection to those that share it."""

    def __init__(self, c: DeepseekConfig, w: Weights, prefix: str, index: bool) -> None:
        self.config, self.scale = c, c.softmax_scale
        self.heads, self.latent = c.num_heads, c.kv_lora_rank
        self.nope, self.rope, self.value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        q_width = c.num_heads * (self.nope + self.rope)
        q_a: tuple[Weight, ...] = ()
        if c.q_lora_rank is None:
            self.q = w.linear(f"{prefix}.q_proj", q_width, c.hidden_size)
        else:
            q_a = (w.linear(f"{prefix}.q_a_proj", c.q_lora_rank, c.hidden_size),)
            self.q_norm = w.tensor(f"{prefix}.q_a_layernorm.weight", (c.q_lora_rank,))
            self.q = w.linear(f"{prefix}.q_b_proj", q_width, c.q_lora_rank)
        kv_a = w.linear(f"{prefix}.kv_a_proj_with_mqa", self.latent + self.rope, c.hidden_size)
        self.qkv_a = joined(*q_a, kv_a)
        self.kv_norm = w.tensor(f"{prefix}.kv_a_layernorm.weight", (self.latent,))
        # Dequantized whole before it is cut into heads: GLM's 448 rows a head are 3.5 FP8 blocks.
        kv_b = w.dense(f"{prefix}.kv_b_proj", self.heads * (self.nope + self.value), self.latent)
        kv_b = kv_b.view(self.heads, self.nope + self.value, self.latent)
        self.w_uk, self.w_uv = kv_b[:, : self.nope], kv_b[:, self.nope :]  # [H, dn|dv, dc]
        self.o = w.linear(f"{prefix}.o_proj", c.hidden_size, self.heads * self.value)
        self.rotary = Rotary(self.rope, c.rope, interleaved=True)
        self.indexer: Indexer | None = None
        if index and c.indexer is not None:
            self.indexer = Indexer(c, c.indexer, w, f"{prefix}.indexer")

    def __call__(
        self, x: torch.Tensor, batch: Batch, split: Split, cache: LayerCache, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        eps, q_rank = self.config.latent_norm_eps, self.config.q_lora_rank or 0
        c_q, kv = multiplied(x, self.qkv_a).split([q_rank, self.latent + self.rope], -1)
        c_q = rms_norm(c_q, self.q_norm, eps=eps) if q_rank else x
        q = linear(c_q, self.q).unflatten(-1, (self.heads, self.nope + self.rope))
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        q_rope = self.rotary(q_rope, batch.positions)

        latent_write(
            cache.latent,
            batch.slots,
            kv,
            self.kv_norm,
            batch.positions,
            self.rotary.table(x.device),
            eps=eps,
            attention_factor=self.rotary.attention_factor,
            interleaved=self.rotary.interleaved,
        )
        if self.indexer is not None:
            assert cache.index is not None
            # Written even while every context is short: the keys are needed once it has grown.
            self.indexer.write_keys(x, batch, cache.index)
            if split.sparse is not None:
                rows, part = split.sparse
                indices = self.indexer.select(x[rows], c_q[rows], part, cache.index)
                slots = logical_to_physical(
                    indices, part.request_of_token, part.block_table, page_size=part.page_size
                )

        parts: list[tuple[torch.Tensor | slice, torch.Tensor]] = []
        if split.expanded is not None:
            rows, part = split.expanded
            parts.append((rows, self._expanded(q_nope[rows], q_rope[rows], part, cache.latent)))
        if split.absorbed is not None:
            rows, part = split.absorbed
            q_latent = self._absorb(q_nope[rows], q_rope[rows])
            o, _ = mla_paged(
                q_latent,
                cache.latent,
                part.query_start,
                part.context_lens,
                part.block_table,
                scale=self.scale,
                d_v=self.latent,
                max_query_len=part.max_query_len,
                max_context_len=part.max_context_len,
            )
            parts.append((rows, self._unabsorb(o)))
        if split.sparse is not None:
            rows, _ = split.sparse
            q_latent = self._absorb(q_nope[rows], q_rope[rows])
            o, _, _ = mla_sparse(q_latent, cache.latent, slots, scale=self.scale, d_v=self.latent)
            parts.append((rows, self._unabsorb(o)))
        return linear(self._joined(x, parts).flatten(1), self.o), slots

    def _joined(
        self, x: torch.Tensor, parts: Sequence[tuple[torch.Tensor | slice, torch.Tensor]]
    ) -> torch.Tensor:
        """The parts' rows in their places, [T, H, dv]; most steps have one part of all rows."""
        if len(parts) == 1 and isinstance(parts[0][0], slice):
            return parts[0][1]
        out = x.new_zeros(x.shape[0], self.heads, self.value)
        for rows, part in parts:
            out[rows] = part
        return out

    def _absorb(self, q_nope: torch.Tensor, q_rope: torch.Tensor) -> torch.Tensor:
        """[T, H, dn], [T, H, dr] -> [T, H, dc + dr]: queries that meet the cached record as is."""
        q_latent = torch.bmm(q_nope.transpose(0, 1), self.w_uk).transpose(0, 1)
        return torch.cat([q_latent, q_rope], -1)

    def _unabsorb(self, o: torch.Tensor) -> torch.Tensor:
        """[T, H, dc] -> [T, H, dv]"""
        return torch.bmm(o.transpose(0, 1), self.w_uv.transpose(1, 2)).transpose(0, 1)

    def _expanded(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, part: Batch, cache: PagedCache
    ) -> torch.Tensor:
        """Attention over per-head keys and values, expanded from each context's latents."""
        record, key_start = cache_gather(
            cache, part.context_lens, part.block_table, num_keys=sum(part.key_lens)
        )
        c, k_rope = record.to(q_nope.dtype).split([self.latent, self.rope], -1)
        k_nope = torch.einsum("sc,hnc->shn", c, self.w_uk)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.heads, -1)], -1)
        v = torch.einsum("sc,hvc->shv", c, self.w_uv)
        q = torch.cat([q_nope, q_rope], -1)
        out, _ = attention_prefill(q, k, v, part.query_start, key_start, scale=self.scale)
        return out


class Layer:
    """h += Attention(RMSNorm(h));  h += (Mlp | Moe)(RMSNorm(h))"""

    def __init__(self, c: DeepseekConfig, w: Weights, index: int) -> None:
        prefix, self.eps = f"model.layers.{index}", c.rms_norm_eps
        full = c.indexer is not None and c.indexer.full_layers[index]
        self.attention_norm = w.tensor(f"{prefix}.input_layernorm.weight", (c.hidden_size,))
        self.attention = Attention(c, w, f"{prefix}.self_attn", full)
        self.mlp_norm = w.tensor(f"{prefix}.post_attention_layernorm.weight", (c.hidden_size,))
        self.mlp: Mlp | Moe
        if c.moe is not None and c.moe.sparse_layers[index]:
            self.mlp = Moe(c.moe, w, f"{prefix}.mlp", c.hidden_size)
        else:
            self.mlp = Mlp(w, f"{prefix}.mlp", c.hidden_size, c.intermediate_size)

    def __call__(
        self,
        h: torch.Tensor,
        delta: torch.Tensor,
        batch: Batch,
        split: Split,
        cache: LayerCache,
        slots: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """h + delta -> the same for the next layer: a sum is formed where it is next read."""
        h, x = add_rms_norm(h, delta, self.attention_norm, eps=self.eps)
        out, slots = self.attention(x, batch, split, cache, slots)
        h, rows = add_rms_norm_for(self.mlp.readers, h, out, self.mlp_norm, eps=self.eps)
        return h, self.mlp(rows), slots


class DeepseekModel:
    """Token ids and paged caches to logits."""

    def __init__(self, config: DeepseekConfig, weights: Weights) -> None:
        c = self.config = config
        self.embed = weights.tensor("model.embed_tokens.weight", (c.vocab_size, c.hidden_size))
        self.layers = [Layer(c, weights, i) for i in range(c.num_layers)]
        self.norm = weights.tensor("model.norm.weight", (c.hidden_size,))
        # Up to this many tokens a query attends to every key of its context; None: always.
        self.dense_context = None if c.indexer is None else c.indexer.topk
        self.lm_head = self.embed
        if not c.tie_word_embeddings:
            self.lm_head = weights.tensor("lm_head.weight", (c.vocab_size, c.hidden_size))
        # From this many query tokens on, expanding a context's heads costs less than scoring every
        # query against the 512-wide latent: q (2 dc - dn - dv) > dc (dn + dv), per key and head.
        gain = 2 * c.kv_lora_rank - c.qk_nope_head_dim - c.v_head_dim
        cost = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
        self.expand_from = cost // gain + 1 if gain > 0 else None

    def cache_records(self, dtype: str) -> list[tuple[Record, Record | None]]:
        """Each layer's records for a cache of `dtype` "fp32", "bf16" or "fp8".

        Index keys are FP8 beside a BF16 latent too, as the published models cache them; only an
        fp32 cache keeps them exact.
        """
        c = self.config
        latent = latent_record(dtype, kv_lora_rank=c.kv_lora_rank, rope_dim=c.qk_rope_head_dim)
        index: Record | None = None
        if c.indexer is not None:
            key = "fp32" if dtype == "fp32" else "fp8"
            index = index_key_record(key, head_dim=c.indexer.head_dim)
        return [(latent, index if layer.attention.indexer else None) for layer in self.layers]

    def allocate(
        self, num_pages: int, *, page_size: int, dtype: str, device: str | torch.device = "cpu"
    ) -> list[LayerCache]:
        """Empty caches for every layer: `num_pages` pages of `page_size` tokens each."""
        caches = []
        for latent, index in self.cache_records(dtype):
            pages = PagedCache.allocate(latent, num_pages, page_size, device)
            keys = PagedCache.allocate(index, num_pages, page_size, device) if index else None
            caches.append(LayerCache(pages, keys))
        return caches

    def split(self, batch: Batch) -> Split:
        """Sparse once a context outgrows index_topk (below that DSA is dense attention exactly);
        else absorbed, or expanded for long prefill chunks."""
        topk = self.dense_context
        expanded, absorbed, sparse = [], [], []
        for i, (queries, keys) in enumerate(zip(batch.query_lens, batch.key_lens, strict=True)):
            if topk is not None and keys > topk:
                sparse.append(i)
            elif self.expand_from is not None and queries >= max(2, self.expand_from):
                expanded.append(i)
            else:
                absorbed.append(i)
        parts = [batch.select(part) if part else None for part in (expanded, absorbed, sparse)]
        return Split(*parts)

    def forward(self, batch: Batch, caches: Sequence[LayerCache]) -> torch.Tensor:
        """Logits [R, vocab] fp32 of `batch.logit_rows`; writes this step's keys to the caches."""
        split = self.split(batch)
        slots = batch.token_ids.new_empty(0, dtype=torch.int32)
        h = self.embed[batch.token_ids]
        delta = torch.zeros_like(h)
        for layer, cache in zip(self.layers, caches, strict=True):
            h, delta, slots = layer(h, delta, batch, split, cache, slots)
        rows, eps = batch.logit_rows, self.config.rms_norm_eps
        _, x = add_rms_norm(h[rows], delta[rows], self.norm, eps=eps)
        return linear(x, self.lm_head, out_dtype=torch.float32)
