"""In which format each kind of weight is kept, and how many bytes it takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparkwell.errors import BadInput
from sparkwell.ops.linear.decision import PLAIN
from sparkwell.plan.parts import QUANTIZABLE, Group, Part

BLOCK = 128  # rows and columns of an FP8 weight that share a scale


@dataclass(frozen=True)
class Format:
    """kind: as `formats.kind` names it, or PLAIN.  activations: what it is made for.

    group: columns that share a scale; k is a multiple of it.  In `ops`, `linear` and `experts` are
    the names of the format in problems.
    """

    kind: str
    activations: str = "none"
    group: int = 1
    linear: str = ""
    experts: str = "float"

    def nbytes(self, n: int, k: int) -> int:
        """Of a weight [n, k] with its scales, as it lies in memory."""
        if self.kind == "Nvfp4":  # a factor for each row
            return n * k // 2 + n * (k // 16) + 4 * n
        if self.kind == "Mxfp4":
            return n * k // 2 + n * (k // 32)
        if self.kind == "Int4Group":  # 16-bit scales, a byte of zero point
            return n * k // 2 + 3 * n * (k // self.group)
        if self.kind == "Fp8Block":
            return n * k + 4 * math.ceil(n / BLOCK) * math.ceil(k / BLOCK)
        if self.kind == "Fp8Rows":
            return n * k + 4 * n
        return 2 * n * k

    @property
    def made_for(self) -> str:
        """In words: "w4a16"."""
        bits = {PLAIN: 16, "Fp8Block": 8, "Fp8Rows": 8}.get(self.kind, 4)
        of = {"none": 16, "nvfp4": 4}.get(self.activations, 8)
        return f"w{bits}a{of}"


BF16 = Format(PLAIN)
FP8 = Format("Fp8Block", "fp8-group", 1, "fp8", "fp8-block")
FP8_ROWS = Format("Fp8Rows", "fp8-token", 1, "fp8", "fp8-rows")
NVFP4 = Format("Nvfp4", "none", 16, "nvfp4", "nvfp4")
NVFP4_A8 = Format("Nvfp4", "fp8-token", 16, "nvfp4", "nvfp4")
NVFP4_A4 = Format("Nvfp4", "nvfp4", 16, "nvfp4", "nvfp4")
MXFP4 = Format("Mxfp4", "none", 32, "mxfp4", "mxfp4")
INT4 = Format("Int4Group", "none", 128, "int4", "int4")
MLP: frozenset[Group] = frozenset({"dense", "shared", "experts"})
LAYERS = QUANTIZABLE - {"indexer"}  # FP4 leaves the indexer alone: its choice is worth its bytes


@dataclass(frozen=True)
class Scheme:
    """formats: of the groups that are quantized.  loads: whether `--scheme` of the engine makes it
    of plain weights; the others come as checkpoints.

    measured: bytes of the parts in the files, by their names, where files were read.
    """

    name: str
    words: str
    formats: Mapping[Group, Format] = field(default_factory=dict)
    loads: bool = False
    measured: Mapping[str, int] = field(default_factory=dict)
    of_parts: Mapping[str, Format] = field(default_factory=dict)

    def format(self, part: Part) -> Format:
        """Of this part; plain where its rows do not divide into groups."""
        wanted = self.of_parts.get(part.name, self.formats.get(part.group, BF16))
        return wanted if part.k and part.k % wanted.group == 0 else BF16

    def nbytes(self, part: Part) -> int:
        """All weights of this part."""
        if part.name in self.measured:
            return self.measured[part.name]
        kind = self.format(part)
        if kind.kind == PLAIN:
            return part.nbytes * part.parameters
        return part.count * kind.nbytes(part.n, part.k)


def _all(groups: frozenset[Group], kind: Format) -> dict[Group, Format]:
    return dict.fromkeys(groups, kind)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("bf16", "16-bit weights", loads=True),
        Scheme("fp8", "FP8 in blocks of 128 x 128 (W8A8)", _all(QUANTIZABLE, FP8), loads=True),
        Scheme("nvfp4", "NVFP4 weights (W4A16)", _all(LAYERS, NVFP4), loads=True),
        Scheme("nvfp4-w4a8", "NVFP4 weights, FP8 activations (W4A8)", _all(LAYERS, NVFP4_A8)),
        Scheme(
            "nvfp4-w4a4", "NVFP4 weights and activations (W4A4)", _all(LAYERS, NVFP4_A4), loads=True
        ),
        Scheme(
            "nvfp4-experts",
            "NVFP4 routed experts (W4A4), the rest 16-bit, as the published GLM-5.2-NVFP4",
            {"experts": NVFP4_A4},
        ),
        Scheme(
            "nvfp4-fp8",
            "NVFP4 feed-forward layers (W4A4), FP8 attention",
            _all(MLP, NVFP4_A4) | _all(QUANTIZABLE - MLP, FP8),
        ),
        Scheme("int4", "INT4 in groups of 128 (W4A16), as AWQ", _all(LAYERS, INT4)),
    )
}


def find(name: str) -> Scheme:
    """The scheme of this name.  Raises BadInput for another."""
    if name not in SCHEMES:
        raise BadInput(f"scheme is {name!r}, want one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
