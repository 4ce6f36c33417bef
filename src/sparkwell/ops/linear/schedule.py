"""Rows of linear layers with quantized weights.

Streamed: the weight is read once and widened in registers, as rows of the product; its time is
that of memory.  Widened: the weight becomes a plain one first, which torch multiplies by.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sparkwell.hardware.targets import Feature, Target, TensorPath
from sparkwell.ops.schedule import (
    EVERY,
    HGMMA,
    HMMA,
    NO_MMA,
    QGMMA,
    QMMA,
    UTCHMMA,
    UTCQMMA,
    Row,
)


@dataclass(frozen=True)
class Problem:
    """y [m, n] = x [m, k] w [n, k]^T.

    kind: of the weight: "nvfp4", "mxfp4", "int4", "fp8"; "fp4": NVFP4 both, with block scales.
    x: "bf16", "fp16", "fp32", "fp8", "fp4".
    group: columns of a scale; 0: scales are per row only.  zeros: whether groups have zero points.
    """

    m: int
    n: int
    k: int
    kind: str
    x: str
    group: int
    zeros: bool = False

    @property
    def width(self) -> int:
        """What a row of the weight is counted in by schedules: bytes; for "fp4": columns."""
        return self.k if self.kind in ("fp8", "fp4") else self.k // 2


@dataclass(frozen=True)
class Schedule:
    """A block takes block_n rows of the weight and block_m of x, block_k bytes of a row at a time.

    fill: blocks an SM for which K is shared; 0: the whole weight is widened.
    """

    block_n: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    fill: int = 0


@dataclass(frozen=True)
class Reduce:
    """block: columns of y that a block adds up."""

    block: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Parts:
    """chunk: bytes of a row that a block takes; count: blocks that share a row."""

    chunk: int
    count: int


def parts(p: Problem, s: Schedule, sms: int) -> Parts:
    """How many blocks share K: as many as fill the SMs, with two steps each at least."""
    tiles = -(-p.n // s.block_n) * -(-p.m // s.block_m)
    # Scales are copied in the background from where 16 of them start.
    unit = max(s.block_k, 16 * {"nvfp4": 8, "mxfp4": 16}.get(p.kind, 1))
    units = -(-p.width // unit)
    wanted = max(1, min(s.fill * sms // max(1, tiles), p.width // (2 * s.block_k)))
    chunk = -(-units // wanted) * unit
    return Parts(chunk, max(1, -(-p.width // chunk)))


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes, as Triton 3.9 places the operands.

    Matrix units that read shared memory hold the halves of x there once more; zero points that
    are subtracted make a tile of codes change its layout.
    """
    if not s.fill:
        return 2048 if p.kind != "fp8" else 0
    paired = p.kind != "fp8"
    codes, x = s.block_n * s.block_k, s.block_m * s.block_k * (4 if paired else 2)
    if s.block_k == 16:  # narrower than a matrix instruction's row: not copied ahead
        return (s.num_stages - 1) * x + 2 * codes
    scales = codes // {"nvfp4": 8, "mxfp4": 16}.get(p.kind, codes)
    if scales < 8 * s.block_n:  # narrower than what is copied ahead
        scales = 0
    size = (s.num_stages - 1) * (codes + x + scales)
    if s.block_m < 64:
        return size
    if target.tensor_path is TensorPath.TCGEN05:
        folded = x + (codes if s.block_k == 32 else 0)
        return size + (folded if p.kind in ("nvfp4", "mxfp4") else x // 2 if paired else 0)
    changed = 2 * codes if p.zeros else 0
    return size + changed + (x if target.tensor_path is TensorPath.WGMMA else 0)


def scaled_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where both operands are FP8."""
    sync = s.block_m < 64 or target.tensor_path is TensorPath.MMA_SYNC
    return (s.num_stages - sync) * (s.block_n + s.block_m) * s.block_k


def blockscaled_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where both operands are NVFP4; block_k: columns."""
    return (s.num_stages - 1) * (s.block_n + s.block_m) * (s.block_k // 2 + s.block_k // 16)


def expanded_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where NVFP4 becomes e4m3; x is read in pairs of bytes."""
    codes, x = s.block_n * s.block_k, 2 * s.block_m * s.block_k
    size = (s.num_stages - 1) * (codes + codes // 8 + x)
    if s.block_m < 64 or target.tensor_path is TensorPath.MMA_SYNC:
        return size
    return size + (x if target.tensor_path is TensorPath.WGMMA else x // 2)


CONSUMER, DATACENTER = frozenset({120, 121}), frozenset({100, 103})
AMPERE = frozenset({80, 86})
FP4_UNITS, FP8_UNITS = Feature.FP4_BLOCK_MMA, Feature.FP8_MMA
OMMA = r"\bOMMA\b"  # 4-bit mma.sync with block scales
UTCOMMA = r"\bUTCOMMA\b"  # 4-bit tcgen05 with block scales
FP8_ANY = f"{HMMA}|{QMMA}|{QGMMA}|{UTCQMMA}"  # without FP8 units: float16
HMMA_ANY = f"{HMMA}|{HGMMA}|{UTCHMMA}"


def _streamed(most: int, kinds: str, step: int = 0) -> Callable[[Problem], bool]:
    """Whether the kernel serves at most `most` rows; step: columns that have one scale."""

    def serves(p: Problem) -> bool:
        if p.kind not in kinds or not 0 < p.m <= most or p.x == "fp32":
            return False
        if p.kind == "mxfp4" and p.x != "bf16":  # its exponents are beyond float16
            return False
        return not step or p.group % step == 0

    return serves


FP4, FP8, INT4 = "nvfp4 mxfp4", "fp8", "int4"
FEW = 256  # rows of x up to which a widened weight does not pay; modelled, not timed

# fmt: off
TABLE: tuple[Row, ...] = (
    #   name         n    m  bytes warps stages fill  targets
    Row("fp4-8",     Schedule(64, 8, 128, 2, 4, 6),    EVERY, _streamed(8, FP4), "FP4, at most 8 rows", HMMA),
    Row("fp4-16",    Schedule(64, 16, 128, 2, 4, 6),   EVERY, _streamed(16, FP4), "FP4, at most 16 rows", HMMA),
    Row("fp4-64",    Schedule(128, 64, 64, 8, 3, 2),   EVERY, _streamed(64, FP4), "FP4, at most 64 rows", HMMA_ANY),
    Row("fp4-256",   Schedule(128, 128, 32, 8, 4, 1),  EVERY, _streamed(FEW, FP4), "FP4, at most 256 rows", HMMA_ANY),
    Row("int4-8",    Schedule(64, 8, 64, 2, 5, 6),     EVERY, _streamed(8, INT4, 128), "INT4 in groups of 128, at most 8 rows", HMMA),
    Row("int4-16",   Schedule(64, 16, 64, 2, 5, 6),    EVERY, _streamed(16, INT4, 128), "INT4 in groups of 128, at most 16 rows", HMMA),
    Row("int4-256",  Schedule(64, 64, 64, 4, 4, 2),    EVERY, _streamed(FEW, INT4, 128), "INT4 in groups of 128, at most 256 rows", HMMA_ANY),
    Row("int4-g64",  Schedule(64, 16, 32, 2, 5, 6),    EVERY, _streamed(16, INT4, 64), "INT4 in groups of 64, at most 16 rows", HMMA),
    Row("int4-g32",  Schedule(64, 16, 16, 2, 5, 6),    EVERY, _streamed(16, INT4, 32), "INT4 in groups of 32, at most 16 rows", HMMA),
    Row("fp8-8",     Schedule(64, 8, 128, 2, 4, 6),    EVERY, _streamed(8, FP8, 128), "FP8 in groups of 128 or rows, at most 8 rows", HMMA),
    Row("fp8-16",    Schedule(64, 16, 64, 2, 5, 6),    EVERY, _streamed(16, FP8, 64), "FP8 in groups of 64 or rows, at most 16 rows", HMMA),
    Row("fp8-64",    Schedule(128, 64, 64, 4, 4, 2),   EVERY, _streamed(64, FP8, 64), "FP8 in groups of 64 or rows, at most 64 rows", HMMA_ANY),
    Row("fp8-256",   Schedule(128, 128, 64, 8, 4, 1),  EVERY, _streamed(FEW, FP8, 64), "FP8 in groups of 64 or rows, at most 256 rows", HMMA_ANY),
    Row("widened",   Schedule(16, 0, 128, 4),          EVERY, lambda p: True, "everything", NO_MMA),
)

SCALED: tuple[Row, ...] = (
    Row("scaled-16", Schedule(64, 16, 128, 2, 4, 6),   EVERY, lambda p: p.m <= 16 and p.group % 128 == 0, "FP8 in groups of 128 or rows, at most 16 rows", f"{HMMA}|{QMMA}"),
    Row("scaled-64", Schedule(128, 64, 128, 8, 3, 2),  EVERY, lambda p: p.m <= 64 and p.group % 128 == 0, "FP8 in groups of 128 or rows, at most 64 rows", FP8_ANY),
    Row("scaled",    Schedule(128, 128, 128, 8, 3, 1), EVERY, lambda p: p.group % 128 == 0, "FP8 in groups of 128 or rows", FP8_ANY),
)

BLOCKSCALED: tuple[Row, ...] = (
    Row("blocks-16", Schedule(128, 16, 256, 4, 3, 4),  CONSUMER, lambda p: p.m <= 16, "at most 16 rows", OMMA, FP4_UNITS),
    Row("blocks-64", Schedule(128, 64, 256, 8, 3, 2),  CONSUMER, lambda p: p.m <= 64, "at most 64 rows", OMMA, FP4_UNITS),
    Row("blocks",    Schedule(128, 128, 256, 8, 3, 1), CONSUMER, lambda p: True, "everything", OMMA, FP4_UNITS),
    Row("blocks-tc", Schedule(128, 128, 256, 8, 3, 1), DATACENTER, lambda p: True, "everything", UTCOMMA, FP4_UNITS),
)

EXPANDED: tuple[Row, ...] = (
    Row("expanded-16", Schedule(64, 16, 128, 2, 4, 6), EVERY - AMPERE, lambda p: p.m <= 16, "at most 16 rows", f"{HMMA}|{QMMA}", FP8_UNITS),
    Row("expanded-64", Schedule(128, 64, 64, 8, 4, 2), EVERY - AMPERE, lambda p: p.m <= 64, "at most 64 rows", FP8_ANY, FP8_UNITS),
    Row("expanded",  Schedule(128, 128, 64, 8, 4, 1),  EVERY - AMPERE, lambda p: True, "everything", FP8_ANY, FP8_UNITS),
)

REDUCE: tuple[Row, ...] = (
    Row("reduce",    Reduce(512, 4),                   EVERY, lambda p: True, "every width", NO_MMA),
)
# fmt: on
