"""How times are taken, on a clock that only counts."""

import pytest
import torch

from bench.fakes import Costly, FakeClock
from sparkwell.bench.protocol import COLD, MOST_SETS, measure, sets_needed
from sparkwell.errors import SparkwellError


def test_a_sample_is_the_time_of_one_call() -> None:
    calls = {"ours": [Costly("ours", 3e-6)] * 4, "peer": [Costly("peer", 5e-6)] * 4}
    found = measure(calls, FakeClock())
    assert found["ours"].us == pytest.approx(3.0) and found["peer"].us == pytest.approx(5.0)
    assert found["ours"].low == pytest.approx(3.0) and found["ours"].graph


def test_the_spread_is_that_of_the_rounds() -> None:
    class Drifting(FakeClock):
        def seconds(self, run: object, times: int) -> float:
            self.log.append("")
            return times * (1e-3 if len(self.log) % 2 else 3e-3)

    sample = measure({"ours": [Costly("ours", 0)]}, Drifting(), rounds=11)["ours"]
    assert sample.low == pytest.approx(1000) and sample.high == pytest.approx(3000)
    assert sample.us in (pytest.approx(1000), pytest.approx(3000))


def test_variants_are_timed_in_turn_and_the_order_turns() -> None:
    clock = FakeClock()
    measure({"a": [Costly("a", 1.0)], "b": [Costly("b", 1.0)]}, clock, rounds=4)
    assert clock.log[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_variant_that_must_be_a_graph_is_refused_where_it_is_none() -> None:
    calls = {"ours": [Costly("ours", 1.0)]}
    with pytest.raises(SparkwellError, match="ours: its calls cannot be captured"):
        measure(calls, FakeClock(captures=False), needs_graph=("ours",))
    assert not measure(calls, FakeClock(captures=False), rounds=1)["ours"].graph


def test_sets_leave_nothing_in_the_l2() -> None:
    l2 = 60 << 20
    assert sets_needed(1 << 30, l2) == 2
    assert sets_needed(21 << 20, l2) * (21 << 20) >= COLD * l2
    assert sets_needed(10, l2) == MOST_SETS
    assert sets_needed(0, l2) == MOST_SETS


def test_a_machine_without_a_gpu_is_told_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from sparkwell.bench.kernels import here

    with pytest.raises(SparkwellError, match="no CUDA device"):
        here(None, None)
