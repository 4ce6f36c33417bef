"""What the verb `bench` does, without a command line."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from sparkwell.bench.cases import chosen
from sparkwell.bench.kernels import Entry, append, compile_first, here, run_lines
from sparkwell.bench.machine import surroundings
from sparkwell.bench.protocol import CudaClock
from sparkwell.bench.soak import Shape, attention_step, soak, sparse_decode
from sparkwell.bench.table import render
from sparkwell.errors import SparkwellError
from sparkwell.verify.retarget import target_here

Say = Callable[[str], None]


def kernels(
    ops: Sequence[str],
    cases: Sequence[str],
    *,
    peers: Path | None,
    out: Path | None,
    commit: str | None,
    say: Say,
) -> tuple[list[Entry], list[str]]:
    """Time these lines of the speed table.  -> records, what was not timed and why."""
    lines = chosen(ops, cases)
    bench = here(peers, commit)
    compile_first(lines, target_here())
    say(f"{bench.around['gpu']}: ceilings {bench.ceilings}")
    return run_lines(lines, bench, say, out)


def soaks(
    replays: int, steps: int, *, out: Path | None, commit: str | None, say: Say
) -> tuple[list[Entry], list[str]]:
    """Sparse decode `replays` times, the whole attention step `steps` times.  -> as `kernels`."""
    if not torch.cuda.is_available():
        raise SparkwellError("bench soak: no CUDA device here")
    device, shape = torch.device("cuda", torch.cuda.current_device()), Shape()
    entries, failures = [], []
    for build, count in ((sparse_decode, replays), (attention_step, steps)):
        if not count:
            continue
        try:
            work = build(shape, device, "kernel")
            result = soak(work, count, CudaClock(), shape=shape, sync=torch.cuda.synchronize)
        except (AssertionError, SparkwellError, RuntimeError) as error:
            failures.append(f"{build.__name__}: {error}")
            say(f"FAILED {failures[-1]}")
            continue
        entries.append({"op": result.soak} | asdict(result) | surroundings(commit))
        say(
            f"{result.soak}: {result.replays} replays of {result.us_per_replay} us, "
            f"{result.mismatches} not bitwise equal, {result.distinct} distinct sets"
        )
        if result.mismatches or result.distinct < shape.sets:
            failures.append(f"{result.soak}: {result.mismatches} mismatches")
        if out is not None:
            append(out, entries[-1])
    return entries, failures


def table(records: Path, write: Path | None) -> str:
    """The document of speeds; written to `write` if given."""
    text = render(records)
    if write is not None:
        write.write_text(text)
    return text
