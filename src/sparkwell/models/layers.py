"""Blocks that both families use unchanged: the feed-forward layers and the rotary table."""

from dataclasses import asdict
from functools import partial

import torch

from sparkwell.checkpoints.config import MoeConfig, RopeConfig
from sparkwell.formats.weights import Weight, join, unjoinable
from sparkwell.models.products import Rows, experts, linear, swiglu_for
from sparkwell.models.weights import Weights
from sparkwell.ops.moe import route_sigmoid, route_softmax
from sparkwell.ops.rope import rope, rope_frequencies


class Rotary:
    """RoPE with one table of frequencies; `interleaved` pairs (2i, 2i+1), else (i, i + d/2)."""

    def __init__(self, dim: int, config: RopeConfig, *, interleaved: bool) -> None:
        self.inv_freq, self.attention_factor = rope_frequencies(dim, **asdict(config))
        self.interleaved = interleaved
        self._on: dict[torch.device, torch.Tensor] = {}

    def table(self, device: torch.device) -> torch.Tensor:
        """The frequencies, on `device`."""
        if device not in self._on:  # once: a copy from the host is a wait
            self._on[device] = self.inv_freq.to(device)
        return self._on[device]

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return rope(
            x,
            positions,
            self.table(x.device),
            attention_factor=self.attention_factor,
            interleaved=self.interleaved,
        )


class Mlp:
    """W_down(silu(W_gate x) * (W_up x))."""

    def __init__(self, weights: Weights, prefix: str, hidden: int, width: int) -> None:
        self.gate_up = joined(
            weights.linear(f"{prefix}.gate_proj", width, hidden),
            weights.linear(f"{prefix}.up_proj", width, hidden),
        )
        self.down: Weight = weights.linear(f"{prefix}.down_proj", hidden, width)

    @property
    def readers(self) -> tuple[Weight, ...]:
        """What x is multiplied by, where nothing else reads it."""
        return self.gate_up

    def __call__(self, x: Rows) -> torch.Tensor:
        return linear(swiglu_for(self.down, multiplied(x, self.gate_up)), self.down)


def joined(*weights: Weight) -> tuple[Weight, ...]:
    """Weights of the same input: one below the other where every row stays as it is, so that there
    is one product; else apart (other formats, other static scales of x, FP8 blocks that a join
    would cut)."""
    return weights if unjoinable(weights) else (join(weights),)


def multiplied(
    x: Rows, weights: tuple[Weight, ...], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What `joined` weights make of x, side by side; bias: of all their outputs, or None."""
    if len(weights) == 1:
        return linear(x, weights[0], bias)
    rows = [weight.shape[0] for weight in weights]
    biases = [None] * len(rows) if bias is None else bias.split(rows)
    return torch.cat([linear(x, w, b) for w, b in zip(weights, biases, strict=True)], -1)


class Moe:
    """sum_j w_j Expert_j(x) + Shared(x), over the experts the router picks for each token."""

    readers: tuple[Weight, ...] = ()  # the router and the experts read x as it is

    def __init__(self, config: MoeConfig, weights: Weights, prefix: str, hidden: int) -> None:
        self.config = config
        self.router = weights.dense(f"{prefix}.gate", config.num_experts, hidden)
        self.bias: torch.Tensor | None = None
        if config.scoring == "sigmoid":
            name, shape = f"{prefix}.gate.e_score_correction_bias", (config.num_experts,)
            self.bias = weights.tensor(name, shape, fp32=True)
        names = [f"{prefix}.experts.{e}" for e in range(config.num_experts)]
        pairs = [(f"{name}.gate_proj", f"{name}.up_proj") for name in names]
        self.gate_up = weights.stack(pairs, config.width, hidden)
        self.down = weights.stack([(f"{name}.down_proj",) for name in names], hidden, config.width)
        self.shared: Mlp | None = None
        if config.shared_width:
            self.shared = Mlp(weights, f"{prefix}.shared_experts", hidden, config.shared_width)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Routing weights [T, k] fp32 and expert ids [T, k]; the router always runs in fp32."""
        c, logits = self.config, linear(x, self.router, out_dtype=torch.float32)
        route = route_softmax if self.bias is None else partial(route_sigmoid, bias=self.bias)
        return route(
            logits,
            topk=c.topk,
            n_group=c.n_group,
            topk_group=c.topk_group,
            normalize=c.normalize,
            scale=c.scale,
        )

    def __call__(self, x: Rows) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        weights, ids = self.route(x)
        y = experts(x, ids, weights, self.gate_up, self.down)
        return y if self.shared is None else y + self.shared(x)
