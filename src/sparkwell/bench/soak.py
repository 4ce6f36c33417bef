"""`sparkwell bench soak`: one captured graph replayed with changing inputs, for as long as asked.

Inputs of a few sets are copied into the graph's own tensors between replays.  The graph ends with
a checksum of every bit it computed, compared on the device with the one that the same set gave
at first; what differs is counted there and read once, at the end.
"""

import faulthandler
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparkwell.bench.protocol import Clock
from sparkwell.errors import SparkwellError

CHUNK = 10_000  # replays between two waits for the device
HANG_SECONDS = 120.0  # for one chunk
STDERR = 2
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """What is replayed.

    sets: values of the inputs, by name.  run: inputs -> results by name.  check: raises
    AssertionError where results of inputs are not the reference's.  shape: for the record.
    """

    name: str
    sets: Sequence[Tensors]
    run: Callable[[Tensors], Tensors]
    check: Callable[[Tensors, Tensors], None]
    shape: dict[str, int]


@dataclass(frozen=True)
class Result:
    """mismatches: replays whose bits were not those of the same inputs before."""

    soak: str
    replays: int
    mismatches: int
    distinct: int  # checksums among the sets: a sum that never changes shows nothing
    seconds: float
    us_per_replay: float
    shape: dict[str, int]


# ---------------------------------------------------------------- replays


def soak(work: Workload, replays: int, clock: Clock, *, sync: Callable[[], None]) -> Result:
    """Replay `work` so often, its sets in changing order; a chunk that hangs ends the process.

    sync: waits for the device.
    Raises AssertionError where the result is not the reference's, SparkwellError where the work
    cannot be captured.
    """
    static = {name: x.clone() for name, x in work.sets[0].items()}
    device = next(iter(static.values())).device
    expected, total, wrong = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
    got = work.run(static)
    weights = [_weights(x) for x in got.values()]

    def step() -> None:
        total.copy_(_checksum(work.run(static).values(), weights))
        wrong.add_(total != expected)

    replay = clock.capture([step])
    if replay is None:
        raise SparkwellError(f"soak {work.name}: it cannot be captured in a CUDA graph")
    work.check(static, work.run(static))

    def feed(number: int, sums: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(
            [*static.values(), expected], [*work.sets[number].values(), sums[number]]
        )

    sums = [torch.zeros_like(total) for _ in work.sets]
    for rehearsal in range(2):  # the first one writes what the second one's caches hold
        for number in range(len(work.sets)):
            feed(number, sums)
            replay()
            if rehearsal:
                sums[number] = total.clone()
    wrong.zero_()
    sync()
    start = time.perf_counter()
    for first in range(0, replays, CHUNK):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=STDERR)
        for i in range(first, min(first + CHUNK, replays)):
            feed((5 * i + i // len(work.sets)) % len(work.sets), sums)
            replay()
        sync()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    return Result(
        soak=work.name,
        replays=replays,
        mismatches=int(wrong),
        distinct=len({int(x) for x in sums}),
        seconds=round(seconds, 2),
        us_per_replay=round(1e6 * seconds / max(1, replays), 2),
        shape=work.shape,
    )


def _weights(x: torch.Tensor) -> torch.Tensor:
    """An odd 64-bit weight for each 32 bits of `x`: a permutation has another sum."""
    count = x.numel() * x.element_size() // 4
    make = torch.Generator(x.device).manual_seed(count)
    bounds = (-(1 << 62), 1 << 62)
    return torch.randint(*bounds, (count,), generator=make, device=x.device) * 2 + 1


def _checksum(results: Any, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """One int64 of every bit; sums of integers are the same in any order."""
    parts = zip(results, weights, strict=True)
    return torch.stack(
        [(x.contiguous().view(-1).view(torch.int32) * w).sum() for x, w in parts]
    ).sum()
