"""`sparkwell bench kernels`: a line of the speed table, gated, timed, and written down."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparkwell.bench.cases import Line, goal, met
from sparkwell.bench.machine import clocks, surroundings
from sparkwell.bench.peers import PEERS, PeerMissing, Peers
from sparkwell.bench.protocol import Call, Clock, Sample, measure, sets_needed
from sparkwell.errors import SparkwellError
from sparkwell.hardware.targets import Target, target
from sparkwell.ops.launch import recording
from sparkwell.verify.case import Inputs, Maker
from sparkwell.verify.compile import pool, workers
from sparkwell.verify.matrix import record
from sparkwell.verify.retarget import prepare, retargeted

OURS = "sparkwell"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how lines are timed.

    around: what every record says about the machine.  ceilings: measured in this run.
    """

    device: torch.device
    clock: Clock
    peers: Peers
    l2_bytes: int
    ceilings: dict[str, float]
    around: dict[str, Any] = field(default_factory=dict)


def run_line(line: Line, bench: Bench) -> Entry:
    """One line's record.

    Raises AssertionError where the kernel is not its reference: then nothing is timed.
    SparkwellError where it refuses the case or cannot be captured.
    """
    timing = line.case.timing
    assert timing is not None, f"{line.name} has no timing"
    with _as_target(line.target):
        inputs = _input_sets(line, bench, sets_needed(timing.nbytes, bench.l2_bytes))
        got = _gate(line, inputs[0])
        variants: dict[str, Sequence[Call]] = {
            OURS: [partial(line.case.call, x, "kernel") for x in inputs]
        }
        missing = {}
        for name in line.peers:
            try:
                variants[name] = _peer_calls(name, bench.peers, inputs, got)
            except PeerMissing as error:
                missing[name] = str(error)
        rows = _rows(line, inputs[0])
        samples = measure(variants, bench.clock, needs_graph=(OURS,))
    return _entry(line, bench, samples, missing, rows, len(inputs))


def compile_first(lines: Sequence[Line], here: Target) -> None:
    """Compile what the lines launch, in parallel, to Triton's cache; failures come again later."""
    wanted = {line.target or here.name for line in lines}
    units = {
        use.unit.key: use.unit
        for name in wanted
        for use in record(
            [line.case for line in lines if (line.target or here.name) == name], [target(name)]
        ).uses
    }
    with pool(max(1, min(workers(), len(units)))) as processes:
        wait([processes.submit(prepare, unit, here.sm) for unit in units.values()])


def _as_target(name: str | None) -> AbstractContextManager[Any]:
    return nullcontext() if name is None else retargeted(name)


def _input_sets(line: Line, bench: Bench, count: int) -> list[Inputs]:
    """As many sets of inputs, the first one by seed 0."""
    assert line.case.timing is not None
    redraw, first = line.case.timing.redraw, line.case.make(Maker(bench.device, seed=0))
    sets = [first]
    for seed in range(1, count):
        make = Maker(bench.device, seed=seed)
        sets.append(first | redraw(make, first) if redraw else line.case.make(make))
    return sets


def _gate(line: Line, inputs: Inputs) -> torch.Tensor:
    """The kernel's first result, once it is known to be the reference's."""
    got = line.case.call(inputs, "kernel")
    line.case.compare(inputs, got, line.case.call(inputs, "reference"))
    return got[0] if isinstance(got, tuple) else got


def _peer_calls(
    name: str, peers: Peers, inputs: Sequence[Inputs], got: torch.Tensor
) -> list[Callable[[], torch.Tensor]]:
    """The peer's calls, once its result is known to be ours."""
    calls = peers.calls(name, inputs)
    try:
        theirs = calls[0]()
        agrees = PEERS[name].agrees(inputs[0], got, theirs)
    except Exception as error:
        raise PeerMissing(f"{name}: {type(error).__name__}: {error}"[:300]) from error
    if not agrees:
        raise PeerMissing(f"{name}: its result is not ours; no time is taken")
    return calls


def _rows(line: Line, inputs: Inputs) -> list[str]:
    """Names of the schedule rows that serve the case."""
    with recording() as launches:
        line.case.call(inputs, "kernel")
    return list(dict.fromkeys(f"{x.choice.op}:{x.choice.row.name}" for x in launches))


def _entry(
    line: Line,
    bench: Bench,
    samples: dict[str, Sample],
    missing: dict[str, str],
    rows: list[str],
    sets: int,
) -> Entry:
    timing, ours = line.case.timing, samples[OURS]
    assert timing is not None
    best = min((samples[n].us for n in samples if n != OURS), default=None)
    memory = max(bench.ceilings["copy_gbs"], bench.ceilings["read_gbs"])
    floor = max(
        timing.nbytes / memory / 1e3,
        timing.flops / bench.ceilings[f"{timing.math}_tflops"] / 1e6,
    )
    return {
        "op": line.case.op,
        "case": line.name,
        "target": line.target,
        "rows": rows,
        "sets": sets,
        **_rounded(ours),
        "gbs": round(timing.nbytes / ours.us / 1e3, 1),
        "tflops": round(timing.flops / ours.us / 1e6, 1),
        "floor_us": round(floor, 2),
        "peers": {
            name: {"version": bench.peers.version(name), **_rounded(samples[name])}
            for name in samples
            if name != OURS
        },
        "missing": missing,
        "ratio": None if best is None else round(best / ours.us, 3),
        "want": line.want,
        "want_of_floor": line.of_floor,
        "clocks": clocks() if bench.device.type == "cuda" else {},
        "ceilings": bench.ceilings,
        **bench.around,
    }


def _rounded(sample: Sample) -> dict[str, Any]:
    numbers = {"us": sample.us, "low": sample.low, "high": sample.high}
    return {k: round(v, 3) for k, v in numbers.items()} | ({} if sample.graph else {"graph": False})


def shown(entry: Entry) -> str:
    """One line of plain text."""
    ratio, done = entry["ratio"], met(entry)
    beside = ", ".join(f"{name} {x['us']:.1f}" for name, x in entry["peers"].items())
    verdict = "no peer" if ratio is None else f"{ratio:.2f}x"
    if done is not None:
        verdict += f" (want {goal(entry)}: {'met' if done else 'missed'})"
    return (
        f"{entry['op']} {entry['case']}: {entry['us']:.1f} us [{entry['low']:.1f}"
        f"-{entry['high']:.1f}], {entry['gbs']:.0f} GB/s, {entry['tflops']:.0f} TFLOP/s, floor "
        f"{entry['floor_us']:.1f}; {beside} {verdict}; {' '.join(entry['rows'])}"
        + "".join(f"\n  no time: {why}" for why in entry["missing"].values())
    )


def run_lines(
    lines: Sequence[Line], bench: Bench, say: Callable[[str], None], out: Path | None = None
) -> tuple[list[Entry], list[str]]:
    """All lines, each record appended to `out` as it comes.  -> records, failures."""
    entries, failures = [], []
    for line in lines:
        try:
            entry = run_line(line, bench)
        except (AssertionError, SparkwellError, RuntimeError) as error:
            failures.append(f"{line.case.op} {line.name}: {str(error)[:600]}")
            say(f"NOT TIMED {failures[-1]}")
            continue
        finally:
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
        entries.append(entry)
        say(shown(entry))
        if out is not None:
            append(out, entry)
    return entries, failures


def append(out: Path, entry: Entry) -> None:
    """One more line in a file of records."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def here(peers: Path | None, commit: str | None) -> Bench:
    """The current GPU, its ceilings measured now.  Raises SparkwellError without a GPU."""
    from sparkwell.bench.protocol import CudaClock, ceilings

    if not torch.cuda.is_available():
        raise SparkwellError("bench: no CUDA device here; kernels are timed on a GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    clock = CudaClock()
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    found = ceilings(clock, device)
    torch.cuda.empty_cache()
    return Bench(device, clock, Peers(peers), l2_bytes, found, surroundings(commit))
