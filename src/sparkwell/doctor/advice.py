"""What a user can do about a verdict, and which driver it takes."""

from collections.abc import Iterable
from dataclasses import dataclass

from sparkwell.doctor.rules import (
    Verdict,
    arch_list,
    cuda_of_ptx,
    driver_branch,
    first_toolkit,
)
from sparkwell.doctor.verdict import SUFFIX, Judged
from sparkwell.hardware import Feature, Target

# Instruction families that not every GPU has, and the feature that says so.
NEEDS = {
    "wgmma": Feature.WGMMA,
    "tcgen05": Feature.TCGEN05,
    "tma": Feature.TMA,
    "clusters": Feature.CLUSTERS,
    "setmaxnreg": Feature.SETMAXNREG,
    "omma": Feature.FP4_BLOCK_MMA,
}


def advice(kernel: Judged, gpu: Target, instead: bool = False) -> str:
    """What to do about one kernel; "" where nothing needs to be done.

    instead: a sibling of it runs.
    """
    if kernel.verdict.runs:
        return _about_running(kernel)
    if kernel.rule == "host":
        return "take the wheel for that host, or say --host for the one you have"
    if instead:
        return ""
    if kernel.verdict is Verdict.UNKNOWN:
        return "try it on the GPU" if kernel.rule != "unreadable" else "get the file again"
    if lacking := _lacking(kernel, gpu):
        return f"no build helps: it uses {lacking}, which {gpu.name} does not have"
    if kernel.verdict is Verdict.STUB:
        return "use another kernel of the package: the source leaves this one out on this GPU"
    build = f"build from source with TORCH_CUDA_ARCH_LIST={arch_list(gpu)}"
    if since := first_toolkit(gpu):
        build += f" and CUDA {since[0]}.{since[1]} or newer"
    if SUFFIX in kernel.marks:
        return f"{build}; its authors could use an f target, which runs in the whole family"
    if any(code.split()[0].endswith(("a", "f")) for code in kernel.have):
        return f"{build}; code written for {', '.join(kernel.have)} may not compile for it"
    return build


def _about_running(kernel: Judged) -> str:
    if kernel.verdict is Verdict.JIT and kernel.isa:
        cuda = cuda_of_ptx(kernel.isa)
        driver = f"driver for CUDA {cuda[0]}.{cuda[1]}" if cuda else "recent driver"
        return f"needs a {driver} or newer; the first start compiles"
    if kernel.verdict is Verdict.LINK:
        return "try it on the GPU; the first start links"
    return ""


def _lacking(kernel: Judged, gpu: Target) -> str:
    """Instruction families the kernel uses and the GPU lacks, as words."""
    uses = kernel.uses or frozenset()
    return ", ".join(sorted(u for u in uses if u in NEEDS and gpu.missing(NEEDS[u])))


@dataclass(frozen=True, slots=True)
class Needs:
    """What the machine must have for the kernels that run.

    driver: oldest driver branch (525) for the machine code; None: nothing is known
    cuda: the newest CUDA release that a driver must support, to compile the PTX; None: no PTX runs
    toolkits: versions of the compilers that made the code, oldest first
    """

    driver: int | None
    cuda: tuple[int, int] | None
    toolkits: tuple[str, ...]


def needs(judged: Iterable[Judged]) -> Needs:
    """Of all kernels that run."""
    running = [one for one in judged if one.verdict.runs]
    toolkits = {one.toolkit for one in running if one.toolkit}
    ordered = sorted(toolkits, key=_version)
    branches = [driver_branch(_version(one)[0]) for one in ordered]
    compiled = {one.isa for one in running if one.verdict is Verdict.JIT and one.isa}
    releases = [release for isa in compiled if (release := cuda_of_ptx(isa))]
    return Needs(
        max((branch for branch in branches if branch), default=None),
        max(releases, default=None),
        tuple(ordered),
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit()) or (0,)
