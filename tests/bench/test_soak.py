"""Soaks on the CPU: the references replayed by a clock that captures nothing."""

import itertools
from dataclasses import replace

import pytest
import torch

from bench.fakes import FakeClock
from sparkwell.bench.soak import Tensors, Workload, soak
from sparkwell.bench.soaked_attention import Shape, attention_step, sparse_decode
from sparkwell.bench.soaked_layers import Experts, Layer, expert_layers, linear_layers
from sparkwell.errors import SparkwellError

CPU = torch.device("cpu")
SHAPE = Shape(requests=2, heads=2, index_heads=2, topk=6, context=20, page_size=4, sets=3)


def run(work: Workload, replays: int = 7, clock: FakeClock | None = None):
    return soak(work, replays, clock or FakeClock(), sync=lambda: None)


@pytest.mark.parametrize("build", [sparse_decode, attention_step])
def test_the_same_inputs_give_the_same_bits(build) -> None:
    result = run(build(SHAPE, CPU, "reference"))
    assert (result.replays, result.mismatches, result.distinct) == (7, 0, 3)
    assert result.shape["topk"] == 6


LAYERS = (Layer("fp8-block", "w8a8", 130, 256, (1, 3)), Layer("nvfp4", "w4a16", 24, 64, (2,)))
EXPERTS = Experts(4, 2, 128, 128, tokens=(1, 3))


def layers() -> Workload:
    return linear_layers(LAYERS, 3, CPU, "reference")


def expert_rows() -> Workload:
    return expert_layers(EXPERTS, 3, CPU, "reference")


@pytest.mark.parametrize("build", [layers, expert_rows])
def test_layers_of_the_same_inputs_give_the_same_bits(build) -> None:
    result = run(build())
    assert (result.replays, result.mismatches, result.distinct) == (7, 0, 3)
    assert result.shape["sets"] == 3


@pytest.mark.parametrize(
    ("build", "name"),
    [(layers, "0-3"), (layers, "1-2"), (expert_rows, "nvfp4-3"), (expert_rows, "fp8-block-1"),
     (expert_rows, "ids-1")],
)  # fmt: skip
def test_a_wrong_layer_is_not_soaked(build, name: str) -> None:
    work = build()
    wrong = replace(work, run=lambda x: work.run(x) | {name: work.run(x)[name] + 1})
    with pytest.raises(AssertionError, match="other experts" if "ids" in name else "rows|-"):
        run(wrong)


@pytest.mark.parametrize("name", ["out", "lse", "max_logits", "slots"])
def test_one_other_bit_is_counted(name: str) -> None:
    work, calls = sparse_decode(SHAPE, CPU, "reference"), itertools.count()

    def flaky(x: Tensors) -> Tensors:
        got = work.run(x)
        if next(calls) == 14:
            got[name].view(-1).view(torch.int32)[1] ^= 1
        return got

    assert run(replace(work, run=flaky)).mismatches == 1


def test_values_that_change_places_are_counted() -> None:
    work, calls = sparse_decode(SHAPE, CPU, "reference"), itertools.count()

    def swapped(x: Tensors) -> Tensors:
        got = work.run(x)
        return got | {"out": got["out"].flip(0)} if next(calls) == 14 else got

    assert run(replace(work, run=swapped)).mismatches == 1


def test_a_wrong_result_is_not_soaked() -> None:
    work = sparse_decode(SHAPE, CPU, "reference")
    wrong = replace(work, run=lambda x: work.run(x) | {"lse": work.run(x)["lse"] + 1})
    with pytest.raises(AssertionError, match="lse"):
        run(wrong)


def test_inputs_that_never_change_are_seen() -> None:
    work = sparse_decode(SHAPE, CPU, "reference")
    assert run(replace(work, sets=[work.sets[0]] * 3)).distinct == 1


def test_what_cannot_be_captured_is_refused() -> None:
    with pytest.raises(SparkwellError, match="cannot be captured"):
        run(sparse_decode(SHAPE, CPU, "reference"), clock=FakeClock(captures=False))


def test_each_set_writes_rows_of_its_own() -> None:
    work = attention_step(SHAPE, CPU, "reference")
    slots = torch.cat([x["slots"] for x in work.sets])
    assert len(slots.unique()) == len(slots)
    for x in work.sets:  # and reads them: the last key of a request is on the page it writes
        last = (x["lengths"].long() - 1) // SHAPE.page_size
        page = x["table"][torch.arange(SHAPE.requests), last]
        assert page.tolist() == (x["slots"] // SHAPE.page_size).tolist()
