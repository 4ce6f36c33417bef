"""One source looked at and judged: its libraries, its Python code, what it compiles later."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sparkwell.doctor.asked import Asked
from sparkwell.doctor.gates import UNKNOWN, Gate, find_gates
from sparkwell.doctor.images import File, Host, Level
from sparkwell.doctor.jit import Assembler, Collector, Evidence, assembler
from sparkwell.doctor.scan import scan
from sparkwell.doctor.sources import (
    ASSEMBLER,
    CUDA_FILE,
    GPU_FILE,
    MOST_TEXT,
    PYTHON_FILE,
    Entry,
    Source,
    unreadable,
)
from sparkwell.doctor.verdict import Family, Judged, families, judge
from sparkwell.errors import Unreadable

Progress = Callable[[str], None]

# NVIDIA's licence for these allows no look inside them; what their headers say is enough here.
LICENSED = (
    "libcublas", "libcudnn", "libcufft", "libcurand", "libcusolver", "libcusparse", "libnvjitlink",
    "libnvrtc", "libnpp", "libnvjpeg", "libcutensor", "libnvvm", "libcudart", "libcupti",
    "libnvblas", "libcudss", "libnvinfer", "libcufile", "libnvptxcompiler",
)  # fmt: skip


@dataclass(frozen=True)
class Verdicts:
    """One file on one GPU."""

    gpu: Asked
    kernels: tuple[Judged, ...]
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Looked:
    """One file with GPU code, and how it runs on each GPU."""

    file: File
    level: Level
    verdicts: tuple[Verdicts, ...]


@dataclass(frozen=True)
class Examined:
    """What was found in one source.

    problems: what could not be read, and why; notes: what was left out
    elsewhere: for each GPU the families that run from some file
    """

    name: str
    kind: str
    gpus: tuple[Asked, ...]
    files: tuple[Looked, ...]
    gates: tuple[Gate, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    assemblers: tuple[Assembler, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    elsewhere: dict[str, frozenset[str]] = field(default_factory=dict)


def examine(
    source: Source,
    gpus: Sequence[Asked],
    level: Level,
    *,
    code: bool = True,
    progress: Progress = lambda name: None,
) -> Examined:
    """Look at everything in `source`.  code: at its Python and C++ sources, too."""
    looking = _Looking(source, tuple(gpus), level, code)
    try:
        for entry in source.entries():
            progress(entry.name)
            looking.at(entry)
    except Unreadable as error:
        looking.problems.append(str(error))
    return looking.done()


class _Looking:
    """What has been found so far."""

    def __init__(self, source: Source, gpus: tuple[Asked, ...], level: Level, code: bool) -> None:
        self.source, self.gpus, self.level, self.code = source, gpus, level, code
        self.files: list[Looked] = []
        self.gates: list[Gate] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.assemblers: list[Assembler] = []
        self.evidence = Collector()

    def at(self, entry: Entry) -> None:
        """One file of the source."""
        name = entry.name
        try:
            if self.source.kind == "file" or GPU_FILE.search(name):
                self._library(entry)
            elif ASSEMBLER.search(name):
                with entry.on_disk() as path:
                    self.assemblers.append(assembler(path, name))
            elif self.code and PYTHON_FILE.search(name) and not _is_test(name):
                self._python(entry)
            elif self.code and CUDA_FILE.search(name):
                self.evidence.add(name, entry.text(), cuda=True)
        except Unreadable as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(str(unreadable(name, error)))

    def _library(self, entry: Entry) -> None:
        level = Level.HEADERS if _licensed(entry.name) else self.level
        with entry.on_disk() as path:
            file = scan(path, level, name=entry.name)
        if file.images:
            self.files.append(Looked(file, level, tuple(_verdicts(file, g) for g in self.gpus)))
        elif file.problems and (self.source.kind == "file" or file.format != "other"):
            self.problems += [f"{file.path}: {problem}" for problem in file.problems]
        elif self.source.kind == "file":
            self.problems.append(f"{file.path}: no GPU code in it")

    def _python(self, entry: Entry) -> None:
        if entry.size > MOST_TEXT:
            self.notes.append(f"{entry.name}: {entry.size} bytes of Python are not looked at")
            return
        text = entry.text()
        found, problem = find_gates(text, entry.name)
        self.gates += found
        self.notes += [problem] if problem else []
        self.evidence.add(entry.name, text, cuda=False)

    def done(self) -> Examined:
        """All of it."""
        return Examined(
            self.source.name,
            self.source.kind,
            self.gpus,
            tuple(self.files),
            tuple(self.gates),
            self.evidence.found(),
            tuple(self.assemblers),
            tuple(self.problems),
            tuple(self.notes),
            _elsewhere(self.files),
        )


def _verdicts(file: File, gpu: Asked) -> Verdicts:
    host: Host | None = gpu.host
    kernels = judge(file, gpu.target, host)
    return Verdicts(gpu, kernels, families(kernels))


def _elsewhere(files: Sequence[Looked]) -> dict[str, frozenset[str]]:
    """For each GPU the families that run from some file."""
    found: dict[str, set[str]] = {}
    for looked in files:
        for one in looked.verdicts:
            running = found.setdefault(one.gpu.name, set())
            running.update(family.name for family in one.families if family.verdict.runs)
    return {name: frozenset(names) for name, names in found.items()}


def _licensed(name: str) -> bool:
    return name.rsplit("/", 1)[-1].lower().startswith(LICENSED)


def _is_test(name: str) -> bool:
    parts = name.lower().split("/")
    last = parts[-1]
    return last.startswith(("test_", "bench")) or bool(
        {"test", "tests", "benchmark", "benchmarks", "testing"} & set(parts[:-1])
    )


def decided(gates: Sequence[Gate], gpu: Asked) -> tuple[list[Gate], list[Gate], int]:
    """Gates that refuse `gpu`, those that are not decided, and how many let it pass."""
    refusing, undecided, passing = [], [], 0
    for gate in gates:
        answer = gate.refuses(gpu.target)
        if answer is True:
            refusing.append(gate)
        elif answer is UNKNOWN:
            undecided.append(gate)
        else:
            passing += 1
    return refusing, undecided, passing
