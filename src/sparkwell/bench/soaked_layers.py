"""What the soaks of linear layers and experts replay: every kernel of few and of many rows.

The weights together are more than a cache holds, so that copies come late and out of order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparkwell.bench.soak import Tensors, Workload
from sparkwell.ops.linear import linear
from sparkwell.ops.moe import experts, route_sigmoid
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Maker
from sparkwell.verify.weights import weight


@dataclass(frozen=True)
class Layer:
    """A linear layer.  rows: of x, each one a call."""

    form: str
    arithmetic: str
    n: int
    k: int
    rows: tuple[int, ...]


LAYERS = (
    Layer("fp8-block", "w8a8", 4096, 7168, (1, 16, 64, 200)),
    Layer("fp8-block", "w8a8", 7168, 2048, (3, 16, 64)),
    Layer("fp8-rows", "w8a8", 2112, 7168, (5, 300)),
    Layer("nvfp4", "w4a16", 6144, 4096, (1, 4, 16, 64, 256)),
    Layer("nvfp4", "w4a16", 28672, 4096, (2, 16)),
    Layer("int4", "w4a16", 6144, 4096, (1, 16)),
    Layer("mxfp4", "w4a16", 2048, 6144, (1, 16)),
)
LIMITS = {"w8a8": "bf16", "w4a16": "rounded"}  # of many rows weights are rounded first


@dataclass(frozen=True)
class Experts:
    """A layer of experts.  tokens: of x, each one a call."""

    experts: int = 64
    topk: int = 8
    hidden: int = 4096
    width: int = 1024
    tokens: tuple[int, ...] = (1, 8, 64)
    forms: tuple[tuple[str, str], ...] = (("nvfp4", "w4a16"), ("fp8-block", "w8a8"))


def linear_layers(
    layers: Sequence[Layer], sets: int, device: torch.device, backend: str
) -> Workload:
    """Each layer once for every number of rows it has; x changes, weights stay."""
    make = Maker(device)
    weights = [weight(make, layer.form, layer.n, layer.k) for layer in layers]
    calls = [(i, m) for i, layer in enumerate(layers) for m in layer.rows]

    def draw(seed: int) -> Tensors:
        make = Maker(device, seed=seed)
        return {f"{i}-{m}": make.randn(m, layers[i].k, dtype=torch.bfloat16) for i, m in calls}

    def run(x: Tensors, backend: str = backend) -> Tensors:
        return {
            name: linear(x[name], weights[i], arithmetic=layers[i].arithmetic, backend=backend)
            for i, m in calls
            for name in (f"{i}-{m}",)
        }

    def check(x: Tensors, got: Tensors) -> None:
        want = run(x, "reference")
        for i, m in calls:
            name, limit = f"{i}-{m}", LIMITS[layers[i].arithmetic]
            assert_matches(got[name], want[name], "matmul", limit, label=f"{layers[i]}, {m} rows")

    shape = {"layers": len(layers), "calls": len(calls), "sets": sets}
    return Workload("linear_layers", [draw(i) for i in range(sets)], run, check, shape)


def expert_layers(shape: Experts, sets: int, device: torch.device, backend: str) -> Workload:
    """Router and experts, in each format, once for every number of tokens."""
    make, s = Maker(device), shape
    gate_up = [weight(make, form, s.experts, 2 * s.width, s.hidden) for form, _ in s.forms]
    down = [weight(make, form, s.experts, s.hidden, s.width) for form, _ in s.forms]
    bias = make.randn(s.experts, scale=0.01)

    def draw(seed: int) -> Tensors:
        make, found = Maker(device, seed=seed), {}
        for tokens in s.tokens:
            found[f"x-{tokens}"] = make.randn(tokens, s.hidden, dtype=torch.bfloat16)
            found[f"logits-{tokens}"] = make.randn(tokens, s.experts)
        return found

    def run(x: Tensors, backend: str = backend) -> Tensors:
        options: dict[str, Any] = {
            "topk": s.topk,
            "n_group": 1,
            "topk_group": 1,
            "normalize": True,
            "scale": 2.5,
        }
        found = {}
        for tokens in s.tokens:
            logits = x[f"logits-{tokens}"]
            weights, ids = route_sigmoid(logits, bias, **options, backend=backend)
            found[f"ids-{tokens}"] = ids
            for i, (form, arithmetic) in enumerate(s.forms):
                found[f"{form}-{tokens}"] = experts(
                    x[f"x-{tokens}"], ids, weights, gate_up[i], down[i],
                    arithmetic=arithmetic, backend=backend,
                )  # fmt: skip
        return found

    def check(x: Tensors, got: Tensors) -> None:
        for name, want in run(x, "reference").items():
            if name.startswith("ids"):
                assert got[name].equal(want), f"{name}: other experts"
            else:
                limit = "fp8" if name.startswith("fp8") else "bf16"
                assert_matches(got[name], want, "experts", limit, label=name)

    counts = {k: v for k, v in asdict(s).items() if isinstance(v, int)}
    sets_of = [draw(i) for i in range(sets)]
    return Workload("expert_layers", sets_of, run, check, counts | {"sets": sets})
