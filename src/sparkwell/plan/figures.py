"""Time to the first token, time of each further one, throughput: bounds and predictions.

The bound of an op is the larger of bytes / bandwidth and operations / peak, at the published rates:
nothing is faster.  Its prediction has the op's efficiency in it (`efficiency`), and the waits of
sums over GPUs.  A step is the sum of its ops.  All figures are predictions, of this package's
kernels with CUDA graphs; the host's own time, sampling parameters and other requests are not in.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sparkwell.hardware.gpus import Gpu
from sparkwell.plan.efficiency import efficiency, quantizing
from sparkwell.plan.memory import STEP_TOKENS
from sparkwell.plan.step import Case, Op, Step, operations, prefill_steps

BINDS = {
    "memory": "memory bandwidth",
    "math": "matrix units",
    "start": "launches and their first bytes",
    "link": "sums over GPUs",
}


@dataclass(frozen=True)
class Time:
    """Seconds.  memory, math: of all bytes and of all operations at the published rates.

    bound: the sum of each op's larger one.  predicted: with efficiencies, starts and waits.
    shares: of the predicted time, by what binds; a key of BINDS.
    """

    memory: float
    math: float
    bound: float
    predicted: float
    shares: dict[str, float]

    @property
    def binds(self) -> str:
        """What takes most of the predicted time, in words."""
        return BINDS[max(self.shares, key=lambda key: self.shares[key])]


def time_of(ops: Iterable[Op], gpu: Gpu) -> Time:
    """The sum over the ops."""
    memory = math = bound = predicted = 0.0
    shares: dict[str, float] = defaultdict(float)
    for op in ops:
        read, made = bounds(op, gpu)
        seconds, key = predict(op, gpu)
        memory, math = memory + op.count * read, math + op.count * made
        bound += op.count * max(read, made)
        predicted += op.count * seconds
        if op.of == "link":
            shares["link"] += op.count * seconds
            continue
        starts = efficiency(op.of).start + op.launches * efficiency("small").start
        start = min(seconds, starts * 1e-6)
        shares["start"] += op.count * start
        shares[key] += op.count * (seconds - start)
    return Time(memory, math, bound, predicted, dict(shares))


def bounds(op: Op, gpu: Gpu) -> tuple[float, float]:
    """Seconds of one call's bytes, and of its operations, at the published rates."""
    return op.nbytes / gpu.bandwidth.value, op.flops / gpu.peaks[op.peak].value


def predict(op: Op, gpu: Gpu) -> tuple[float, str]:
    """Predicted seconds of one call, and whether bytes or operations bind it."""
    if op.of == "link":
        return op.wait, "link"
    read, made = bounds(op, gpu)
    known = efficiency(op.of)
    binds = "memory" if read / known.memory >= made / known.math else "math"
    seconds = known.seconds(read, made)
    if op.launches:
        each = op.quantized / op.launches
        seconds += op.launches * quantizing(each, 1, gpu.bandwidth.value)
    return seconds, binds


def scaled(parts: Iterable[tuple[Time, float]]) -> Time:
    """A sum of times, each so often."""
    memory = math = bound = predicted = 0.0
    shares: dict[str, float] = defaultdict(float)
    for one, times in parts:
        memory, math = memory + times * one.memory, math + times * one.math
        bound, predicted = bound + times * one.bound, predicted + times * one.predicted
        for key, value in one.shares.items():
            shares[key] += times * value
    return Time(memory, math, bound, predicted, dict(shares))


def decode_time(case: Case, batch: int, context: int) -> Time:
    """One more token for each of `batch` requests of `context` tokens: TPOT."""
    return time_of(operations(case, Step(batch, batch, context, batch)), case.gpu)


def prefill_time(case: Case, batch: int, length: int, chunk: int = STEP_TOKENS) -> Time:
    """All of `batch` prompts of `length` tokens, `chunk` at a time: TTFT of the last one."""
    if length >= chunk:  # prompts do not share steps
        return scaled([(_prompts(case, 1, length, chunk), batch)])
    return _prompts(case, batch, length, chunk)


@lru_cache(maxsize=64)
def _prompts(case: Case, batch: int, length: int, chunk: int) -> Time:
    steps = prefill_steps(length, batch, chunk)
    return scaled((time_of(operations(case, step), case.gpu), times) for step, times in steps)
