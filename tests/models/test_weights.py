"""Weights of every format on their way into a model: kept, widened, stacked, joined."""

import re
from collections.abc import Callable, Sequence

import pytest
import torch

from sparkwell.formats import (
    Fp8Block,
    Fp8Rows,
    Nvfp4,
    QuantizedTensor,
    Weight,
    dequantize,
    kind,
    select,
)
from sparkwell.models import weights as module
from sparkwell.models.layers import joined, multiplied
from sparkwell.models.weights import ANY, CheckpointWeights
from sparkwell.ops.device import as_target
from sparkwell.ops.linear import linear
from sparkwell.testing import assert_matches
from weights import KINDS, fp8_block, fp8_rows, int4, nvfp4

Make = Callable[..., QuantizedTensor]
every = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


class Held:
    """A checkpoint of weights that are given; which of them were read, in order."""

    def __init__(self, held: dict[str, Weight]) -> None:
        self.held = {f"{name}.weight": weight for name, weight in held.items()}
        self.read: list[str] = []
        self.tensors = {name: Info(weight) for name, weight in self.held.items()}

    def read_weight(self, _: object, name: str, shape: tuple[int, ...]) -> Weight:
        self.read.append(name)
        assert tuple(self.held[name].shape) == tuple(shape)
        return self.held[name]

    def stored_weights(self, _: object) -> dict[str, Weight]:
        return {name: w for name, w in self.held.items() if not isinstance(w, torch.Tensor)}

    def stored_bytes(self, _: object, name: str) -> int:
        return self.tensors[name].nbytes


class Info:
    def __init__(self, weight: Weight) -> None:
        self.nbytes = weight.nbytes


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[CheckpointWeights, Held]]:
    def open_(held: dict[str, Weight], **options: object) -> tuple[CheckpointWeights, Held]:
        checkpoint = Held(held)
        for name in ("read_weight", "stored_weights", "stored_bytes"):
            monkeypatch.setattr(module, name, getattr(checkpoint, name))
        options = {"dtype": torch.float32, "device": "cpu"} | options
        return CheckpointWeights(checkpoint, **options), checkpoint  # type: ignore[arg-type]

    return open_


def experts(make: Callable[[int], Weight], rows: int, num: int = 3) -> tuple[dict, list[list[str]]]:
    names = [[f"e{e}.{r}" for r in range(rows)] for e in range(num)]
    flat = [name for row in names for name in row]
    return {name: make(seed) for seed, name in enumerate(flat)}, names


def same_seed(make: Make, seed: int) -> int:
    """Orders come from the seed: experts of one stack share theirs."""
    return 0 if make is KINDS["int4-ordered"] else seed


# ---------------------------------------------------------------- one weight


@every
def test_a_layers_weight_is_kept_or_widened(opened: Callable, make: Make) -> None:
    weight = make(6, 64)
    kept, _ = opened({"a": weight})
    assert kept.linear("a", 6, 64) is weight and not kept.remarks and not kept.arithmetic
    wide, _ = opened({"a": weight}, linear=ANY - {kind(weight)}, dtype=torch.bfloat16)
    got = wide.linear("a", 6, 64)
    assert isinstance(got, torch.Tensor) and torch.equal(got, weight.dequantize(torch.bfloat16))
    (remark,) = wide.remarks
    assert remark == (
        f"{kind(weight)} weights become bfloat16: no kernel multiplies them as they are"
    )
    dense, _ = opened({"a": weight})
    assert torch.equal(dense.dense("a", 6, 64), weight.dequantize()) and not dense.remarks


def test_plain_weights_take_the_models_dtype(opened: Callable) -> None:
    w = torch.rand(3, 4, dtype=torch.float64)
    weights, _ = opened({"a": w}, dtype=torch.bfloat16, linear=frozenset())
    assert torch.equal(weights.linear("a", 3, 4), w.bfloat16()) and not weights.remarks


@pytest.mark.parametrize(
    ("target", "make", "how"),
    [
        ("sm_121", nvfp4, r"Nvfp4 layers .* in w4a16 up to \d+ rows of x, w4a4 above"),
        ("sm_90", nvfp4, r"in w4a16 \(not w4a4: sm_90 has no FP4_BLOCK_MMA\)"),
        ("sm_90", fp8_rows, r"Fp8Rows layers .* in w8a16 up to \d+ rows of x, w8a8 above"),
        ("sm_80", fp8_rows, r"in w8a16 \(not w8a8: sm_80 has no FP8_MMA\)"),
        ("sm_90", int4, r"Int4Group layers .* in w4a16 \(made for activations 'none'\)"),
    ],
)
def test_the_arithmetic_of_layers_is_told(
    opened: Callable, target: str, make: Make, how: str
) -> None:
    weights, _ = opened({"a": make(256, 1024), "b": make(256, 1024)}, device="meta")
    with as_target(target):
        weights.linear("a", 256, 1024)
        weights.linear("b", 256, 1024)
    (told,) = weights.arithmetic
    assert re.search(how, told) and weights.arithmetic[told] == 2 and not weights.remarks


# ---------------------------------------------------------------- stacks of experts


FEW_THEN = r"in w4a16 up to \d+ rows an expert,"


@pytest.mark.parametrize(
    ("target", "make", "how"),
    [
        ("sm_121", nvfp4, rf"Nvfp4 stacks .* {FEW_THEN} w4a4 above where both .* of 256 columns"),
        ("sm_90", nvfp4, r"in w4a16 \(not w4a4: sm_90 has no FP4_BLOCK_MMA\)"),
        ("sm_90", fp8_rows, r"Fp8Rows stacks .* in w8a16 \(made for activations 'fp8-token'\)"),
        ("sm_90", int4, r"Int4Group stacks .* in w4a16 \(made for activations 'none'\)"),
    ],
)
def test_the_arithmetic_of_experts_is_told(
    opened: Callable, target: str, make: Make, how: str
) -> None:
    held, names = experts(lambda seed: make(256, 1024, seed=same_seed(make, seed)), 1)
    weights, _ = opened(held, device="meta")
    with as_target(target):
        weights.stack(names, 256, 1024)
        weights.stack(names, 256, 1024)
    (told,) = weights.arithmetic
    assert re.search(how, told) and weights.arithmetic[told] == 2 and not weights.remarks


@every
@pytest.mark.parametrize("rows", [1, 2])
def test_stack(opened: Callable, make: Make, rows: int) -> None:
    held, names = experts(lambda seed: make(6, 64, seed=same_seed(make, seed)), rows)
    weights, checkpoint = opened(held)
    got = weights.stack(names, 6, 64)
    assert kind(got) == kind(held["e0.0"]) and got.shape == (3, rows * 6, 64)
    assert not weights.remarks
    for e, row in enumerate(names):
        want = torch.cat([dequantize(held[name]) for name in row])
        assert torch.equal(dequantize(select(got, e)), want)
    assert checkpoint.read == [f"{name}.weight" for row in names for name in row], "each once"


@every
def test_a_widened_stack(opened: Callable, make: Make) -> None:
    held, names = experts(lambda seed: make(6, 64, seed=seed), 2)
    counts: list[int] = []
    weights, _ = opened(
        held,
        experts=frozenset(),
        dtype=torch.bfloat16,
        progress=lambda done, total: counts.append(done) or counts.append(total),
    )
    got = weights.stack(names, 6, 64)
    want = [torch.cat([dequantize(held[name], torch.bfloat16) for name in row]) for row in names]
    assert torch.equal(got, torch.stack(want))
    assert list(weights.remarks.values()) == [6], "every weight is counted, none twice"
    assert counts[-2] == counts[-1] == sum(w.nbytes for w in held.values())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda seed: fp8_block(4, 64, seed=seed), "4 rows end inside a block of 3"),
        (lambda seed: int4(4, 64, seed=seed, ordered=True), "the values of order differ"),
        (lambda seed: int4(4, 64, group=16 if seed else 32), "group differs: 32 and 16"),
        (lambda seed: nvfp4(4, 64) if seed < 4 else int4(4, 64), "kinds differ: Int4Group, Nvfp4"),
        (lambda seed: nvfp4(4, 64, activations="none" if seed else "nvfp4"), "activations differs"),
    ],
)
def test_experts_that_do_not_fit_together(
    opened: Callable, make: Callable[[int], Weight], why: str
) -> None:
    held, names = experts(make, 2)
    weights, _ = opened(held)
    got = weights.stack(names, 4, 64)
    want = [torch.cat([dequantize(held[name]) for name in row]) for row in names]
    assert torch.equal(got, torch.stack(want))
    assert all(f"become float32: they can't be stacked, {why}" in text for text in weights.remarks)
    assert sum(weights.remarks.values()) == 6


def test_a_stack_of_which_some_are_plain(opened: Callable) -> None:
    held, names = experts(lambda seed: nvfp4(4, 64, seed=seed), 1)
    held["e1.0"] = torch.rand(4, 64)
    weights, _ = opened(held)
    got = weights.stack(names, 4, 64)
    assert torch.equal(got, torch.stack([dequantize(w) for w in held.values()]))
    (remark,) = weights.remarks
    assert "others of their stack are not quantized" in remark and weights.remarks[remark] == 2
    plain, names = experts(lambda seed: torch.rand(4, 64), 2)
    weights, _ = opened(plain)
    assert weights.stack(names, 4, 64).shape == (3, 8, 64) and not weights.remarks


# ---------------------------------------------------------------- scales of activations


def test_static_scales_of_experts_are_kept(opened: Callable) -> None:
    held, names = experts(lambda seed: nvfp4(4, 64, seed=seed, static=True), 1)
    weights, _ = opened(held)
    got = weights.stack(names, 4, 64)
    assert isinstance(got, Nvfp4) and got.input_scale is not None and not weights.remarks
    assert got.input_scale.tolist() == [w.input_scale.item() for w in held.values()]


def one_without(seed: int) -> Weight:
    """An expert that the calibration never reached."""
    return nvfp4(4, 64, seed=seed, static=seed != 2)


def gate_and_up_differ(seed: int) -> Weight:
    return nvfp4(4, 64, seed=seed, static=True)


@pytest.mark.parametrize(("make", "rows"), [(one_without, 1), (gate_and_up_differ, 2)])
def test_static_scales_that_do_not_fit_are_left_out(
    opened: Callable, make: Callable[[int], Weight], rows: int
) -> None:
    held, names = experts(make, rows)
    weights, _ = opened(held)
    got = weights.stack(names, 4, 64)
    assert isinstance(got, Nvfp4) and got.input_scale is None and got.activations == "nvfp4"
    want = [torch.cat([dequantize(held[name]) for name in row]) for row in names]
    assert torch.equal(got.dequantize(), torch.stack(want))
    (remark,) = weights.remarks
    assert remark.startswith("static scales of activations are left out: some differ")


def test_dynamic_activations_need_no_remark(opened: Callable) -> None:
    held, names = experts(lambda seed: fp8_rows(4, 64, seed=seed), 2)
    weights, _ = opened(held)
    got = weights.stack(names, 4, 64)
    assert isinstance(got, Fp8Rows) and got.input_scale is None and not weights.remarks


# ---------------------------------------------------------------- layers of the same input


@every
def test_joined_weights_give_the_same_products(make: Make) -> None:
    parts = [make(6, 64, seed=same_seed(make, seed)) for seed in range(3)]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    (whole,) = joined(*parts)
    assert whole.shape == (18, 64) and kind(whole) == kind(parts[0])
    assert torch.equal(dequantize(whole), torch.cat([part.dequantize() for part in parts]))
    apart = torch.cat([linear(x, part) for part in parts], -1)
    assert_matches(multiplied(x, (whole,)), apart, "matmul", label="joined")
    bias = torch.arange(18.0)
    assert_matches(multiplied(x, (whole,), bias), apart + bias, "matmul", label="with a bias")


@pytest.mark.parametrize(
    "parts",
    [
        [fp8_block(4, 64), fp8_block(4, 64, seed=1)],
        [nvfp4(4, 64), torch.rand(4, 64)],
        [nvfp4(4, 64, static=True), nvfp4(4, 64, seed=1, static=True)],
        [int4(4, 64, group=16), int4(4, 64, group=32)],
    ],
    ids=["cut blocks", "kinds", "input scales", "groups"],
)
def test_weights_that_do_not_fit_stay_apart(parts: Sequence[Weight]) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    kept = joined(*parts)
    assert len(kept) == 2 and all(a is b for a, b in zip(kept, parts, strict=True))
    want, bias = torch.cat([x @ dequantize(part).T for part in parts], -1), torch.arange(8.0)
    assert_matches(multiplied(x, kept) / 64, want / 64, "matmul")
    assert_matches(multiplied(x, kept, bias) / 64, (want + bias) / 64, "matmul")


def test_fp8_blocks_that_end_on_an_edge_are_joined() -> None:
    (whole,) = joined(fp8_block(6, 64), fp8_block(4, 64, seed=1))
    assert isinstance(whole, Fp8Block) and whole.shape == (10, 64)
