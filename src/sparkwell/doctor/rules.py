"""Which image loads on which GPU: one row a rule, the first that applies decides.

The rows agree with `Target.loads_cubin` and `Target.compiles_ptx` (a test holds them to it) and
add what those leave out: why, what is not established, and where each rule is from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sparkwell.doctor.images import Image, Kind
from sparkwell.errors import BadInput
from sparkwell.hardware import Target


class Verdict(StrEnum):
    """How a kernel runs on a GPU, best first."""

    NATIVE = "native"  # machine code for exactly this GPU or its family
    OLDER = "older"  # machine code for an older minor of the same major
    JIT = "jit"  # compiled from PTX by the driver, when it is first loaded
    LINK = "jit-link"  # linked from objects by the driver, when the library is loaded
    UNKNOWN = "unknown"  # not established, or not readable
    STUB = "stub"  # loads, and its body does nothing
    REFUSED = "refused"  # no code that this GPU can load

    @property
    def runs(self) -> bool:
        """Whether the kernel does its work."""
        return self in (Verdict.NATIVE, Verdict.OLDER, Verdict.JIT, Verdict.LINK)

    @property
    def badness(self) -> int:
        """0 is best."""
        return list(Verdict).index(self)


@dataclass(frozen=True, slots=True)
class Code:
    """What decides about an image: kind, number and suffix of its target."""

    kind: Kind
    sm: int
    suffix: str

    @property
    def name(self) -> str:
        """ "sm_90a" for machine code, "compute_90a PTX" for the others."""
        words = {"sass": "", "ptx": " PTX", "lto": " link-time code", "tile": " Tile IR"}
        return (
            f"{'sm' if self.kind == 'sass' else 'compute'}_{self.sm}{self.suffix}"
            + (words[self.kind])
        )


def code_of(image: Image) -> Code:
    """The Code of an image.  Raises BadInput where its target has another form."""
    match = re.fullmatch(r"(\d{1,4})([af]?)", image.target)
    if match is None:
        raise BadInput(
            f"image at offset {image.offset}: target is {image.target!r}, want a form like '120f'"
        )
    return Code(image.kind, int(match[1]), match[2])


@dataclass(frozen=True)
class Rule:
    """`verdict` for every code and GPU for which `when` holds.

    reason: one line, with {code}, {sm}, {gpu} (its number with a point) and {own} ("sm_121").
    """

    name: str
    kinds: tuple[Kind, ...]
    when: Callable[[Code, Target], bool]
    verdict: Verdict
    reason: str
    source: str


_PTXAS = "ptxas 13.5, tried for 26 x 26 targets"
_GUIDE = "CUDA programming guide, binary and PTX compatibility"
_FAMILY = "CUDA programming guide, family-specific features; ptxas 13.5"
_ORIN = "CUDA programming guide: Orin (8.7) and desktop 8.x do not exchange code; from memory"
_RENAMED = "sm_101 of CUDA 12.8 and 12.9 is called sm_110 since 13.0; nobody documents old files"
_NVCC = "nvcc manual: relocatable code is linked before it can be loaded"
THOR, FORMER_THOR, ORIN = 110, 101, 87


def _same_major(code: Code, gpu: Target) -> bool:
    return code.sm // 10 == gpu.major


def _meets_orin(code: Code, gpu: Target) -> bool:
    return ORIN in (code.sm, gpu.sm) and code.sm != gpu.sm and _same_major(code, gpu)


def _newer(code: Code, gpu: Target) -> bool:
    return code.sm > gpu.sm


V = Verdict
SASS: tuple[Kind, ...] = ("sass",)
PTX: tuple[Kind, ...] = ("ptx",)
RULES: tuple[Rule, ...] = (
    Rule(
        "lto",
        ("lto",),
        lambda code, gpu: True,
        V.UNKNOWN,
        "only link-time code: it runs if the program links it itself (nvJitLink)",
        _NVCC,
    ),
    Rule(
        "tile-old-gpu",
        ("tile",),
        lambda code, gpu: gpu.sm < 80,
        V.REFUSED,
        "Tile IR needs an Ampere GPU or newer",
        "CUDA 13.1 Tile IR documentation, from memory",
    ),
    Rule(
        "tile",
        ("tile",),
        lambda code, gpu: True,
        V.UNKNOWN,
        "only Tile IR: for which GPUs a driver compiles it is not established",
        "no document found",
    ),
    Rule(
        "former-thor",
        ("sass", "ptx"),
        lambda code, gpu: code.sm == FORMER_THOR and (gpu.sm == THOR or _same_major(code, gpu)),
        V.UNKNOWN,
        "{code} is from before Thor's number changed to 11.0; whether it loads is not known",
        _RENAMED,
    ),
    Rule(
        "sass-a-exact",
        SASS,
        lambda code, gpu: code.suffix == "a" and code.sm == gpu.sm,
        V.NATIVE,
        "{code} code",
        _GUIDE,
    ),
    Rule(
        "sass-a-other",
        SASS,
        lambda code, gpu: code.suffix == "a",
        V.REFUSED,
        "its {code} code loads on sm_{sm} alone",
        _GUIDE,
    ),
    Rule(
        "sass-exact",
        SASS,
        lambda code, gpu: code.sm == gpu.sm,
        V.NATIVE,
        "{code} code",
        _GUIDE,
    ),
    Rule(
        "sass-orin",
        SASS,
        _meets_orin,
        V.REFUSED,
        "its {code} code does not load on {own}: Jetson Orin (8.7) shares none with the other 8.x",
        _ORIN,
    ),
    Rule(
        "sass-other-major",
        SASS,
        lambda code, gpu: not _same_major(code, gpu),
        V.REFUSED,
        "its {code} code is for another major than {gpu}",
        _GUIDE,
    ),
    Rule(
        "sass-newer-minor",
        SASS,
        _newer,
        V.REFUSED,
        "its {code} code is for a newer GPU than {gpu}",
        _GUIDE,
    ),
    Rule(
        "sass-family",
        SASS,
        lambda code, gpu: code.suffix == "f",
        V.NATIVE,
        "{code} code, made for the family {gpu} is in",
        _FAMILY,
    ),
    Rule(
        "sass-older-minor",
        SASS,
        lambda code, gpu: True,
        V.OLDER,
        "{code} code, which {gpu} runs too",
        _GUIDE,
    ),
    Rule(
        "ptx-a-exact",
        PTX,
        lambda code, gpu: code.suffix == "a" and code.sm == gpu.sm,
        V.JIT,
        "the driver compiles its {code}",
        _PTXAS,
    ),
    Rule(
        "ptx-a-other",
        PTX,
        lambda code, gpu: code.suffix == "a",
        V.REFUSED,
        "its {code} compiles for sm_{sm} alone",
        _PTXAS,
    ),
    Rule(
        "ptx-newer",
        PTX,
        _newer,
        V.REFUSED,
        "its {code} is for a newer GPU than {gpu}",
        _PTXAS,
    ),
    Rule(
        "ptx-other-family",
        PTX,
        lambda code, gpu: code.suffix == "f" and not _same_major(code, gpu),
        V.REFUSED,
        "its {code} compiles for its own family alone, and {gpu} is in another",
        _PTXAS,
    ),
    Rule(
        "ptx",
        PTX,
        lambda code, gpu: True,
        V.JIT,
        "the driver compiles its {code}",
        _PTXAS,
    ),
)


@dataclass(frozen=True, slots=True)
class Loading:
    """What a rule says of one image on one GPU."""

    verdict: Verdict
    reason: str
    rule: str


def loading(code: Code, gpu: Target) -> Loading:
    """How `code` loads on `gpu`, and the rule that says so."""
    for rule in RULES:
        if code.kind in rule.kinds and rule.when(code, gpu):
            reason = rule.reason.format(
                code=code.name, sm=code.sm, gpu=gpu.capability, own=gpu.name
            )
            return Loading(rule.verdict, reason, rule.name)
    raise AssertionError(f"no rule for {code}")  # the last rule of each kind always holds


def preference(code: Code) -> tuple[bool, int, int]:
    """Among images that load the driver takes the largest of these: machine code, then newest.

    From the CUDA programming guide, but for the order of suffixes, which nobody documents: an H200
    took 90a before 90, as machine code and as PTX; where "f" stands was not tried, and matters for
    the words of a verdict alone, since all load.
    """
    return code.kind == "sass", code.sm, ("", "f", "a").index(code.suffix)


# ---------------------------------------------------------------- toolkits and drivers

# CUDA release that brought each version of the PTX language (release notes; 12.9 and 13.x tried).
_PTX_CUDA = {
    (6, 0): (9, 0), (6, 1): (9, 1), (6, 2): (9, 2), (6, 3): (10, 0), (6, 4): (10, 1),
    (6, 5): (10, 2), (7, 0): (11, 0), (7, 1): (11, 1), (7, 2): (11, 2), (7, 3): (11, 3),
    (7, 4): (11, 4), (7, 5): (11, 5), (7, 6): (11, 6), (7, 7): (11, 7), (7, 8): (11, 8),
    (8, 0): (12, 0), (8, 1): (12, 1), (8, 2): (12, 2), (8, 3): (12, 3), (8, 4): (12, 4),
    (8, 5): (12, 5), (8, 6): (12, 7), (8, 7): (12, 8), (8, 8): (12, 9),
}  # fmt: skip

# Oldest driver branch for each CUDA major (CUDA release notes, minor-version compatibility).
_BRANCH = {11: 450, 12: 525, 13: 580}

# First CUDA release that compiles for a target (release notes; ptxas tried).  Others are older.
_SINCE = {
    87: (11, 4), 89: (11, 8), 90: (11, 8), 100: (12, 8), 103: (12, 9), 107: (13, 4),
    110: (13, 0), 120: (12, 8), 121: (12, 9),
}  # fmt: skip


def cuda_of_ptx(isa: tuple[int, int]) -> tuple[int, int] | None:
    """The CUDA release whose driver first compiles this version of PTX; None: not known."""
    if isa[0] >= 9:
        return 13, isa[1]  # 9.0 came with 13.0, and 9.k with 13.k as far as there are any
    return _PTX_CUDA.get(isa)


def driver_branch(cuda_major: int) -> int | None:
    """Oldest driver that runs machine code of this CUDA major; None: not known."""
    return _BRANCH.get(cuda_major)


def first_toolkit(gpu: Target) -> tuple[int, int] | None:
    """First CUDA release that compiles for `gpu`; None: older than 11.4."""
    return _SINCE.get(gpu.sm)


def arch_list(gpu: Target) -> str:
    """What to build for, as TORCH_CUDA_ARCH_LIST spells it, with everything the GPU has."""
    return gpu.capability + gpu.suffixes[-1]
