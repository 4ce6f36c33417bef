"""Linear layers and experts of the speed table, with their least work.

Every call of a linear layer meets another weight, every call of experts other experts, out of more
than a cache holds: that is how a model reads its weights.
"""

import math
from dataclasses import replace
from functools import cache, partial

import torch

from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.weights import Weight
from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker, Timing
from sparkwell.verify.weights import weight

GROUP = 128  # columns of a scale of FP8 activations; rows that groups of rows are aligned to
BYTES = {"nvfp4": 9 / 16, "int4": 1 / 2 + 2 / GROUP, "fp8-block": 1 + 4 / GROUP**2}  # of a value
FP8_ROW = 1 + 4 / GROUP  # bytes of a value of quantized activations


def _weight(make: Maker, form: str, *shape: int) -> Weight:
    """As every peer can take it: NVFP4 with one scale a tensor, INT4 without zero points."""
    made = weight(make, form, *shape)
    if isinstance(made, torch.Tensor):
        return made
    if isinstance(made, Int4Group):
        return replace(made, zeros=None)
    factor = shape[-1] ** -0.5 / 3
    return made.changed(lambda name, t: torch.full_like(t, factor) if name == "row_scales" else t)


def _quantized(x: torch.Tensor) -> Fp8Block:
    """Activations with a scale per token and 128 columns."""
    values, scales = quantize_fp8_rows(x, GROUP)
    return Fp8Block(values, scales, (1, GROUP))


# ---------------------------------------------------------------- linear layers

FP4_SHAPES = ((6144, 4096), (28672, 4096), (4096, 14336), (2048, 6144))  # n, k
FP8_SHAPES = ((7168, 2048), (4096, 7168), (24576, 1536))


def _linear(make: Maker, *, form: str, arithmetic: str, shape: tuple[int, int, int]) -> Inputs:
    m, n, k = shape
    if arithmetic == "w8a8":  # quantized already: the product alone
        return {"x": _quantized(make.randn(m, k)), "weight": _weight(make, form, n, k)}
    x = make.randn(m, k, dtype=torch.bfloat16)
    return {"x": x, "weight": _weight(make, form, n, k), "arithmetic": arithmetic}


def linear_case(form: str, arithmetic: str, m: int, n: int, k: int) -> Case:
    """A linear layer of the speed table."""
    narrow = arithmetic == "w8a8"
    nbytes = int(BYTES[form] * n * k + (FP8_ROW if narrow else 2) * m * k) + 2 * m * n
    timing = Timing(2 * m * n * k, nbytes, math="fp8" if narrow else "bf16")
    make = partial(_linear, form=form, arithmetic=arithmetic, shape=(m, n, k))
    # Where many rows share a weight it is rounded to bfloat16 first.
    limit = ("matmul", "rounded" if m > 64 and not narrow else "bf16")
    name = f"{form.split('-')[0]}-{arithmetic}-{m}x{n}x{k}"
    return Case("linear", name, make, "timed", (limit,), timing=timing)


# ---------------------------------------------------------------- products by groups of rows

EXPERTS, TOPK = 256, 8  # of DeepSeek-V3 and GLM-5
ROOM = 128  # rows that each group has room for, where few come


@cache
def routed(tokens: int, experts: int) -> tuple[int, ...]:
    """How many of so many tokens each expert gets, each token's drawn evenly: always the same."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, experts, generator=generator).topk(TOPK).indices
    return tuple(ids.flatten().bincount(minlength=experts).tolist())


def served(inputs: Inputs) -> torch.Tensor:
    """True at the rows that belong to a group: [R], or [G, M] where rows are counted."""
    groups = inputs["groups"]
    if inputs["layout"] == "rows":
        return groups >= 0
    return torch.arange(inputs["x"].shape[1], device=groups.device) < groups[:, None]


def _grouped(
    make: Maker, *, tokens: int, experts: int, n: int, k: int, layout: str, room: int
) -> Inputs:
    """Rows of no group are zeros, which a peer may read."""
    counts, found = routed(tokens, experts), []
    if layout == "rows":
        for group, count in enumerate(counts):
            found += [group] * count + [-1] * (-count % GROUP)
    else:
        found = list(counts)
    inputs: Inputs = {
        "weight": _weight(make, "fp8-block", experts, n, k),
        "groups": torch.tensor(found, dtype=torch.int32, device=make.device),
        "layout": layout,
        "expected_rows": max(1, tokens * TOPK // experts),
    }
    return inputs | _grouped_redraw(make, inputs, room=room, k=k)


def _grouped_redraw(make: Maker, inputs: Inputs, *, room: int, k: int) -> Inputs:
    groups = inputs["groups"]
    if inputs["layout"] == "rows":
        return {"x": _quantized(make.randn(len(groups), k) * (groups >= 0)[:, None])}
    mine = torch.arange(room, device=groups.device) < groups[:, None]
    x = _quantized((make.randn(len(groups), room, k) * mine[..., None]).flatten(0, 1))
    return {"x": x.changed(lambda _, t: t.unflatten(0, (-1, room)))}


def _same_rows(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    rows = served(inputs)
    assert_matches(got[rows], want[rows], "matmul", "bf16", label="grouped_linear")


def _grouped_case(
    model: str, layer: str, tokens: int, n: int, k: int, *, experts: int = EXPERTS, room: int = ROOM
) -> Case:
    pairs, read = tokens * TOPK, sum(count > 0 for count in routed(tokens, experts))
    nbytes = int(read * BYTES["fp8-block"] * n * k + pairs * FP8_ROW * k) + 2 * pairs * n
    many = pairs >= GROUP * experts
    layout = "rows" if many else "counted"
    make = partial(
        _grouped, tokens=tokens, experts=experts, n=n, k=k, layout=layout, room=room
    )  # fmt: skip
    timing = Timing(
        2 * pairs * n * k, nbytes, partial(_grouped_redraw, room=room, k=k), math="fp8"
    )  # fmt: skip
    name = f"fp8-{model}-{layer}-{'prefill' if many else 'decode'}-{tokens}"
    return Case("grouped_linear", name, make, "timed", check=_same_rows, timing=timing)


# ---------------------------------------------------------------- experts

GLM = (EXPERTS, 6144, 2048)  # experts, hidden, width


def _experts(make: Maker, *, tokens: int, shape: tuple[int, int, int]) -> Inputs:
    num, hidden, width = shape
    inputs: Inputs = {
        "gate_up": _weight(make, "nvfp4", num, 2 * width, hidden),
        "down": _weight(make, "nvfp4", num, hidden, width),
        "arithmetic": "w4a16",
    }
    return inputs | _experts_redraw(make, inputs, tokens=tokens)


def _experts_redraw(make: Maker, inputs: Inputs, *, tokens: int) -> Inputs:
    num, hidden = inputs["down"].shape[:2]
    return {
        "x": make.randn(tokens, hidden, dtype=torch.bfloat16),
        "ids": make.randn(tokens, num).topk(TOPK).indices,
        "weights": make.randn(tokens, TOPK).softmax(-1),
    }


def _experts_case(model: str, tokens: int, shape: tuple[int, int, int]) -> Case:
    num, hidden, width = shape
    read = num * (1 - (1 - TOPK / num) ** tokens)  # experts that some token names, on average
    nbytes = math.ceil(read * 3 * width * hidden * BYTES["nvfp4"]) + 4 * tokens * hidden
    flops = 2 * tokens * TOPK * 3 * width * hidden
    timing = Timing(flops, nbytes, partial(_experts_redraw, tokens=tokens))
    make = partial(_experts, tokens=tokens, shape=shape)
    limit = ("experts", "bf16")
    name = f"nvfp4-w4a16-{model}-b{tokens}"
    return Case("experts", name, make, "timed", (limit,), timing=timing)


CASES: tuple[Case, ...] = (
    *(
        linear_case("nvfp4", "w4a16", m, n, k)
        for n, k in FP4_SHAPES
        for m in (1, 4, 16, 64, 256, 4096)
    ),
    *(linear_case("int4", "w4a16", 1, n, k) for n, k in FP4_SHAPES),
    *(
        linear_case("fp8-block", "w8a8", m, n, k)
        for n, k in FP8_SHAPES
        for m in (1, 16, 128, 4096)
    ),
    *(linear_case("fp8-block", "w8a16", m, n, k) for n, k in FP8_SHAPES for m in (1, 16)),
    *(
        _grouped_case(model, layer, tokens, n, k)
        for model, layer, n, k in (
            ("v3", "up", 4096, 7168), ("v3", "down", 7168, 2048),
            ("glm5", "up", 4096, 6144), ("glm5", "down", 6144, 2048),
        )
        for tokens in (4096, 8, 64)
    ),
    *(_experts_case("glm5", tokens, GLM) for tokens in (1, 8, 64)),
)  # fmt: skip
