"""What the verb `bench` does, without a command line."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparkwell.bench import modelled, perplexities
from sparkwell.bench.cases import chosen
from sparkwell.bench.kernels import Entry, append, compile_first, here, run_lines
from sparkwell.bench.machine import surroundings
from sparkwell.bench.perplexity import Progress, measure
from sparkwell.bench.protocol import CudaClock
from sparkwell.bench.soak import Workload, soak
from sparkwell.bench.soaked_attention import Shape, attention_step, sparse_decode
from sparkwell.bench.soaked_layers import LAYERS, Experts, expert_layers, linear_layers
from sparkwell.bench.table import render
from sparkwell.checkpoints.locate import locate
from sparkwell.errors import BadInput, SparkwellError
from sparkwell.hardware.gpus import gpu
from sparkwell.verify.records import surroundings as versions
from sparkwell.verify.retarget import target_here

Say = Callable[[str], None]
SETS = 16  # of inputs of linear layers and experts that are soaked
DOCUMENTS = {
    "speed": render,
    "perplexity": perplexities.render,
    "modelled": modelled.render,
}


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
    replays: int, steps: int, layers: int, *, out: Path | None, commit: str | None, say: Say
) -> tuple[list[Entry], list[str]]:
    """Sparse decode `replays` times, the whole attention step `steps` times, linear layers and
    experts `layers` times.  -> as `kernels`."""
    if not torch.cuda.is_available():
        raise SparkwellError("bench soak: no CUDA device here")
    device = torch.device("cuda", torch.cuda.current_device())
    entries, failures = [], []
    for name, (build, count) in _workloads(device, replays, steps, layers).items():
        if not count:
            continue
        try:
            work = build()
            result = soak(work, count, CudaClock(), sync=torch.cuda.synchronize)
        except (AssertionError, SparkwellError, RuntimeError) as error:
            failures.append(f"{name}: {error}")
            say(f"FAILED {failures[-1]}")
            continue
        entries.append({"op": result.soak} | asdict(result) | surroundings(commit))
        say(
            f"{result.soak}: {result.replays} replays of {result.us_per_replay} us, "
            f"{result.mismatches} not bitwise equal, {result.distinct} distinct sets"
        )
        if result.mismatches or result.distinct < len(work.sets):
            failures.append(f"{result.soak}: {result.mismatches} mismatches")
        if out is not None:
            append(out, entries[-1])
    return entries, failures


def _workloads(
    device: torch.device, replays: int, steps: int, layers: int
) -> dict[str, tuple[Callable[[], Workload], int]]:
    """What is soaked, by name, and how often."""
    shape, to = Shape(), (device, "kernel")
    return {
        "sparse_decode": (partial(sparse_decode, shape, *to), replays),
        "attention_step": (partial(attention_step, shape, *to), steps),
        "linear_layers": (partial(linear_layers, LAYERS, SETS, *to), layers),
        "expert_layers": (partial(expert_layers, Experts(), SETS, *to), layers),
    }


def perplexity(
    model: str,
    text: Path,
    schemes: Sequence[str],
    *,
    out: Path | None,
    commit: str | None,
    say: Say,
    progress: Progress = lambda scheme, done, total: None,
    **options: Any,
) -> list[Entry]:
    """Records of a model's perplexity on a text, in each scheme; options: as `measure` has them."""
    found = measure(locate(model), text, schemes, name=model, progress=progress, **options)
    entries = [entry | versions(commit) for entry in found]
    for entry in entries:
        say(
            f"{entry['scheme']}: perplexity {entry['perplexity']:.3f}, nll {entry['nll']:.4f}"
            f"{_error(entry['nll_se'])} of {entry['tokens']} tokens, {entry['delta_nll']:+.4f}"
            f"{_error(entry['delta_se'])} to {entry['versus']}"
        )
        if out is not None:
            append(out, entry)
    return entries


def _error(value: float | None) -> str:
    return "" if value is None else f" +- {value:.4f}"


def model(
    gpus: Sequence[str], *, out: Path | None, commit: str | None, say: Say
) -> tuple[list[Entry], list[str]]:
    """Modelled times of linear layers on GPUs of these names.  -> as `kernels`."""
    found = modelled.model([gpu(name) for name in gpus], out=out, commit=commit, say=say)
    return found, []


def table(records: Path, write: Path | None, of: str = "speed") -> str:
    """The document of speeds or perplexities; written to `write` if given."""
    if of not in DOCUMENTS:
        raise BadInput(f"no table of {of!r}; want one of {', '.join(DOCUMENTS)}")
    text = DOCUMENTS[of](records)
    if write is not None:
        write.write_text(text)
    return text
