"""A compact GLM-5-architecture language model: MLA, DSA with shared indices, and MoE.

Attention is written densely, as masked softmax, because training needs the full probabilities:
the indexer learns from them. Parameter names are those of the Hugging Face `glm_moe_dsa`
checkpoint, so exporting is a cast.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 64
    v_head_dim: int = 32
    q_lora_rank: int = 128
    kv_lora_rank: int = 512
    index_n_heads: int = 32
    index_head_dim: int = 128
    index_topk: int = 128
    index_topk_freq: int = 2
    index_skip_topk_offset: int = 1
    intermediate_size: int = 512
    moe_intermediate_size: int = 64
    n_routed_experts: int = 8
    num_experts_per_tok: int = 4
    first_k_dense_replace: int = 1
    routed_scaling_factor: float = 2.5
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def is_full(self, layer: int) -> bool:
        """Whether the layer has an indexer; the others reuse the latest full layer's indices."""
        return max(layer - self.index_skip_topk_offset + 1, 0) % self.index_topk_freq == 0

    def to_hf(self) -> dict[str, object]:
        kinds = ["full" if self.is_full(i) else "shared" for i in range(self.num_hidden_layers)]
        values = asdict(self)
        theta = values.pop("rope_theta")
        return {
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
            **values,
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.qk_rope_head_dim,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "indexer_rope_interleave": True,
            "rope_interleave": True,
            "indexer_types": kinds,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }


class Output(NamedTuple):
    logits: Tensor  # [B, T, vocab]
    index_loss: Tensor  # KL(attention || indexer), mean over tokens, summed over full layers
    load: Tensor  # [MoE layers, experts], the fraction of tokens each expert received


def rope_table(config: Config, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    d = config.qk_rope_head_dim
    inverse = config.rope_theta ** (-torch.arange(0, d, 2, device=device).float() / d)
    angle = torch.arange(length, device=device).float()[:, None] * inverse
    return angle.cos(), angle.sin()  # [T, d/2]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved rotary embedding over the last dimension of `x: [B, T, heads, d]`."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Indexer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.dim, self.rope = c.index_n_heads, c.index_head_dim, c.qk_rope_head_dim
        self.wq_b = linear(c.q_lora_rank, self.heads * self.dim)
        self.wk = linear(c.hidden_size, self.dim)
        self.k_norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.weights_proj = linear(c.hidden_size, self.heads)

    def forward(self, x: Tensor, c_q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """I(t,s) = sum_h w[t,h] * relu(q[t,h] . k[s]): [B, T, T] fp32, not yet causal."""
        q = self.wq_b(c_q).unflatten(-1, (self.heads, self.dim))  # [B, T, H, D]
        k = self.k_norm(self.wk(x).float()).to(q.dtype)[:, :, None]  # [B, T, 1, D]
        r = self.rope
        q = torch.cat((rotate(q[..., :r], cos, sin), q[..., r:]), -1)
        k = torch.cat((rotate(k[..., :r], cos, sin), k[..., r:]), -1)[:, :, 0]
        scores = q.flatten(1, 2) @ k.transpose(1, 2)  # [B, T*H, T]
        scores = scores.unflatten(1, (-1, self.heads)).relu()  # [B, T, H, T]
        w = self.weights_proj(x) * (self.heads * self.dim) ** -0.5
        return torch.einsum("bth,bths->bts", w, scores).float()


class Attention(nn.Module):
    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.c = c
        h, dn, dr, dv = (
            c.num_attention_heads,
            c.qk_nope_head_dim,
            c.qk_rope_head_dim,
            c.v_head_dim,
        )
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = linear(c.q_lora_rank, h * (dn + dr))
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + dr)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = linear(c.kv_lora_rank, h * (dn + dv))
        self.o_proj = linear(h * dv, c.hidden_size)
        self.indexer = Indexer(c) if c.is_full(layer) else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, dense: Tensor, visible: Tensor, shared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> output, head-averaged probabilities, index scores, allowed: [B, T, T] each.

        A layer without an indexer takes `visible` and `shared` (mask and scores) as they come.
        """
        c = self.c
        dn, dr = c.qk_nope_head_dim, c.qk_rope_head_dim
        c_q = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(c_q).unflatten(-1, (-1, dn + dr))  # [B, T, H, dn+dr]
        q = torch.cat((q[..., :dn], rotate(q[..., dn:], cos, sin)), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, dr), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (-1, dn + c.v_head_dim))
        k_rope = rotate(k_rope[:, :, None], cos, sin).expand(-1, -1, kv.shape[2], -1)
        k = torch.cat((kv[..., :dn], k_rope), -1)
        v = kv[..., dn:]

        index = shared
        if self.indexer is not None:
            # Detached: the indexer must not shape what it is trained to imitate.
            index = self.indexer(x.detach(), c_q.detach(), cos, sin)
            visible = select(index.detach(), c.index_topk, dense)
        scores = torch.einsum("bthd,bshd->bhts", q, k).float() * (dn + dr) ** -0.5
        p = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        out = torch.einsum("bhts,bshd->bthd", p.to(v.dtype), v).flatten(-2)
        return self.o_proj(out), p.detach().mean(1), index, visible


def select(index: Tensor, topk: int, dense: Tensor) -> Tensor:
    """The causal keys among each query's top-k scores; all of them where `dense` is true."""
    t = index.shape[-1]
    causal = torch.ones(t, t, dtype=torch.bool, device=index.device).tril()
    if t <= topk:
        return causal.expand_as(index)
    index = index.masked_fill(~causal, float("-inf"))
    threshold = index.topk(topk, dim=-1).values[..., -1:]
    return causal & ((index >= threshold) | dense)


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, inner)
        self.up_proj = linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> Tensor:
        """-> [.., experts] fp32 weights, zero where an expert was not chosen."""
        with torch.autocast(x.device.type, enabled=False):
            p = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (p + self.e_score_correction_bias).topk(self.c.num_experts_per_tok, -1).indices
        w = p * torch.zeros_like(p).scatter(-1, chosen, 1.0)
        return w / (w.sum(-1, keepdim=True) + 1e-20) * self.c.routed_scaling_factor


class MoE(nn.Module):
    """Every expert runs on every token: at this size two wide products beat any gather."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate = Router(c)
        self.experts = nn.ModuleList(
            MLP(c.hidden_size, c.moe_intermediate_size) for _ in range(c.n_routed_experts)
        )
        self.shared_experts = MLP(c.hidden_size, c.moe_intermediate_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.gate(x)  # [B, T, E]
        gate = F.linear(x, torch.cat([e.gate_proj.weight for e in self.experts]))
        up = F.linear(x, torch.cat([e.up_proj.weight for e in self.experts]))
        inner = (F.silu(gate) * up).unflatten(-1, (len(self.experts), -1))
        inner = (inner * w[..., None].to(inner.dtype)).flatten(-2)
        out = F.linear(inner, torch.cat([e.down_proj.weight for e in self.experts], 1))
        return out + self.shared_experts(x), (w > 0).float().mean((0, 1))


class Layer(nn.Module):
    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.mlp: nn.Module = (
            MLP(c.hidden_size, c.intermediate_size) if layer < c.first_k_dense_replace else MoE(c)
        )
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Backbone(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Bard(nn.Module):
    def __init__(self, c: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropout = c, dropout
        self.model = Backbone(c)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = 0.02 if "embed" in name else p.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= (2 * c.num_hidden_layers) ** -0.5
                nn.init.normal_(p, std=std)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def forward(self, tokens: Tensor, dense: Tensor) -> Output:
        """tokens: [B, T]; dense: 0-d bool, true while attention ignores the indexer's choice.

        `dense` is a tensor, so one compiled graph serves both phases.
        """
        c = self.config
        cos, sin = rope_table(c, tokens.shape[1], tokens.device)
        x = self.drop(self.model.embed_tokens(tokens))
        visible = shared = torch.empty(0, device=tokens.device)
        groups: list[tuple[Tensor, Tensor, list[Tensor]]] = []
        loads = []
        for layer in self.model.layers:
            out, p, shared, visible = layer.self_attn(
                layer.input_layernorm(x), cos, sin, dense, visible, shared
            )
            if layer.self_attn.indexer is not None:
                groups.append((shared, visible, []))
            groups[-1][2].append(p)
            x = x + self.drop(out)
            h = layer.post_attention_layernorm(x)
            if isinstance(layer.mlp, MoE):
                h, load = layer.mlp(h)
                loads.append(load)
            else:
                h = layer.mlp(h)
            x = x + self.drop(h)
        x = self.model.norm(x)
        logits = F.linear(x, self.model.embed_tokens.weight)
        # One indexer serves its own layer and those that share it: the target is their mean.
        index_loss = sum(
            (index_kl(torch.stack(ps).mean(0), index, visible) for index, visible, ps in groups),
            torch.zeros((), device=x.device),
        )
        return Output(logits, index_loss, torch.stack(loads))


def index_kl(p: Tensor, index: Tensor, visible: Tensor) -> Tensor:
    """KL(p || softmax of the index scores over the visible set), mean over queries."""
    log_q = index.masked_fill(~visible, float("-inf")).log_softmax(-1)
    term = p * (p.clamp_min(1e-12).log() - log_q.masked_fill(~visible, 0.0))
    return term.sum(-1).mean()
