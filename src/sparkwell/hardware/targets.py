"""What each compute capability can do: features and limits.  Nothing else compares capabilities.

A larger number is not a superset: sm_120 lacks what sm_100 has (tcgen05, tensor memory, hardware
multicast) and has what it lacks (native FP8 mma.sync).  So code asks for features.
"""

import re
from dataclasses import dataclass
from enum import Flag, StrEnum, auto

from sparkwell.errors import BadInput

KIB = 1024
REGISTERS_PER_SM = 65536  # 32-bit, the same on every target here
REGISTERS_PER_THREAD = 255


class Feature(Flag):
    """What a kernel may need.  `MEANINGS` says what each one is and how it is known."""

    MMA_F16 = auto()
    MMA_BF16 = auto()
    MMA_INT8 = auto()
    FP8_MMA = auto()
    FP8_MMA_SYNC = auto()
    FP4_BLOCK_MMA = auto()
    FP8_CONVERT = auto()
    FP4_CONVERT = auto()
    CP_ASYNC = auto()
    MBARRIER = auto()
    TMA = auto()
    TMA_GATHER = auto()
    MULTICAST = auto()
    CLUSTERS = auto()
    PDL = auto()
    SETMAXNREG = auto()
    WGMMA = auto()
    TCGEN05 = auto()
    TCGEN05_INT8 = auto()
    TMEM = auto()


F = Feature
_PTXAS = "ptxas 13.5 accepts it, and the disassembly shows the native instruction"

MEANINGS: dict[Feature, tuple[str, str]] = {
    F.MMA_F16: ("mma.sync on FP16", _PTXAS),
    F.MMA_BF16: ("mma.sync on BF16 and TF32", _PTXAS),
    F.MMA_INT8: ("mma.sync on INT8", _PTXAS),
    F.FP8_MMA: ("FP8 matrix product at its own rate, by mma.sync, wgmma or tcgen05", _PTXAS),
    F.FP8_MMA_SYNC: ("the same by mma.sync; elsewhere that converts to FP16 first", _PTXAS),
    F.FP4_BLOCK_MMA: ("FP4 matrix product with block scales, by mma.sync or tcgen05", _PTXAS),
    F.FP8_CONVERT: ("cvt to and from e4m3 pairs", _PTXAS),
    F.FP4_CONVERT: ("cvt to and from e2m1 pairs and ue8m0", _PTXAS),
    F.CP_ASYNC: ("cp.async, global to shared memory", _PTXAS),
    F.MBARRIER: ("mbarrier with hardware wait (try_wait)", _PTXAS),
    F.TMA: ("cp.async.bulk.tensor loads and stores", _PTXAS),
    F.TMA_GATHER: ("TMA gather of four rows", _PTXAS),
    F.MULTICAST: ("TMA multicast in hardware; on 12x it is a driver call", _PTXAS),
    F.CLUSTERS: ("thread block clusters, distributed shared memory", _PTXAS),
    F.PDL: ("programmatic dependent launch (griddepcontrol)", _PTXAS),
    F.SETMAXNREG: ("registers moved between warps (setmaxnreg)", _PTXAS),
    F.WGMMA: ("warp-group matrix product from shared memory", _PTXAS),
    F.TCGEN05: ("matrix product into tensor memory, by one or two blocks", _PTXAS),
    F.TCGEN05_INT8: ("tcgen05 on INT8", _PTXAS),
    F.TMEM: ("tensor memory, 256 KiB per SM", _PTXAS),
}


class TensorPath(StrEnum):
    """The instruction that reaches a target's full matrix rate."""

    MMA_SYNC = "mma.sync"
    WGMMA = "wgmma"
    TCGEN05 = "tcgen05"


_TURING = F.MMA_F16 | F.MMA_INT8
_AMPERE = _TURING | F.MMA_BF16 | F.CP_ASYNC
_ADA = _AMPERE | F.FP8_MMA | F.FP8_MMA_SYNC | F.FP8_CONVERT
_SINCE_HOPPER = (
    _AMPERE | F.FP8_MMA | F.FP8_CONVERT | F.MBARRIER | F.TMA | F.CLUSTERS | F.PDL | F.SETMAXNREG
)
_HOPPER = _SINCE_HOPPER | F.MULTICAST | F.WGMMA
_SINCE_BLACKWELL = _SINCE_HOPPER | F.FP4_BLOCK_MMA | F.FP4_CONVERT | F.TMA_GATHER
_DATACENTER = _SINCE_BLACKWELL | F.MULTICAST | F.TCGEN05 | F.TMEM
_CONSUMER = _SINCE_BLACKWELL | F.FP8_MMA_SYNC

# Features that plain sm_XY code may not contain, and the weakest suffix that admits them.
_NEEDS_A = F.WGMMA | F.TCGEN05_INT8
_NEEDS_F = F.FP4_BLOCK_MMA | F.FP4_CONVERT | F.SETMAXNREG | F.TCGEN05 | F.TMEM


@dataclass(frozen=True)
class Target:
    """One compute capability: sm = 10 * major + minor.

    Memory limits are bytes; `weak` names the fields that are assumed or from memory, where a limit
    is then a lower bound.  `SOURCES` says where each column is from.
    """

    sm: int
    architecture: str
    parts: str
    features: Feature
    tensor_path: TensorPath
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    blocks_per_sm: int
    warps_per_sm: int
    weak: frozenset[str] = frozenset()
    registers_per_sm: int = REGISTERS_PER_SM
    registers_per_thread: int = REGISTERS_PER_THREAD

    @property
    def name(self) -> str:
        """As compilers write it: "sm_121"."""
        return f"sm_{self.sm}"

    @property
    def capability(self) -> str:
        """As the CUDA documentation writes it: "12.1"."""
        return f"{self.major}.{self.sm % 10}"

    @property
    def major(self) -> int:
        """The number that cubins and family code may not cross."""
        return self.sm // 10

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Code variants a compiler offers: "" runs on later minors, "f" too, "a" only here."""
        if self.sm < 90:
            return ("",)
        return ("", "a") if self.sm == 90 else ("", "f", "a")

    def missing(self, features: Feature) -> tuple[Feature, ...]:
        """Those of `features` that this target lacks, one by one; empty: it has them all."""
        return tuple(features & ~self.features)

    def suffix_for(self, features: Feature) -> str:
        """The weakest suffix whose code may contain `features`: "", "f" or "a".

        Raises BadInput where the target lacks one of them altogether.
        """
        if lacking := self.missing(features):
            names = ", ".join(str(feature.name) for feature in lacking)
            raise BadInput(
                f"{self.name} has no {names}: no suffix admits it; choose another kernel"
            )
        if features & _NEEDS_A or (features & _NEEDS_F and "f" not in self.suffixes):
            return "a"
        return "f" if features & _NEEDS_F else ""

    def loads_cubin(self, image: str) -> bool:
        """Whether SASS built for `image` ("sm_120", "sm_120f", "sm_120a") runs here.

        "a": on the same target only.  Otherwise: same major, an equal or lower minor; sm_87
        (Orin) exchanges nothing with the other 8.x.  Raises BadInput for another spelling.
        """
        sm, suffix = _parse_image(image)
        if suffix == "a" or 87 in (sm, self.sm):
            return sm == self.sm
        return sm // 10 == self.major and sm <= self.sm

    def compiles_ptx(self, image: str) -> bool:
        """Whether the driver can compile PTX of `image` ("compute_90", "compute_100f") to run here.

        Plain: every later capability, across majors.  "f": like a cubin, within the major.
        "a": the same target only.  Raises BadInput for another spelling.
        """
        sm, suffix = _parse_image(image)
        if suffix == "a":
            return sm == self.sm
        return sm <= self.sm and (suffix == "" or sm // 10 == self.major)


def _parse_image(image: str) -> tuple[int, str]:
    """(121, "a") from "sm_121a", "compute_121a" or "121a"."""
    match = re.fullmatch(r"(?:sm_|compute_)?(\d{2,3})([af]?)", image.strip().lower())
    if match is None:
        raise BadInput(f"code target {image!r}: want a form like 'sm_90a' or 'compute_120f'")
    return int(match[1]), match[2]


SOURCES: dict[str, str] = {
    "features": "see MEANINGS, feature by feature",
    "tensor_path": _PTXAS,
    "shared_bytes_per_sm": "cuda_occupancy.h of CUDA 13.5",
    "shared_bytes_per_block": "CUTLASS shared-memory capacities; 1 KiB of the SM's is reserved",
    "blocks_per_sm": "cuda_occupancy.h of CUDA 13.5",
    "warps_per_sm": "CUDA programming guide, technical specifications per compute capability",
    "registers_per_sm": "CUDA programming guide",
    "registers_per_thread": "CUDA programming guide",
}

_MMA, _WG, _TC = TensorPath.MMA_SYNC, TensorPath.WGMMA, TensorPath.TCGEN05
_INT8 = F.TCGEN05_INT8
_SMALL, _LARGE = (100, 99), (228, 227)  # shared memory of an SM and of a block, KiB


def _row(
    sm: int,
    architecture: str,
    parts: str,
    features: Feature,
    path: TensorPath,
    shared: tuple[int, int],
    blocks: int,
    warps: int,
    *weak: str,
) -> Target:
    """A Target from a row of the table; `shared` is (per SM, per block) in KiB."""
    memory = (shared[0] * KIB, shared[1] * KIB)
    return Target(sm, architecture, parts, features, path, *memory, blocks, warps, frozenset(weak))


# fmt: off
TARGETS: tuple[Target, ...] = (
    # sm    architecture  parts                   features             path  shared     blocks warps
    _row(75,  "Turing",    "T4, RTX 20",          _TURING,             _MMA, (64, 64),   16, 32),
    _row(80,  "Ampere",    "A100, A30",           _AMPERE,             _MMA, (164, 163), 32, 64),
    _row(86,  "Ampere",    "RTX 30, A10, A40",    _AMPERE,             _MMA, _SMALL,     16, 48),
    _row(87,  "Ampere",    "Jetson Orin",         _AMPERE,             _MMA, (164, 163), 16, 48),
    _row(89,  "Ada",       "RTX 40, L4, L40S",    _ADA,                _MMA, _SMALL,     24, 48),
    _row(90,  "Hopper",    "H100, H200, GH200",   _HOPPER,             _WG,  _LARGE,     32, 64),
    _row(100, "Blackwell", "B200, GB200",         _DATACENTER | _INT8, _TC,  _LARGE,     32, 64),
    _row(103, "Blackwell", "B300, GB300",         _DATACENTER,         _TC,  _LARGE,     32, 64),
    _row(107, "Rubin",     "Rubin",               _DATACENTER,         _TC,  (328, 227), 16, 48,
       "shared_bytes_per_sm", "shared_bytes_per_block", "blocks_per_sm", "warps_per_sm"),
    _row(110, "Blackwell", "Jetson Thor",         _DATACENTER | _INT8, _TC,  _LARGE,     24, 48,
       "warps_per_sm"),
    _row(120, "Blackwell", "RTX 50, RTX PRO",     _CONSUMER,           _MMA, _SMALL,     24, 48),
    _row(121, "Blackwell", "GB10 (DGX Spark)",    _CONSUMER,           _MMA, _SMALL,     24, 48),
)
# fmt: on
_BY_SM = {row.sm: row for row in TARGETS}


def target(name: str | int) -> Target:
    """The row called "sm_121", "sm_121a", "121", "12.1" or 121.

    Raises BadInput for anything else and lists what is known.
    """
    text = str(name).strip().lower()
    match = re.fullmatch(r"(?:sm_?|compute_)?(\d{2,3}|\d{1,2}\.\d)[af]?", text)
    row = _BY_SM.get(int(match[1].replace(".", ""))) if match else None
    if row is None:
        known = ", ".join(row.name for row in TARGETS)
        raise BadInput(f"target {name!r} is not known; want one of {known}")
    return row
