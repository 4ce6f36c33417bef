"""How a time is taken: graphs replayed over cold inputs, variants in turn, medians with spread.

A call's inputs rotate through so many sets that none is left in the L2 when its turn comes again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Protocol

import torch

from sparkwell.errors import SparkwellError

Call = Callable[[], Any]
ROUNDS = 15
WARM_SECONDS = 0.1  # of replays, before any is timed: clocks have risen by then
SAMPLE_SECONDS = 2e-3  # one sample replays at least so long: a launch from the host costs 10 us
COLD = 3  # times the L2's size between two calls with the same inputs
MOST_SETS = 160


@dataclass(frozen=True)
class Sample:
    """Microseconds of one call: the median of all rounds, and their first and last decile."""

    us: float
    low: float
    high: float
    graph: bool = True  # replayed from a graph, or called one by one


class Clock(Protocol):
    """What takes times: the GPU's, or a test's."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """A replay of all calls in order; None where they cannot be captured."""
        ...

    def seconds(self, run: Call, times: int) -> float:
        """How long `times` runs take on the device."""
        ...


class CudaClock:
    """CUDA graphs and events on the current device."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """Warm all calls up on a side stream, then capture them into one graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def seconds(self, run: Call, times: int) -> float:
        """By two events around the runs."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3


def sets_needed(nbytes: int, l2_bytes: int) -> int:
    """Input sets of `nbytes` each, so that a call finds nothing of its own in the L2."""
    return max(2, min(MOST_SETS, math.ceil(COLD * l2_bytes / max(1, nbytes))))


def measure(
    variants: Mapping[str, Sequence[Call]],
    clock: Clock,
    *,
    rounds: int = ROUNDS,
    needs_graph: Sequence[str] = (),
) -> dict[str, Sample]:
    """Every variant's calls, one variant after the other in each round, the order turning.

    needs_graph: variants that must be captured.  Raises SparkwellError where one cannot be.
    """
    runs: dict[str, Call] = {}
    graphs: dict[str, bool] = {}
    for name, calls in variants.items():
        replay = clock.capture(calls)
        if replay is None and name in needs_graph:
            raise SparkwellError(f"{name}: its calls cannot be captured in a CUDA graph")
        graphs[name] = replay is not None
        runs[name] = replay if replay is not None else _in_turn(calls)
    times = {name: _warm(run, clock) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
            seconds = clock.seconds(runs[name], times[name])
            taken[name].append(1e6 * seconds / times[name] / len(variants[name]))
    return {name: _sample(values, graphs[name]) for name, values in taken.items()}


def _in_turn(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _warm(run: Call, clock: Clock) -> int:
    """Run until clocks are up.  -> how many runs make a sample."""
    spent, each = 0.0, clock.seconds(run, 1)
    for _ in range(100):
        if spent >= WARM_SECONDS:
            break
        count = max(1, math.ceil(WARM_SECONDS / 4 / max(each, 1e-6)))
        seconds = clock.seconds(run, count)
        spent, each = spent + seconds, seconds / count
    return max(1, math.ceil(SAMPLE_SECONDS / max(each, 1e-6)))


def _sample(values: list[float], graph: bool) -> Sample:
    deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return Sample(median(values), deciles[0], deciles[-1], graph)


def ceilings(clock: Clock, device: torch.device, size: int = 8192) -> dict[str, float]:
    """What this GPU reaches, each alone: copy_gbs (bytes read and written), read_gbs, and for a
    large matrix product bf16_tflops, fp8_tflops.

    Where torch has no FP8 product for this GPU, that one is the BF16 rate.
    """
    source = torch.randint(0, 1 << 30, (1 << 29,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    nbytes, flops = 4 * source.numel(), 2 * size**3
    calls: dict[str, tuple[Call, float]] = {
        "copy_gbs": (lambda: torch.bitwise_not(source, out=target), 2 * nbytes / 1e3),
        "read_gbs": (source.view(torch.float32).sum, nbytes / 1e3),
        "bf16_tflops": (lambda: a @ b, flops / 1e6),
        "fp8_tflops": (_fp8_product(a, b), flops / 1e6),
    }
    return {
        name: round(work / measure({name: [call]}, clock)[name].us, 1)
        for name, (call, work) in calls.items()
    }


def _fp8_product(a: torch.Tensor, b: torch.Tensor) -> Call:
    one = torch.ones((), device=a.device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()

    def call() -> torch.Tensor:
        return torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16)

    try:
        call()
    except RuntimeError:
        return lambda: a @ b
    return call
