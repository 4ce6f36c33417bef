"""What `sparkwell bench soak` replays on a GPU, interpreted: all kernels of a step together."""

import pytest

from bench.fakes import FakeClock
from sparkwell.bench.soak import soak
from sparkwell.bench.soaked_attention import Shape, attention_step, sparse_decode
from sparkwell.bench.soaked_layers import Experts, Layer, expert_layers, linear_layers
from sparkwell.ops.device import as_target

SHAPE = Shape(requests=2, heads=2, index_heads=2, topk=6, context=20, page_size=4, sets=2)


@pytest.mark.parametrize("build", [sparse_decode, attention_step])
def test_the_kernels_of_a_step_give_the_references_result_again_and_again(build, cpu) -> None:
    with as_target("sm_121"):
        work = build(SHAPE, cpu, "kernel")
        result = soak(work, 3, FakeClock(), sync=lambda: None)
    assert (result.mismatches, result.distinct) == (0, 2)


LAYERS = (Layer("fp8-block", "w8a8", 130, 256, (1, 3)), Layer("nvfp4", "w4a16", 24, 64, (2,)))


def test_the_kernels_of_layers_give_the_references_result_again_and_again(cpu) -> None:
    with as_target("sm_121"):
        for work in (
            linear_layers(LAYERS, 2, cpu, "kernel"),
            expert_layers(Experts(4, 2, 128, 128, tokens=(1, 3)), 2, cpu, "kernel"),
        ):
            result = soak(work, 3, FakeClock(), sync=lambda: None)
            assert (result.mismatches, result.distinct) == (0, 2)
