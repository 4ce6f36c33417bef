"""Packages that compile kernels on the user's machine: what speaks for it, and what it can target.

This is evidence, no verdict: whether such a kernel compiles for a GPU shows when it is compiled.
"""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path

MOST_PLACES = 3  # files named for each kind of evidence


@dataclass(frozen=True)
class Way:
    """One way of compiling at run time.  python, cuda: patterns in sources of that kind."""

    name: str
    says: str
    python: re.Pattern[bytes] | None = None
    cuda: re.Pattern[bytes] | None = None


WAYS = (
    Way(
        "Triton", "kernels compiled by Triton", re.compile(rb"@triton\.jit\b|@(?:gl|gluon)\.jit\b")
    ),
    Way(
        "CuTe DSL",
        "kernels compiled by CuTe DSL",
        re.compile(rb"^\s*(?:import|from)\s+cutlass\.cute\b|@cute\.(?:jit|kernel)\b", re.MULTILINE),
    ),
    Way(
        "TileLang",
        "kernels compiled by TileLang",
        re.compile(
            rb"@tilelang\.jit\b|@T\.prim_func\b|^\s*(?:import|from)\s+tilelang\b", re.MULTILINE
        ),
    ),
    Way(
        "NVRTC",
        "CUDA C++ compiled by NVRTC",
        # Calls and imports: a message or a comment that names it is no evidence.
        re.compile(
            rb"\bnvrtc(?:Create|Compile|Get)\w+|^\s*(?:import|from)\b[^\n]*\bnvrtc\b"
            rb"|cupy\.RawKernel\(|cuda\.core\b.*Program|load_inline\([^\n]*nvrtc",
            re.MULTILINE,
        ),
    ),
    Way(
        "nvcc",
        "CUDA C++ built on the user's machine by nvcc",
        re.compile(
            rb"cpp_extension\s+import\s+[^\n]*\bload\b|cpp_extension\.load|\bnvcc\b.*-gencode"
        ),
    ),
    Way("CUDA sources", "CUDA C++ sources in the package", None, re.compile(rb"__global__\b")),
)

# What sources say of the GPUs they are written for.
HINTS = {
    "wgmma": re.compile(rb"\bwgmma\b|warpgroup\.(?:MmaF16BF16Op|fence)|nvidia\.hopper\b"),
    "tcgen05": re.compile(rb"\btcgen05\b|nvidia\.blackwell\b|\bSm100\b|\bsm_?100a?\b"),
    "sm12x": re.compile(rb"\bsm_?12[01x][af]?\b|\bSm12[01]\b|__CUDA_ARCH__\s*[>=]=\s*12[01]0"),
}


@dataclass(frozen=True)
class Evidence:
    """Something that shows that a package compiles at run time.

    count: how many files show it; places: the first of them; hints: keys of HINTS they contain
    """

    way: str
    says: str
    count: int
    places: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Assembler:
    """A ptxas that comes with the package, and the targets its own bytes name."""

    place: str
    targets: tuple[str, ...]

    @property
    def newest(self) -> str:
        """The highest target; "" where none is named."""
        return self.targets[-1] if self.targets else ""


class Collector:
    """Gathers evidence file by file."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._hints: dict[str, set[str]] = {}

    def add(self, name: str, source: bytes, cuda: bool) -> None:
        """One source file; cuda: C++ rather than Python."""
        for way in WAYS:
            pattern = way.cuda if cuda else way.python
            if pattern is None or not pattern.search(source):
                continue
            self._counts[way.name] = self._counts.get(way.name, 0) + 1
            places = self._places.setdefault(way.name, [])
            if len(places) < MOST_PLACES:
                places.append(name)
            hints = self._hints.setdefault(way.name, set())
            hints.update(word for word, found in HINTS.items() if found.search(source))

    def found(self) -> tuple[Evidence, ...]:
        """What was gathered, in the order of WAYS."""
        return tuple(
            Evidence(
                way.name,
                way.says,
                self._counts[way.name],
                tuple(self._places[way.name]),
                tuple(sorted(self._hints[way.name])),
            )
            for way in WAYS
            if way.name in self._counts
        )


_TARGET = re.compile(rb"(?<![A-Za-z0-9_])sm_(\d{2,3})([af]?)(?![A-Za-z0-9_])")


def assembler(path: Path, place: str) -> Assembler:
    """The targets whose names stand in a ptxas, lowest first.  It is never run."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return Assembler(place, ())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = {(int(m[1]), m[2].decode()) for m in _TARGET.finditer(data)}
    return Assembler(place, tuple(f"sm_{number}{suffix}" for number, suffix in sorted(found)))
