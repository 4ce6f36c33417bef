"""What `sparkwell bench soak` replays on a GPU, interpreted: all kernels of a step together."""

import pytest

from bench.fakes import FakeClock
from sparkwell.bench.soak import Shape, attention_step, soak, sparse_decode
from sparkwell.ops.device import as_target

SHAPE = Shape(requests=2, heads=2, index_heads=2, topk=6, context=20, page_size=4, sets=2)


@pytest.mark.parametrize("build", [sparse_decode, attention_step])
def test_the_kernels_of_a_step_give_the_references_result_again_and_again(build, cpu) -> None:
    with as_target("sm_121"):
        work = build(SHAPE, cpu, "kernel")
        result = soak(work, 3, FakeClock(), shape=SHAPE, sync=lambda: None)
    assert (result.mismatches, result.distinct) == (0, 2)
