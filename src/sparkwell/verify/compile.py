"""Compiles recorded launches for any target without a GPU, and reads what came out.

A `Unit` is everything that decides a kernel's machine code; it is specialised by Triton's own
launcher code, so it is the code a real call would run.  What the machine code holds is kept in the
user's cache folder, under a hash of all that went into it; the folder is safe to delete.
"""

import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from sparkwell.env import CACHE_DIR
from sparkwell.errors import BadInput
from sparkwell.ops.launch import Launch
from sparkwell.verify.arrivals import early_arrivals

FORMAT = 4  # of what is kept in the cache; a change makes older results unread
WARP = 32
Place = tuple[int, ...]  # place of an argument, inside tuples too


@dataclass(frozen=True)
class Function:
    """A kernel or device function by name, so that another process can find it."""

    module: str
    name: str

    def find(self) -> Any:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True)
class Unit:
    """One compilation.  `key` is a hash of everything else and of the sources and the compiler."""

    kernel: Function
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[Place, Any], ...]
    attributes: tuple[tuple[Place, Any], ...]
    options: tuple[tuple[str, Any], ...]
    sm: int
    key: str

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unit) and self.key == other.key


@dataclass(frozen=True)
class Built:
    """What a compilation gave.

    shared: bytes of shared memory a block takes.  registers: of a thread.  stack: bytes of a
    thread's local memory.  spills: instructions that read or write it.
    instructions: name of each SASS instruction, with its modifiers -> how often it stands there.
    loop: the same of one round of the loop with most matrix instructions; None: no loop has any.
    early: arrivals at a barrier that do not wait for reads of shared memory (`verify.arrivals`).
    error: why there is no machine code; None where there is.
    """

    shared: int = 0
    registers: int = 0
    stack: int = 0
    spills: int = 0
    instructions: Mapping[str, int] | None = None
    loop: Mapping[str, int] | None = None
    early: Sequence[str] = ()
    seconds: float = 0.0
    error: str | None = None

    def holds(self, pattern: str) -> bool:
        """Whether an instruction's name matches the regular expression."""
        return any(re.search(pattern, name) for name in self.instructions or ())


# ---------------------------------------------------------------- what decides the code


def specialise(launch: Launch) -> Unit:
    """The compilation that `launch` needs, by the rules of Triton's launcher.

    Pointers and sizes divisible by 16, sizes of 1 and None are compiled in, as they are on a GPU:
    a meta tensor's address is its offset into its storage, whose own address is aligned.
    """
    kernel, sm = launch.kernel, launch.choice.target.sm
    backend = make_backend(GPUTarget("cuda", sm, WARP))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, rest = bind(*launch.args, **launch.constants, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(rest), bound, special, rest
    )
    made = {
        "signature": tuple(signature.items()),
        "constants": tuple((path, _by_name(value)) for path, value in constants.items()),
        "attributes": tuple(attributes.items()),  # empty ones too: Triton's own key has them
        "options": tuple(sorted(rest.items())),
    }
    used = [value.cache_key for value in constants.values() if isinstance(value, JITFunction)]
    identity = (FORMAT, triton.__version__, backend.hash(), options.hash(), kernel.cache_key, used)
    key = hashlib.sha256(repr((identity, sorted(made.items()))).encode()).hexdigest()
    return Unit(Function(kernel.module, kernel.__name__), **made, sm=sm, key=key)


def _by_name(value: Any) -> Any:
    return (
        Function(value.module, value.__name__)  # a JIT function holds locks: it does not travel
        if isinstance(value, JITFunction)
        else value
    )


# ---------------------------------------------------------------- one compilation


def compiled(unit: Unit, sm: int | None = None) -> Any:
    """Triton's compiled kernel, with its machine code in `asm`.  Triton's errors pass.

    It goes to Triton's own cache, where a launcher finds it.  sm: the GPU it is assembled for;
    None: the unit's target.
    """
    constants = {
        path: value.find() if isinstance(value, Function) else value
        for path, value in unit.constants
    }
    kernel = unit.kernel.find()
    kind: Any = ASTSource
    if kernel.is_gluon():  # explicit layouts; its interface still moves, so only where it is used
        kind = importlib.import_module("triton.experimental.gluon._runtime").GluonASTSource
    source = kind(kernel, dict(unit.signature), constants, dict(unit.attributes))
    target = GPUTarget("cuda", sm or unit.sm, WARP)
    return triton.compile(source, target=target, options=dict(unit.options))


def build(unit: Unit) -> Built:
    """Compile and read the machine code; a failure comes back as `error`."""
    start = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()):  # Triton prints the PTX that does not assemble
            kernel = compiled(unit)
        used = _read(kernel.asm["cubin"])
    except Exception as error:  # noqa: BLE001  any failure of the compiler is a result
        why = f"{type(error).__name__}: {error}".strip()
        return Built(error=why[:2000], seconds=time.perf_counter() - start)
    return Built(shared=kernel.metadata.shared, seconds=time.perf_counter() - start, **used)


_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_x_\d+):")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\b.*`\((\.L_x_\d+)\)")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_LOCAL = ("LDL", "STL")  # loads and stores of a thread's local memory


def _read(cubin: bytes) -> dict[str, Any]:
    """Registers, stack, spills and instructions of machine code, by the tools Triton brings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        listing = _tool(knobs.nvidia.nvdisasm.path, "-c", "-ndf", "-hex", str(path))
        resources = _tool(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path))
    counts = Counter(_INSTRUCTION.findall(listing))
    found = _RESOURCES.findall(resources)
    if not counts or len(found) != 1:
        raise RuntimeError("the machine code could not be read")
    return {
        "registers": int(found[0][0]),
        "stack": int(found[0][1]),
        "spills": sum(n for name, n in counts.items() if name.split(".")[0] in _LOCAL),
        "instructions": dict(counts),
        "loop": busiest_loop(listing),
        "early": early_arrivals(listing),
    }


def busiest_loop(listing: str) -> dict[str, int] | None:
    """Instructions of the loop that holds most matrix instructions, loops inside it left out.

    A loop is what lies between a label and a branch back to it.
    """
    lines, labels = listing.splitlines(), {}
    loops: list[tuple[int, int]] = []
    for i, line in enumerate(lines):
        if found := _LABEL.match(line):
            labels[found[1]] = i
        elif (found := _BRANCH.search(line)) and found[1] in labels:
            loops.append((labels[found[1]], i + 1))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    rounds = [Counter(_INSTRUCTION.findall("\n".join(lines[a:b]))) for a, b in inner]
    best = max(rounds, key=_matrix, default=Counter[str]())
    return dict(best) if _matrix(best) else None


def _matrix(counts: Mapping[str, int]) -> int:
    return sum(n for name, n in counts.items() if name.split(".")[0].endswith("MMA"))


def _tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---------------------------------------------------------------- many, in parallel, cached


def workers() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def build_all(
    units: Iterable[Unit],
    *,
    jobs: int | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Built]:
    """Every unit compiled once.  -> key: Built

    jobs: processes; None: one a core; 1: in this process.
    cache: whether earlier results are read.  Results are kept either way.
    progress: called with (done, all) after each.
    Raises BadInput under Triton's interpreter, where kernels cannot be compiled.
    """
    if knobs.runtime.interpret:
        raise BadInput("compiling under TRITON_INTERPRET=1: kernels are interpreted; unset it")
    pending = {unit.key: unit for unit in units}
    results: dict[str, Built] = {}
    for key in list(pending) if cache else ():
        if (kept := _kept(key)) is not None:
            results[key] = kept
            del pending[key]
    total = len(results) + len(pending)
    if progress is not None:
        progress(len(results), total)
    for key, built in _run(list(pending.values()), jobs or workers()):
        results[key] = built
        _keep(key, built)
        if progress is not None:
            progress(len(results), total)
    return results


def _run(units: list[Unit], jobs: int) -> Iterator[tuple[str, Built]]:
    """Builds in processes; a unit that ends its process is reported, the others go on."""
    if jobs == 1 or len(units) < 2:
        yield from ((unit.key, build(unit)) for unit in units)
        return
    left = {unit.key: unit for unit in units}
    with pool(min(jobs, len(units))) as processes:
        futures = {processes.submit(build, unit): unit.key for unit in units}
        for future in as_completed(futures):
            try:
                built = future.result()
            except BrokenExecutor:
                break
            del left[futures[future]]
            yield futures[future], built
    for key, unit in left.items():  # a process died: each of the rest in one of its own
        with pool(1) as worker:
            try:
                yield key, worker.submit(build, unit).result()
            except BrokenExecutor:
                yield key, Built(error="the compiler ended its process")


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that compile."""
    # spawn: a fork of a process with torch's threads may hang
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as made:
        yield made


# ---------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """Where results are kept."""
    return Path(CACHE_DIR.get()).expanduser() / "verify"


def _kept(key: str) -> Built | None:
    try:
        return Built(**json.loads((cache_folder() / f"{key}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _keep(key: str, built: Built) -> None:
    if built.error is not None:  # it may be this machine's fault: try again next time
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".new", delete=False) as file:
        json.dump(asdict(built), file)
    os.replace(file.name, folder / f"{key}.json")


__all__ = [
    "Built",
    "Function",
    "Unit",
    "build",
    "build_all",
    "compiled",
    "pool",
    "specialise",
    "workers",
]
