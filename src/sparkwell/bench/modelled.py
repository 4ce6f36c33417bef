"""`sparkwell bench modelled`: how long a linear layer takes at least on a GPU that is not here.

time >= max(bytes / bandwidth, warp instructions / (4 SMs clock), FLOP with padding / peak)

Bytes are those the product must move; instructions are counted in the machine code that is
compiled for the GPU's target: those of one round of its main loop, for each matrix instruction
there, times the matrix instructions that the padded product takes.  Nothing of it is a
measurement: latencies, waves, launches and caches are left out.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkwell.bench.kernels import append
from sparkwell.bench.table import Entry, newest, read
from sparkwell.errors import BadInput, SparkwellError
from sparkwell.hardware.gpus import Gpu
from sparkwell.hardware.targets import TensorPath
from sparkwell.ops.linear.schedule import Problem
from sparkwell.verify.case import Case
from sparkwell.verify.cases.speed_products import linear_case
from sparkwell.verify.check import tensor_core
from sparkwell.verify.compile import Built, build_all
from sparkwell.verify.matrix import Use, record
from sparkwell.verify.records import surroundings

RECORDS = "modelled.jsonl"
ISSUED = 4  # warp instructions that an SM issues in a cycle
PEAKS = {"HMMA": "bf16", "QMMA": "fp8", "OMMA": "fp4"}
SIZES = re.compile(r"\.16(8)(\d+)(?:\.|$)")  # of HMMA.16816.F32: 16 x 8 x 16
ROWS = (1, 16, 64, 256, 4096)
FORMS = (
    ("nvfp4", "w4a16"),
    ("nvfp4", "w4a8"),
    ("nvfp4", "w4a4"),
    ("int4", "w4a16"),
    ("fp8-block", "w8a16"),
    ("fp8-block", "w8a8"),
)
SHAPE = (28672, 4096)  # n, k: the largest layer of the speed table


@dataclass(frozen=True)
class Bounds:
    """Microseconds that each of three resources needs; the largest is the model's time."""

    memory: float
    issue: float
    units: float

    @property
    def us(self) -> float:
        """The model's time."""
        return max(self.memory, self.issue, self.units)

    @property
    def by(self) -> str:
        """What binds."""
        times = {"memory": self.memory, "instructions": self.issue, "matrix units": self.units}
        return max(times, key=lambda name: times[name])


def bounds(case: Case, problem: Problem, tall: int, loop: Mapping[str, int], gpu: Gpu) -> Bounds:
    """tall: rows of x in a block.  loop: instructions of a round of the kernel's main loop.

    Raises SparkwellError where the loop's matrix instructions are of a kind that has no shape.
    """
    assert case.timing is not None and gpu.clock is not None
    work, kinds = 0, set()
    for name, count in tensor_core(loop).items():
        sizes = SIZES.search(name)
        if sizes is None or name.split(".")[0] not in PEAKS:
            raise SparkwellError(f"bench modelled: {name} has no shape that is known")
        work += count * 2 * 16 * 8 * int(sizes[2])
        kinds.add(PEAKS[name.split(".")[0]])
    flops = 2 * problem.n * problem.k * -(-problem.m // tall) * tall
    issued = flops / work * sum(loop.values())
    return Bounds(
        memory=1e6 * case.timing.nbytes / gpu.bandwidth.value,
        issue=1e6 * issued / (ISSUED * gpu.sms.value * gpu.clock.value),
        units=1e6 * flops / min(gpu.peaks[kind].value for kind in kinds),
    )


def model(
    gpus: Sequence[Gpu], *, out: Path | None, commit: str | None, say: Callable[[str], None]
) -> list[Entry]:
    """A record for each GPU, format, arithmetic and number of rows; kernels are compiled for it.

    Raises BadInput for a GPU whose clock is not known or whose matrix units are not mma.sync.
    """
    for gpu in gpus:
        if gpu.clock is None:
            raise BadInput(f"bench modelled: the clock of {gpu.name} is not known")
        if gpu.target.tensor_path is not TensorPath.MMA_SYNC:
            raise BadInput(f"bench modelled: {gpu.name} has no mma.sync units, which it counts")
    n, k = SHAPE
    cases = [linear_case(form, how, m, n, k) for form, how in FORMS for m in ROWS]
    uses = {gpu.name: record(cases, [gpu.target]).uses for gpu in gpus}
    built = build_all(use.unit for name in uses for use in uses[name])
    entries = []
    for gpu in gpus:
        for use in uses[gpu.name]:
            entry = _entry(gpu, use, built[use.unit.key])
            if entry is None:
                continue
            entries.append(surroundings(commit) | entry)
            say(shown(entries[-1]))
            if out is not None:
                append(out, entries[-1])
    return entries


def _entry(gpu: Gpu, use: Use, built: Built) -> Entry | None:
    """The record of a product's kernel; None of one that only quantizes, widens or adds up."""
    if built.error is not None:
        raise SparkwellError(f"bench modelled: {use.case.name} for {gpu.name}: {built.error}")
    if use.choice.op != "linear" or built.loop is None:
        return None
    problem, schedule = use.choice.problem, use.choice.schedule
    assert isinstance(problem, Problem)
    found = bounds(use.case, problem, schedule.block_m, built.loop, gpu)
    mix = tensor_core(built.loop)
    return {
        "op": "linear",
        "case": use.case.name,
        "product": gpu.name,
        "target": gpu.target.name,
        "row": use.choice.row.name,
        "modelled_us": round(found.us, 2),
        "by": found.by,
        "memory_us": round(found.memory, 2),
        "issue_us": round(found.issue, 2),
        "units_us": round(found.units, 2),
        "instructions": sum(built.loop.values()),
        "matrix": dict(mix),
        "registers": built.registers,
        "shared": built.shared,
    }


def shown(entry: Entry) -> str:
    """One line of plain text."""
    return (
        f"{entry['product']} {entry['case']} ({entry['row']}): modelled "
        f"{entry['modelled_us']:.1f} us by {entry['by']} (memory {entry['memory_us']:.1f}, "
        f"instructions {entry['issue_us']:.1f}, matrix units {entry['units_us']:.1f})"
    )


def render(folder: Path) -> str:
    """docs/modelled.md, from the records in `folder`."""
    entries = newest(read(folder / RECORDS), "product", "case")
    text = [
        "# Modelled times of linear layers",
        "",
        "Generated by `python -m sparkwell.bench table --of modelled` from `bench/records/`; do",
        "not edit.",
        "",
        "**Nothing here was timed.** For GPUs that we do not have, each kernel was compiled for",
        "the GPU's target, and its time is at least the largest of three: bytes over bandwidth;",
        "warp instructions of the compiled main loop over what the SMs issue; products, padding",
        "included, over the peak of the matrix units that the code uses. Latencies, launches and",
        "caches are left out, so real times are longer. What it shows is whether a schedule leaves",
        "the GPU bound by what it should be bound by.",
        "",
        "```sh",
        "sparkwell bench modelled --gpu dgx-spark --gpu rtx-5090 --gpu rtx-pro-6000 \\",
        "    --out bench/records/modelled.jsonl",
        "sparkwell bench table --of modelled --write docs/modelled.md",
        "```",
    ]
    for name in dict.fromkeys(entry["product"] for entry in entries):
        text += _table([entry for entry in entries if entry["product"] == name])
    return "\n".join(text) + "\n"


def _table(entries: Sequence[Entry]) -> list[str]:
    x = entries[0]
    commits = ", ".join(dict.fromkeys(str(entry["commit"]) for entry in entries))
    return [
        "",
        f"## {x['product']} ({x['target']})",
        "",
        f"Triton {x['triton']}; commits: {commits}; cases are weight-arithmetic-M x N x K.",
        "",
        "| case | row | modelled us | bound by | memory | instructions | matrix units | loop |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {e['case']} | `{e['row']}` | {e['modelled_us']:.1f} | {e['by']} | "
            f"{e['memory_us']:.1f} | {e['issue_us']:.1f} | {e['units_us']:.1f} | {_loop(e)} |"
            for e in entries
        ),
    ]


def _loop(entry: Entry) -> str:
    matrix = ", ".join(f"{n} {name.split('.')[0]}" for name, n in entry["matrix"].items())
    return f"{entry['instructions']} instructions, {matrix}"
