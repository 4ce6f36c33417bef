"""Routers against plain Python and Transformers; experts against a loop over tokens."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_block
from sparkwell.formats.weights import dequantize
from sparkwell.ops.linear import activations_reference
from sparkwell.ops.moe import (
    experts,
    experts_reference,
    grouped_linear,
    route_sigmoid,
    route_softmax,
)
from sparkwell.testing import assert_matches, in_poison
from sparkwell.verify.case import Maker
from sparkwell.verify.weights import FORMATS, weight


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


V3 = {"topk": 8, "n_group": 8, "topk_group": 4, "normalize": True, "scale": 2.5}
GROUPINGS: dict[str, dict[str, Any]] = {
    "V3": V3,
    "GLM-5": V3 | {"n_group": 1, "topk_group": 1},
    "one group of many": V3 | {"topk": 4, "topk_group": 1},
    "all groups": V3 | {"topk_group": 8},
    "every expert of the best": V3 | {"n_group": 16, "topk_group": 2, "topk": 8},
    "not normalized": V3 | {"normalize": False, "scale": 16.0},
    "one": V3 | {"topk": 1, "scale": 1.0},
}


def best_first(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def by_hand(
    row: list[float], choice: list[float], options: dict[str, Any], *, softmax: bool
) -> tuple[list[int], list[float]]:
    """One token: `choice` decides, `row` weighs; groups by the sum of two, or the best of them."""
    size = len(row) // options["n_group"]
    groups = [choice[g * size : (g + 1) * size] for g in range(options["n_group"])]
    scores = [max(g) if softmax else sum(sorted(g)[-2:]) for g in groups]
    kept = best_first(scores, options["topk_group"])
    outside = 0.0 if softmax else -math.inf
    choice = [c if i // size in kept else outside for i, c in enumerate(choice)]
    ids = best_first(choice, options["topk"])
    weights = [row[i] for i in ids]
    if options["normalize"]:
        weights = [w / (sum(row[i] for i in ids) + 1e-20) for w in weights]
    return ids, [w * options["scale"] for w in weights]


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize("softmax", [False, True])
def test_routers_are_their_rule(name: str, softmax: bool) -> None:
    options, logits, bias = GROUPINGS[name], in_poison(2.0 * randn(40, 64)), in_poison(randn(64))
    if softmax:
        weights, ids = route_softmax(logits, **options)
    else:
        weights, ids = route_sigmoid(logits, bias, **options)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int64
    for t in range(40):
        scores = logits[t].softmax(-1) if softmax else logits[t].sigmoid()
        choice = (scores if softmax else scores + bias).tolist()
        want_ids, want = by_hand(scores.tolist(), choice, options, softmax=softmax)
        assert ids[t].tolist() == want_ids
        assert weights[t].tolist() == pytest.approx(want, rel=1e-5)


def same_choice(
    got: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The same experts with the same weights, in any order."""
    dense = [torch.zeros(len(ids), 64).scatter(1, ids, w) for w, ids in (got, theirs)]
    torch.testing.assert_close(dense[0], dense[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", GROUPINGS)
def test_transformers_routes_alike(name: str) -> None:
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    options, logits = GROUPINGS[name], 2.0 * randn(30, 64, seed=1)
    config = SimpleNamespace(
        num_experts_per_tok=options["topk"],
        num_experts=64,
        num_local_experts=64,
        hidden_size=64,
        routed_scaling_factor=options["scale"],
        topk_method="group_limited_greedy",
        n_group=options["n_group"],
        topk_group=options["topk_group"],
        norm_topk_prob=options["normalize"],
    )
    routers = [
        cls(config) for cls in (DeepseekV2TopkRouter, DeepseekV3TopkRouter, Qwen3MoeTopKRouter)
    ]
    for router in routers:
        router.weight.data.copy_(torch.eye(64))
    v2, v3, qwen = routers
    bias = randn(64, seed=2)
    v3.e_score_correction_bias.copy_(bias)
    with torch.no_grad():
        same_choice(route_sigmoid(logits, bias, **options), v3(logits)[1:])
        same_choice(route_softmax(logits, **options | {"normalize": False}), v2(logits)[1:])
        plain = {"topk": options["topk"], "normalize": options["normalize"], "scale": 1.0}
        same_choice(route_softmax(logits, **plain), qwen(logits)[1:])


def test_the_bias_chooses_and_does_not_weigh() -> None:
    logits, bias = torch.zeros(1, 4), torch.tensor([0.0, 5.0, 0.0, -1.0])
    options = {"n_group": 1, "topk_group": 1, "normalize": False, "scale": 3.0}
    weights, ids = route_sigmoid(logits, bias, topk=2, **options)
    assert ids.tolist() == [[1, 0]]
    assert weights.tolist() == [[1.5, 1.5]]


def test_a_group_is_worth_its_two_best() -> None:
    logits = torch.full((1, 8), -20.0)
    bias = torch.tensor([0.9, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    options = {"n_group": 2, "topk_group": 1, "normalize": False, "scale": 1.0}
    assert route_sigmoid(logits, bias, topk=2, **options)[1].tolist() == [[4, 5]]
    three = torch.tensor([0.9, 0.4, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5])
    assert route_sigmoid(logits, three, topk=2, **options)[1].tolist() == [[0, 1]]
    scores = torch.tensor([[0.4, 0.01, 0.01, 0.01, 0.3, 0.25, 0.01, 0.01]]).log()
    assert route_softmax(scores, topk=2, **options)[1][0, 0] == 0  # the best alone
    single = route_sigmoid(randn(3, 4), randn(4), topk=1, **options | {"n_group": 4})[1]
    want = (randn(3, 4).sigmoid() + randn(4)).argmax(-1)
    assert torch.equal(single[:, 0], want)  # groups of one expert have no second best


def test_negative_scores_stay_above_excluded_groups() -> None:
    bias = torch.full((8,), -10.0)
    bias[:4] = -12.0
    options = V3 | {"topk": 3, "n_group": 2, "topk_group": 1}
    ids = route_sigmoid(torch.zeros(2, 8), bias, **options)[1]
    assert ids.tolist() == [[4, 5, 6]] * 2


def test_excluded_probabilities_are_zero_as_are_vanished_ones() -> None:
    logits = torch.full((1, 8), -300.0)
    logits[0, 5] = 0.0
    options = {"topk": 3, "n_group": 2, "topk_group": 1, "normalize": True, "scale": 2.0}
    weights, ids = route_softmax(logits, **options)
    assert ids.tolist() == [[5, 0, 1]]  # all but 5 are 0.0, and the lower id wins
    assert weights.tolist() == [[2.0, 0.0, 0.0]]


@pytest.mark.parametrize("num_experts", [16, 256])
def test_ties_go_to_the_lower_group_and_expert(num_experts: int) -> None:
    flat = torch.zeros(3, num_experts)
    options = {"topk": 6, "n_group": 8, "topk_group": 4, "normalize": True, "scale": 1.0}
    want = [[0, 1, 2, 3, 4, 5]] * 3
    assert route_sigmoid(flat, torch.zeros(num_experts), **options)[1].tolist() == want
    assert route_softmax(flat, **options)[1].tolist() == want
    levels = torch.randint(
        0, 3, (20, num_experts), generator=torch.Generator().manual_seed(0)
    ).float()
    plain = options | {"n_group": 1, "topk_group": 1}
    for got in (
        route_sigmoid(levels, torch.zeros(num_experts), **plain)[1],
        route_softmax(levels, **plain)[1],
    ):
        assert got.tolist() == [best_first(row, 6) for row in levels.tolist()]


def test_vanishing_sigmoids_do_not_divide_by_zero() -> None:
    options = {"topk": 2, "n_group": 1, "topk_group": 1, "normalize": True, "scale": 1.0}
    zero = route_sigmoid(torch.full((1, 4), -200.0), torch.zeros(4), **options)[0]
    assert zero.tolist() == [[0.0, 0.0]]
    small = route_sigmoid(torch.full((1, 4), -46.0), torch.zeros(4), **options)[0]
    p = 1.0 / (1.0 + math.exp(46.0))  # 1.05e-20: as small as what is added to the sum
    assert small[0].tolist() == pytest.approx([p / (2 * p + 1e-20)] * 2, rel=1e-4)


def test_no_tokens() -> None:
    weights, ids = route_sigmoid(torch.zeros(0, 64), torch.zeros(64), **V3)
    assert weights.shape == ids.shape == (0, 8)
    weights, ids = route_softmax(torch.zeros(0, 64), **V3)
    assert weights.shape == ids.shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_group": 7}, "n_group is 7 and topk_group 4 for 64 experts, want n_group to divide"),
        ({"n_group": 0}, "n_group is 0 and"),
        ({"topk_group": 9}, "n_group is 8 and topk_group 9 .* 1 <= topk_group <= n_group"),
        ({"topk_group": 0}, "n_group is 8 and topk_group 0"),
        ({"topk": 33}, "topk is 33, want 1 to 32, the experts of 4 of 8 groups"),
        ({"topk": 0}, "topk is 0, want 1 to 32"),
    ],
)
def test_wrong_counts_are_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=f"route_sigmoid: {text}"):
        route_sigmoid(torch.zeros(2, 64), torch.zeros(64), **(V3 | change))
    with pytest.raises(BadInput, match=f"route_softmax: {text}"):
        route_softmax(torch.zeros(2, 64), **(V3 | change))


def test_wrong_logits_and_bias_are_named() -> None:
    with pytest.raises(
        BadInput, match=r"logits is \(2, 64\) torch.bfloat16, want \[T, E\] float32"
    ):
        route_sigmoid(torch.zeros(2, 64).bfloat16(), torch.zeros(64), **V3)
    with pytest.raises(BadInput, match=r"route_softmax: logits is \(64,\) torch.float32, want"):
        route_softmax(torch.zeros(64), **V3)
    with pytest.raises(BadInput, match=r"bias is \(1,\) for logits \(2, 64\), want \(64,\)"):
        route_sigmoid(torch.zeros(2, 64), torch.zeros(1), **V3)


# ---------------------------------------------------------------- experts


E, H, WIDTH = 6, 20, 9


def layer(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return in_poison(randn(E, 2 * WIDTH, H, seed=seed)), in_poison(randn(E, H, WIDTH, seed=seed))


def routed(tokens: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, E, generator=g).argsort(-1)[:, :k]
    return in_poison(ids), in_poison(torch.rand(tokens, k, generator=g) - 0.3)


def experts_fp64(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for j in range(ids.shape[1]):
            e = int(ids[t, j])
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            hidden = gate / (1.0 + torch.exp(-gate)) * up
            out[t] += float(weights[t, j]) * (down[e].double() @ hidden)
    return out


@pytest.mark.parametrize(("tokens", "k"), [(7, 2), (1, 4), (0, 3), (33, 6), (5, 1), (3, 0)])
def test_experts_are_a_weighted_sum(tokens: int, k: int) -> None:
    x, (ids, weights), (gate_up, down) = in_poison(randn(tokens, H)), routed(tokens, k), layer()
    got = experts(x, ids, weights, gate_up, down)
    assert_matches(got, experts_fp64(x, ids, weights, gate_up, down), "matmul", label="experts")
    assert torch.equal(experts(x, ids.int(), weights, gate_up, down), got)


def test_transformers_computes_alike() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

    config = SimpleNamespace(
        num_local_experts=E,
        hidden_size=H,
        moe_intermediate_size=WIDTH,
        hidden_act="silu",
        _experts_implementation="eager",
    )
    theirs = DeepseekV3Experts(config)
    x, (ids, weights), (gate_up, down) = randn(11, H), routed(11, 3), layer()
    theirs.gate_up_proj.data.copy_(gate_up)
    theirs.down_proj.data.copy_(down)
    with torch.no_grad():
        want = theirs(x, ids, weights)
    assert_matches(experts(x, ids, weights, gate_up, down), want, "matmul")


def test_fp8_experts_are_their_dequantized_selves() -> None:
    h, width = 200, 70  # ragged in both directions of both weights
    gate_up = quantize_fp8_block(randn(4, 2 * width, h) / 10)
    down = quantize_fp8_block(randn(4, h, width) / 10)
    x, ids = randn(9, h), torch.arange(18).reshape(9, 2) % 4
    weights = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    got = experts(x, ids, weights, gate_up, down)
    want = experts_fp64(x, ids, weights, gate_up.dequantize(), down.dequantize())
    assert_matches(got, want, "matmul")
    mixed = experts(x, ids, weights, gate_up, down.dequantize())
    assert torch.equal(mixed, got)


def test_only_named_experts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    select = Fp8Block.select

    def counted(self: Fp8Block, expert: int) -> Fp8Block:
        read.append(expert)
        return select(self, expert)

    monkeypatch.setattr(Fp8Block, "select", counted)
    gate_up, down = quantize_fp8_block(randn(4, 6, 8)), quantize_fp8_block(randn(4, 8, 3))
    ids = torch.tensor([[3, 1], [1, 3], [1, 3]])
    experts(randn(3, 8), ids, torch.ones(3, 2), gate_up, down)
    assert read == [1, 1, 3, 3]
    plain_up, plain_down = gate_up.dequantize(), down.dequantize()
    want = experts(randn(3, 8), ids, torch.ones(3, 2), plain_up, plain_down)
    plain_up[[0, 2]], plain_down[[0, 2]] = torch.nan, torch.nan
    got = experts(randn(3, 8), ids, torch.ones(3, 2), plain_up, plain_down)
    assert torch.equal(got, want)


def test_a_token_does_not_depend_on_its_batch() -> None:
    x, (ids, weights), (gate_up, down) = randn(40, H), routed(40, 3), layer()
    together = experts(x, ids, weights, gate_up, down)
    alone = torch.cat(
        [
            experts(x[t : t + 1], ids[t : t + 1], weights[t : t + 1], gate_up, down)
            for t in range(40)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    x[3] = torch.nan
    got = experts(x, ids, weights, gate_up, down)
    assert got[3].isnan().all()
    others = [t for t in range(40) if t != 3]
    assert torch.equal(got[others], together[others])


def test_the_order_of_a_tokens_experts_changes_no_bit() -> None:
    x, (ids, weights), (gate_up, down) = randn(8, H), routed(8, 5), layer()
    got = experts(x, ids.flip(-1), weights.flip(-1), gate_up, down)
    assert torch.equal(got, experts(x, ids, weights, gate_up, down))


def test_an_expert_named_twice_counts_twice() -> None:
    x, (gate_up, down) = randn(2, H), layer()
    twice = experts(x, torch.tensor([[2, 2], [2, 0]]), torch.ones(2, 2), gate_up, down)
    once = experts(x, torch.tensor([[2], [2]]), torch.full((2, 1), 2.0), gate_up, down)
    assert_matches(twice[:1], once[:1], "matmul")


def test_half_precision_is_summed_in_fp32_and_rounded_once() -> None:
    x, (ids, weights), (gate_up, down) = randn(9, H).bfloat16(), routed(9, 6), layer()
    gate_up, down = gate_up.bfloat16(), down.bfloat16()
    reference = experts_reference(x, ids, weights, gate_up, down)
    assert reference.dtype == torch.float32
    assert_matches(reference, experts_fp64(x, ids, weights, gate_up, down), "matmul")
    got = experts(x, ids, weights, gate_up, down)
    assert torch.equal(got, reference.bfloat16())


def test_wrong_operands_are_named() -> None:
    x, (ids, weights), (gate_up, down) = randn(3, H), routed(3, 2), layer()
    shapes = r"experts: x is .*, gate_up .* and down .*, want x \[T, h\], gate_up \[E, 2\*I, h\]"
    for wrong in (
        (x[0], gate_up, down),
        (x[:, 1:], gate_up, down),
        (x, gate_up[0], down),
        (x, gate_up[:, 1:], down),
        (x, gate_up[1:], down),
        (x, gate_up, down[..., 1:]),
        (x, gate_up, down.mT),
    ):
        with pytest.raises(BadInput, match=shapes):
            experts(wrong[0], ids, weights, wrong[1], wrong[2])
    both = r"experts: ids is .* and weights .* for x \(3, 20\), want both \[T, k\]"
    for wrong_ids, wrong_weights in (
        (ids[:2], weights[:2]),
        (ids, weights[:, :1]),
        (ids[0], weights[0]),
    ):
        with pytest.raises(BadInput, match=both):
            experts(x, wrong_ids, wrong_weights, gate_up, down)
    for bad, text in ((-1, "range from -1 to"), (E, f"to {E}, want 0 to {E - 1}: there are {E}")):
        ids = torch.tensor([[0, 1], [bad, 2], [3, 4]])
        with pytest.raises(BadInput, match=f"experts: ids .*{text}"):
            experts(x, ids, weights, gate_up, down)


@pytest.mark.parametrize("form", FORMATS)
def test_experts_of_every_format_are_their_dequantized_ones(form: str) -> None:
    make = Maker(torch.device("cpu"))
    up, down = weight(make, form, 3, 256, 128), weight(make, form, 3, 128, 128)
    x, ids = make.randn(5, 128), torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [1, 2]])
    factors = make.randn(5, 2)
    want = experts(x, ids, factors, dequantize(up), dequantize(down))
    assert_matches(experts(x, ids, factors, up, down), want, "matmul", "fp32")


def test_a_range_of_experts_adds_its_own_part_only() -> None:
    x, ids, factors = randn(6, 8), torch.arange(12).reshape(6, 2) % 5, randn(6, 2)
    up, down = randn(5, 12, 8), randn(5, 8, 6)
    parts = [
        experts(x, ids, factors, up[s], down[s], first_expert=s.start)
        for s in (slice(0, 2), slice(2, 5))
    ]
    assert_matches(parts[0] + parts[1], experts(x, ids, factors, up, down), "matmul", "fp32")
    nobody = experts(x, ids, factors, up[:2], down[:2], first_expert=7)
    assert torch.equal(nobody, torch.zeros(6, 8))


def test_fp8_operands_of_both_products() -> None:
    x, ids, factors = 3.0 * randn(4, 128), torch.tensor([[0], [1], [1], [0]]), randn(4, 1)
    up, down = quantize_fp8_block(randn(2, 256, 128)), quantize_fp8_block(randn(2, 128, 128))
    got = experts(x, ids, factors, up, down, arithmetic="w8a8")
    for i in range(4):
        e = int(ids[i])
        lifted = activations_reference(x[i], up, "fp8-group") @ up.dequantize()[e].T
        hidden = torch.nn.functional.silu(lifted[:128]) * lifted[128:]
        part = activations_reference(hidden, down, "fp8-group") @ down.dequantize()[e].T
        assert_matches(got[i], part * factors[i], "experts", "fp8")
    assert not torch.equal(got, experts(x, ids, factors, up, down, arithmetic="w8a16"))


def test_arithmetic_that_does_not_fit_is_refused() -> None:
    x, ids, factors = randn(2, 8), torch.zeros(2, 1, dtype=torch.int64), randn(2, 1)
    up, down = randn(1, 12, 8), randn(1, 8, 6)
    wanted = "auto, w4a16, w4a4, w8a16, w8a8"
    with pytest.raises(BadInput, match=f"arithmetic is 'fast', want one of {wanted}"):
        experts(x, ids, factors, up, down, arithmetic="fast")
    with pytest.raises(BadInput, match="'w8a8' for weights of float32 and float32, want Fp8Block"):
        experts(x, ids, factors, up, down, arithmetic="w8a8")


# ------------------------------------------------------------------------- products by groups


def test_groups_of_rows_in_three_layouts() -> None:
    x, w, add = randn(64, 8), randn(3, 5, 8), randn(64, 5)
    named = torch.full((64,), -1, dtype=torch.int32)
    named[:3], named[16:18], named[32:48] = 0, 1, 2
    want = add.clone()
    for r in range(64):
        if named[r] >= 0:
            want[r] += w[named[r]] @ x[r]
    rows = grouped_linear(x, w, named, alignment=16, add=add)
    assert_matches(rows, want, "matmul", "fp32")
    ends = torch.tensor([3, 18, 48], dtype=torch.int32)
    out = torch.empty(64, 5)
    got = grouped_linear(x, w, ends, layout="ends", alignment=16, add=add, out=out)
    assert got is out
    assert_matches(out, want, "matmul", "fp32")
    counts, folded = torch.tensor([3, 2, 16], dtype=torch.int32), x[:48].reshape(3, 16, 8)
    y = grouped_linear(folded, w, counts, layout="counted").flatten(0, 1)
    assert_matches(y[named[:48] >= 0], (want - add)[named >= 0], "matmul", "fp32")
    one = grouped_linear(x, w[:1], None, out_dtype=torch.bfloat16)
    assert_matches(one, (x @ w[0].T).bfloat16(), "matmul", "bf16")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layout": "sorted"}, "layout is 'sorted' and alignment 128, want one of rows, ends"),
        ({"alignment": 8}, "alignment 8, want one of .* and a multiple of 16"),
        ({"x": torch.ones(4, 9)}, r"x is \[4, 9\] and weight \[3, 5, 8\], want x \[R, K\]"),
        ({"layout": "counted"}, r"x is \[4, 8\] .* want x \[G, M, K\]"),
        ({"groups": None}, "no groups for 3 weights"),
        (
            {"groups": torch.zeros(4)},
            r"groups is float32 \[4\], want int32 \[4\] for layout 'rows'",
        ),
        ({"layout": "ends"}, r"groups is int32 \[4\], want int32 \[3\] for layout 'ends'"),
        ({"add": torch.ones(4, 6)}, r"add is float32 \[4, 6\], want \[4, 5\]"),
        (
            {"out": torch.ones(5, 4).T},
            r"out is float32 \[4, 5\], want \[4, 5\], its rows one after",
        ),
    ],
)
def test_groups_that_do_not_fit(change: dict[str, Any], text: str) -> None:
    inputs = {
        "x": randn(4, 8),
        "weight": randn(3, 5, 8),
        "groups": torch.zeros(4, dtype=torch.int32),
    }
    with pytest.raises(BadInput, match=f"^grouped_linear: .*{text}"):
        grouped_linear(**(inputs | change))
