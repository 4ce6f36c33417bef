"""Rows of linear layers with quantized weights.

Streamed: the weight is read once and widened in registers, as rows of the product; its time is
that of memory.  On Hopper codes go straight to the registers that need them (`direct`, `turned`);
those of large weights go through a ring that copying warps fill (`ring`).
Widened: the weight becomes a plain one first, which torch multiplies by.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sparkwell.hardware.targets import Feature, Target, TensorPath
from sparkwell.ops.schedule import (
    EVERY,
    H200,
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
    few: rows of x up to which a weight that is widened first does not pay.
    aligned: whether rows of the weight and of its scales start at whole words.
    sms: of the device.
    boxes: FP8: the copy engine reads both operands, and rows of a block of 128 share a scale, or
    none.  NVFP4: it reads the weight's codes and scales.
    result: bytes of a value of y.
    """

    m: int
    n: int
    k: int
    kind: str
    x: str
    group: int
    zeros: bool = False
    few: int = 256
    aligned: bool = True
    sms: int = 132
    boxes: bool = False
    result: int = 2

    @property
    def width(self) -> int:
        """What a row of the weight is counted in by schedules: bytes; for "fp4": columns."""
        return self.k if self.kind in ("fp8", "fp4") else self.k // 2


@dataclass(frozen=True)
class Schedule:
    """A block takes block_n rows of the weight and block_m of x, block_k bytes of a row at a time.

    fill: blocks an SM for which K is shared; 0: the whole weight is widened.
    shares: of K among a block's warps; 0: all warps take the same columns.
    way: which kernel: "shared" (`few` where warps share K, else `streamed`), "direct", "turned",
    "ring" (block_k: columns).
    roles: some warps copy, the others multiply (`kernels.fp8_products`; few rows: `fp8_few`).
    blocks: that stay on an SM, of `ring` and `fp8_few`.
    """

    block_n: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    fill: int = 0
    shares: int = 0
    way: str = "shared"
    roles: bool = False
    blocks: int = 1


@dataclass(frozen=True)
class Reduce:
    """block: columns of y that a block adds up, of at_once parts at a time."""

    block: int
    at_once: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Parts:
    """chunk: bytes of a row that a block, or a share of one, takes; count: blocks that share a row.

    even: whether every share is as long, and ends with a whole step.
    """

    chunk: int
    count: int
    even: bool


def few_rows(peak: float, bandwidth: float, path: TensorPath) -> int:
    """Rows of x up to which a weight is better streamed than widened first.

    peak: of 16-bit products.  Widening moves about 4.5 bytes a weight more; its product then runs
    at 0.9 of the peak.  The streamed one runs at 0.17 where matrix units read shared memory (0.12
    to 0.19 on an H200), at 0.55 where they read registers, by a model that was not timed.
    """
    streamed = {TensorPath.MMA_SYNC: 0.55, TensorPath.WGMMA: 0.17}.get(path, 0.35)
    return int(4.5 / bandwidth * peak / (2 / streamed - 2 / 0.9))


def parts(p: Problem, s: Schedule, sms: int) -> Parts:
    """How many blocks share K: as many as fill the SMs, with two steps each at least."""
    tiles = -(-p.n // s.block_n) * -(-p.m // s.block_m)
    # Scales are copied in the background from where 16 of them start.
    unit = max(s.block_k, 16 * {"nvfp4": 8, "mxfp4": 16}.get(p.kind, 1))
    units, shares = -(-p.width // unit), max(1, s.shares)
    wanted = max(1, min(s.fill * sms // max(1, tiles), p.width // (2 * s.block_k * shares)))
    chunk = max(1, -(-units // (wanted * shares))) * unit
    count = max(1, -(-p.width // (chunk * shares)))
    return Parts(chunk, count, p.width == chunk * shares * count)


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes, as Triton 3.9 places the operands.

    Matrix units that read shared memory hold the halves of x there once more; zero points that
    are subtracted make a tile of codes change its layout.
    """
    if not s.fill:
        return 2048 if p.kind != "fp8" else 4096
    if s.way == "direct":  # what warps add through
        return 512 * s.num_warps if s.num_warps > 1 else 0
    if s.way == "ring":
        return s.num_stages * s.block_k * (s.block_n // 2 + s.block_n // 16 + 2 * s.block_m)
    if s.way == "turned":
        return s.num_stages * s.block_m * s.block_k * 4
    paired, shares = p.kind != "fp8", max(1, s.shares)
    codes, x = s.block_n * s.block_k, s.block_m * s.block_k * (4 if paired else 2)
    if s.block_k == 16:  # narrower than a matrix instruction's row: codes change their layout
        ahead = codes + x if p.zeros else x
        return shares * ((s.num_stages - 1) * ahead + 2 * codes)
    scales = codes // {"nvfp4": 8, "mxfp4": 16}.get(p.kind, codes)
    if scales < 8 * s.block_n:  # narrower than what is copied ahead
        scales = 0
    size = (s.num_stages - 1) * (codes + x + scales) * shares
    if s.block_m < 64:
        return size
    if target.tensor_path is TensorPath.TCGEN05:
        if p.kind == "fp8":
            return size + (0 if p.group else x)
        return size + (x // 2 if p.kind == "int4" else x + (codes if s.block_k == 32 else 0))
    changed = 2 * codes if p.zeros else 0
    return size + changed + (x if target.tensor_path is TensorPath.WGMMA else 0)


def scaled_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where both operands are FP8."""
    if s.roles and s.block_m <= 64:  # `kernels.fp8_few`: stages, scales of all steps
        scales = 4 * table_steps(p.k) * s.block_m if p.group else 0
        added = 2048 if s.block_n < 64 else 0  # slabs that shared an instruction
        return s.num_stages * (s.block_m + s.block_n) * s.block_k + scales + added
    if s.roles:
        return roles_shared(s.block_n, s.num_stages, p.group > 0, s.fill > 0 or p.result > 2)
    sync = s.block_m < 64 or target.tensor_path is TensorPath.MMA_SYNC
    return (s.num_stages - sync) * (s.block_n + s.block_m) * s.block_k


def table_steps(k: int) -> int:
    """Steps of 128 columns, rounded up to a power of two; at least the 8 that a stage may have."""
    return 1 << max(3, (-(-k // 128) - 1).bit_length())


def roles_shared(block_n: int, stages: int, scaled: bool, wide: bool) -> int:
    """Bytes of shared memory that `kernels.fp8_products` takes for tiles of 128 rows.

    scaled: each 128 outputs of a row have a scale a step.  wide: results of four bytes turn in it.
    """
    scales = 4 * 128 * (block_n // 128) if scaled else 0
    return stages * ((block_n + 128) * 128 + scales) + (65536 if wide else 16384)


def blockscaled_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where both operands are NVFP4; block_k: columns."""
    return (s.num_stages - 1) * (s.block_n + s.block_m) * (s.block_k // 2 + s.block_k // 16)


def expanded_shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes where NVFP4 becomes e4m3; x is read in pairs of bytes."""
    codes, x = s.block_n * s.block_k, 2 * s.block_m * s.block_k
    scales = codes // (8 if p.kind == "nvfp4" else 16)
    if scales < 8 * s.block_n:  # narrower than what is copied ahead
        scales = 0
    size = (s.num_stages - 1) * (codes + scales + x)
    if s.block_m < 64 or target.tensor_path is TensorPath.MMA_SYNC:
        return size
    return size + (x if target.tensor_path is TensorPath.WGMMA else x // 2)


CONSUMER, DATACENTER = frozenset({120, 121}), frozenset({100, 103})
HOPPER = frozenset({90})
AMPERE, ADA = frozenset({80, 86}), frozenset({89})
FP4_UNITS, FP8_UNITS = Feature.FP4_BLOCK_MMA, Feature.FP8_MMA
OMMA = r"\bOMMA\b"  # 4-bit mma.sync with block scales
UTCOMMA = r"\bUTCOMMA\b"  # 4-bit tcgen05 with block scales
FP8_ANY = f"{HMMA}|{QMMA}|{QGMMA}|{UTCQMMA}"  # without FP8 units: float16
HMMA_ANY = f"{HMMA}|{HGMMA}|{UTCHMMA}"


def _streamed(most: int, kind: str, step: int = 0) -> Callable[[Problem], bool]:
    """Whether the kernel serves at most `most` rows, 0: a few; step: columns that have one scale."""

    def serves(p: Problem) -> bool:
        return p.kind == kind and p.m <= (most or p.few) and _half(p) and _steps(p, step)

    return serves


def _grouped(most: int) -> Callable[[Problem], bool]:
    """At most so many rows, and a scale each 128 columns, or a multiple of them."""
    return lambda p: p.kind == "fp8" and p.m <= most and _steps(p, 128)


def _by_row(most: int) -> Callable[[Problem], bool]:
    """At most so many rows, and one scale for each row of the weight."""
    return lambda p: p.m <= most and not p.group


def _boxed(p: Problem) -> bool:
    """Whether warps with roles multiply, and there are rows enough for it to pay."""
    return p.boxes and p.m > 64 and _wide(p)


def _few(p: Problem, most: int) -> bool:
    """Whether the copy engine reads both operands, and x has at most so many rows."""
    return p.boxes and p.m <= most and _wide(p)


def _wide(p: Problem) -> bool:
    """Whether columns share scales by 128 at least, or all do."""
    return not p.group or p.group % 128 == 0


def _tiles(p: Problem) -> int:
    """Tiles of 128 x 128, of which an SM takes one at a time."""
    return -(-p.m // 128) * -(-p.n // 128)


def _steps(p: Problem, step: int) -> bool:
    """Whether no step of the loop meets two scales; 0: they are no matter of steps."""
    return not step or (p.group > 0 and p.group % step == 0)


def _half(p: Problem) -> bool:
    """Whether x is of 16 bits, and rows of the weight can be copied 16 bytes at a time."""
    return p.x in ("bf16", "fp16") and p.width > 0 and p.width % 16 == 0


def _direct(kind: str, most: int, rows: int) -> Callable[[Problem], bool]:
    """At most `most` rows of x, `rows` an SM of a weight whose scales are of whole chunks."""

    def serves(p: Problem) -> bool:
        step = {"int4": 128, "fp8": 128 if p.group else 0}.get(kind, 0)
        fits = p.kind == kind and p.m <= most and p.n <= rows * p.sms
        return fits and p.aligned and _half(p) and _steps(p, step)

    return serves


def _whole_direct(p: Problem) -> bool:
    """More than 64 rows of an NVFP4 weight an SM, of columns that four warps share in whole steps."""
    return p.n > 64 * p.sms and p.k % 1024 == 0 and _direct("nvfp4", 8, ANY)(p)


def _turned(most: int) -> Callable[[Problem], bool]:
    """NVFP4, at most `most` rows of x, of 16 bits, whole steps of columns."""

    def serves(p: Problem) -> bool:
        return p.kind == "nvfp4" and p.m <= most and p.aligned and _half(p) and p.k % 256 == 0

    return serves


def _ring(most: int, rows: int, steps: int) -> Callable[[Problem], bool]:
    """As `_turned`, by the copy engine, where each block has `steps` steps at least.

    rows: of the weight that an SM's blocks take at once.
    """

    def serves(p: Problem) -> bool:
        long = p.n * p.k >= steps * rows * p.sms * 256
        return p.boxes and p.m > 0 and long and _turned(most)(p)

    return serves


def _fill(p: Problem, rows: int) -> bool:
    """Whether tiles of so many rows of the weight, each K in equal parts, fill 7 of 8 SMs."""
    tiles = -(-p.n // rows)
    return tiles >= p.sms or tiles * (p.sms // tiles) * 8 >= p.sms * 7


ANY = 1 << 62
LOW = 4096  # rows of a weight that tiles of 16 divide among all SMs
HOPPER = frozenset({90})

# fmt: off
# Tiles of the weight an SM decide: one to four at once, each with all warps; or many in turn.
_DIRECT: tuple[Row, ...] = (
    #   name                   n   m  bytes warps
    Row("nvfp4-direct-one",  Schedule(16, 8, 1024, 16, fill=1, way="direct"), HOPPER, _direct("nvfp4", 8, 16), "NVFP4, at most 8 rows of 16 bits, a tile of the weight an SM", HMMA, measured_on=H200),
    Row("nvfp4-direct-two",  Schedule(16, 8, 1024, 8, fill=1, way="direct"),  HOPPER, _direct("nvfp4", 8, 32), "NVFP4, at most 8 rows of 16 bits, two tiles of the weight an SM", HMMA, measured_on=H200),
    Row("nvfp4-ring-8",      Schedule(256, 8, 256, 8, 2, 1, way="ring", blocks=2), HOPPER, lambda p: p.n > 64 * p.sms and _ring(8, 512, 5)(p), "NVFP4 that the copy engine reads, at most 8 rows of 16 bits, more than four tiles of the weight an SM, five steps of 256 x 256 for each of two blocks an SM", HMMA, measured_on=H200),
    Row("nvfp4-direct",      Schedule(32, 8, 512, 4, fill=1, way="direct"),   HOPPER, _whole_direct, "NVFP4, at most 8 rows of 16 bits, more than four tiles of the weight an SM, K in steps of 1024", HMMA),
    Row("nvfp4-direct-four", Schedule(16, 8, 1024, 4, fill=1, way="direct"),  HOPPER, _direct("nvfp4", 8, ANY), "NVFP4, at most 8 rows of 16 bits", HMMA, measured_on=H200),
    Row("int4-direct-one",   Schedule(16, 8, 1024, 16, fill=1, way="direct"), HOPPER, _direct("int4", 8, 16), "INT4, at most 8 rows of 16 bits, a tile of the weight an SM", HMMA, measured_on=H200),
    Row("int4-direct-two",   Schedule(32, 8, 1024, 16, fill=1, way="direct"),  HOPPER, _direct("int4", 8, 32), "INT4, at most 8 rows of 16 bits, two tiles of the weight an SM", HMMA, measured_on=H200),
    Row("int4-direct-four",  Schedule(16, 8, 1024, 4, fill=1, way="direct"),  HOPPER, _direct("int4", 8, 64), "INT4, at most 8 rows of 16 bits, four tiles of the weight an SM", HMMA, measured_on=H200),
    Row("int4-direct",       Schedule(32, 8, 512, 4, fill=1, way="direct"),   HOPPER, _direct("int4", 8, ANY), "INT4, at most 8 rows of 16 bits", HMMA, measured_on=H200),
    Row("fp8-direct-two",    Schedule(16, 8, 2048, 8, fill=1, way="direct"),  HOPPER, _direct("fp8", 8, 32), "FP8, at most 8 rows of 16 bits, two tiles of the weight an SM", HMMA, measured_on=H200),
    Row("fp8-direct-four",   Schedule(16, 8, 512, 4, fill=1, way="direct"),   HOPPER, _direct("fp8", 8, 64), "FP8, at most 8 rows of 16 bits, four tiles of the weight an SM", HMMA, measured_on=H200),
    Row("fp8-direct",        Schedule(32, 8, 256, 2, fill=1, way="direct"),   HOPPER, _direct("fp8", 8, ANY), "FP8, at most 8 rows of 16 bits", HMMA, measured_on=H200),
    Row("fp8-direct-16-two", Schedule(32, 16, 1024, 8, fill=1, way="direct"), HOPPER, _direct("fp8", 16, 32), "FP8, at most 16 rows of 16 bits, two tiles of the weight an SM", HMMA, measured_on=H200),
    Row("fp8-direct-16",     Schedule(32, 16, 512, 4, fill=1, way="direct"),  HOPPER, _direct("fp8", 16, 64), "FP8, at most 16 rows of 16 bits, four tiles of the weight an SM", HMMA, measured_on=H200),
)

TABLE: tuple[Row, ...] = (
    #   name          n    m  bytes warps stages fill shares  targets
    *_DIRECT,
    Row("nvfp4-ring-16",   Schedule(128, 16, 256, 4, 2, 1, way="ring", blocks=3), HOPPER, _ring(16, 384, 3), "NVFP4 that the copy engine reads, at most 16 rows of 16 bits, three steps of 128 x 256 for each of three blocks an SM", HMMA, measured_on=H200),
    Row("nvfp4-turned-16",  Schedule(64, 16, 64, 4, 3, 4, way="turned"), HOPPER, _turned(16), "NVFP4, at most 16 rows of 16 bits, K in steps of 256", HGMMA, measured_on=H200),
    Row("nvfp4-turned-64",  Schedule(128, 64, 64, 8, 3, 2, way="turned"), HOPPER, _turned(64), "NVFP4, at most 64 rows of 16 bits, K in steps of 256", HGMMA, measured_on=H200),
    Row("nvfp4-turned-128", Schedule(64, 128, 64, 4, 3, 2, way="turned"), HOPPER, _turned(128), "NVFP4, at most 128 rows of 16 bits, K in steps of 256", HGMMA),
    Row("nvfp4-turned-256", Schedule(128, 256, 64, 8, 3, 1, way="turned"), HOPPER, lambda p: _turned(256)(p) and _fill(p, 128), "NVFP4, at most 256 rows of 16 bits, tiles of 128 rows that fill the SMs", HGMMA, measured_on=H200),
    Row("nvfp4-turned-two", Schedule(128, 128, 64, 8, 3, 1, way="turned"), HOPPER, _turned(256), "NVFP4, at most 256 rows of 16 bits, K in steps of 256", HGMMA, measured_on=H200),
    Row("nvfp4-8-low", Schedule(16, 8, 64, 8, 4, 1, 8), EVERY - HOPPER, lambda p: p.n <= LOW and _streamed(8, "nvfp4")(p), "NVFP4 of at most 4096 rows, at most 8 of x, of 16 bits", HMMA),
    Row("nvfp4-8",    Schedule(32, 8, 128, 4, 3, 1, 4),     EVERY - HOPPER, _streamed(8, "nvfp4"), "NVFP4, at most 8 rows of 16 bits", HMMA),
    Row("nvfp4-16",   Schedule(64, 16, 64, 4, 4, 2, 2),     EVERY, _streamed(16, "nvfp4"), "NVFP4, at most 16 rows of 16 bits", HMMA),
    Row("nvfp4-64",   Schedule(128, 64, 64, 8, 3, 2),   EVERY, _streamed(64, "nvfp4"), "NVFP4, at most 64 rows of 16 bits", HMMA_ANY),
    Row("nvfp4-few",  Schedule(128, 128, 32, 8, 4, 1),  EVERY, _streamed(0, "nvfp4"), "NVFP4, few rows of 16 bits", HMMA_ANY),
    # MXFP4's exponents are those of bfloat16, and beyond float16.
    Row("mxfp4-8",    Schedule(32, 8, 128, 4, 3, 1, 4),     EVERY, lambda p: p.kind == "mxfp4" and p.m <= 8 and p.x == "bf16" and _half(p), "MXFP4, at most 8 rows of BF16", HMMA),
    Row("mxfp4-16",   Schedule(64, 16, 128, 4, 3, 2, 2),    EVERY, lambda p: p.kind == "mxfp4" and p.m <= 16 and p.x == "bf16" and _half(p), "MXFP4, at most 16 rows of BF16", HMMA),
    Row("mxfp4-64",   Schedule(128, 64, 64, 8, 3, 2),   EVERY, lambda p: p.kind == "mxfp4" and p.m <= 64 and p.x == "bf16" and _half(p), "MXFP4, at most 64 rows of BF16", HMMA_ANY),
    Row("mxfp4-few",  Schedule(128, 128, 32, 8, 4, 1),  EVERY, lambda p: p.kind == "mxfp4" and p.m <= p.few and p.x == "bf16" and _half(p), "MXFP4, few rows of BF16", HMMA_ANY),
    Row("int4-8",     Schedule(32, 8, 64, 4, 4, 1, 4),      EVERY - HOPPER, _streamed(8, "int4", 128), "INT4 in groups of 128, at most 8 rows of 16 bits", HMMA),
    Row("int4-16",    Schedule(64, 16, 64, 4, 4, 2, 2),     EVERY, _streamed(16, "int4", 128), "INT4 in groups of 128, at most 16 rows of 16 bits", HMMA),
    Row("int4-few",   Schedule(64, 64, 64, 4, 4, 2),    EVERY, _streamed(0, "int4", 128), "INT4 in groups of 128, few rows of 16 bits", HMMA_ANY),
    Row("int4-g64",   Schedule(32, 16, 32, 4, 4, 1, 4),     EVERY, _streamed(16, "int4", 64), "INT4 in groups of 64, at most 16 rows of 16 bits", HMMA),
    Row("int4-g32",   Schedule(32, 16, 16, 4, 4, 1, 4),     EVERY, _streamed(16, "int4", 32), "INT4 in groups of 32, at most 16 rows of 16 bits", HMMA),
    Row("blocks-8",   Schedule(32, 8, 128, 4, 3, 1, 4),     EVERY - HOPPER, lambda p: _half(p) and _grouped(8)(p), "FP8 in groups of 128, at most 8 rows of 16 bits", HMMA),
    Row("blocks-16",  Schedule(64, 16, 64, 4, 5, 2, 2),     EVERY, _streamed(16, "fp8", 64), "FP8 in groups of 64, at most 16 rows of 16 bits", HMMA, measured_on=H200),
    Row("blocks-64",  Schedule(128, 64, 64, 4, 4, 2),   EVERY, _streamed(64, "fp8", 64), "FP8 in groups of 64, at most 64 rows of 16 bits", HMMA_ANY),
    Row("blocks-few", Schedule(128, 128, 64, 8, 4, 1),  EVERY, _streamed(0, "fp8", 64), "FP8 in groups of 64, few rows of 16 bits", HMMA_ANY),
    Row("rows-8",     Schedule(32, 8, 128, 4, 3, 1, 4),     EVERY - HOPPER, lambda p: p.kind == "fp8" and _half(p) and _by_row(8)(p), "FP8 rows, at most 8 rows of 16 bits", HMMA),
    Row("rows-16",    Schedule(64, 16, 64, 4, 5, 2, 2),     EVERY, lambda p: p.kind == "fp8" and _half(p) and _by_row(16)(p), "FP8 rows, at most 16 rows of 16 bits", HMMA),
    Row("rows-64",    Schedule(128, 64, 64, 4, 4, 2),   EVERY, lambda p: p.kind == "fp8" and _half(p) and _by_row(64)(p), "FP8 rows, at most 64 rows of 16 bits", HMMA_ANY),
    Row("rows-few",   Schedule(128, 128, 64, 8, 4, 1),  EVERY, lambda p: p.kind == "fp8" and _half(p) and _by_row(p.few)(p), "FP8 rows, few rows of 16 bits", HMMA_ANY),
    Row("widened",    Schedule(16, 0, 128, 4),          EVERY, lambda p: True, "everything", NO_MMA, measured_on=H200),
)

SCALED: tuple[Row, ...] = (
    #   name              n   m  columns warps stages
    Row("few-8-least",  Schedule(16, 8, 512, 4, 8, roles=True, blocks=2), HOPPER, lambda p: _few(p, 8) and p.n <= 16 * p.sms, "at most 8 rows that the copy engine reads, at most a tile of 16 of the weight for an SM", QGMMA),
    Row("few-8-low",    Schedule(16, 8, 1024, 4, 4, roles=True, blocks=2), HOPPER, lambda p: _few(p, 8) and p.n <= LOW, "at most 8 rows that the copy engine reads, at most 4096 of the weight", QGMMA, measured_on=H200),
    Row("few-8",        Schedule(64, 8, 128, 4, 10, roles=True, blocks=2), HOPPER, lambda p: _few(p, 8) and p.n <= 128 * p.sms, "at most 8 rows that the copy engine reads, at most two tiles of 64 of the weight for an SM", QGMMA, measured_on=H200),
    Row("few-8-many",   Schedule(64, 8, 128, 4, 7, roles=True, blocks=3), HOPPER, lambda p: _few(p, 8), "at most 8 rows that the copy engine reads", QGMMA, measured_on=H200),
    Row("few-16-low",   Schedule(16, 16, 1024, 4, 3, roles=True, blocks=2), HOPPER, lambda p: _few(p, 16) and p.n <= LOW, "at most 16 rows that the copy engine reads, at most 4096 of the weight", QGMMA, measured_on=H200),
    Row("few-16",       Schedule(64, 16, 128, 4, 10, roles=True, blocks=2), HOPPER, lambda p: _few(p, 16) and p.n <= 128 * p.sms, "at most 16 rows that the copy engine reads, at most two tiles of 64 of the weight for an SM", QGMMA, measured_on=H200),
    Row("few-16-many",  Schedule(64, 16, 128, 4, 7, roles=True, blocks=3), HOPPER, lambda p: _few(p, 16), "at most 16 rows that the copy engine reads", QGMMA, measured_on=H200),
    Row("few-64",       Schedule(64, 64, 256, 4, 3, roles=True, blocks=2), HOPPER, lambda p: _few(p, 64) and p.k <= 4096, "at most 64 rows that the copy engine reads, k at most 4096", QGMMA),
    Row("roles-split", Schedule(128, 128, 128, 4, 4, 1, roles=True), HOPPER, lambda p: _boxed(p) and p.k >= 1024 and 4 * _tiles(p) <= p.sms, "rows that the copy engine reads, at most a tile of 128 x 128 for four SMs", QGMMA, measured_on=H200),
    Row("roles-low", Schedule(128, 128, 128, 4, 5, roles=True), HOPPER, lambda p: _boxed(p) and _tiles(p) <= p.sms, "rows that the copy engine reads, at most a tile of 128 x 128 for an SM", QGMMA, measured_on=H200),
    Row("roles",     Schedule(256, 128, 128, 4, 4, roles=True), HOPPER, _boxed, "rows that the copy engine reads, half-precision results", QGMMA, measured_on=H200),
    Row("roles-wide", Schedule(256, 128, 128, 4, 3, roles=True), HOPPER, _boxed, "rows that the copy engine reads", QGMMA),
    Row("blocks-16", Schedule(64, 16, 128, 2, 4, 6),   EVERY, _grouped(16), "FP8 in groups of 128, at most 16 rows", f"{HMMA}|{QMMA}"),
    Row("blocks-64", Schedule(128, 64, 128, 8, 3, 2),  EVERY, _grouped(64), "FP8 in groups of 128, at most 64 rows", FP8_ANY),
    Row("blocks",    Schedule(128, 128, 128, 8, 3, 1), EVERY, _grouped(ANY), "FP8 in groups of 128", FP8_ANY),
    Row("rows-16",   Schedule(64, 16, 128, 2, 4, 6),   EVERY, _by_row(16), "FP8 rows, at most 16 of x", f"{HMMA}|{QMMA}"),
    Row("rows-64",   Schedule(128, 64, 128, 8, 3, 2),  EVERY, _by_row(64), "FP8 rows, at most 64 of x", FP8_ANY),
    Row("rows",      Schedule(128, 128, 128, 8, 3, 1), EVERY, _by_row(ANY), "FP8 rows", FP8_ANY),
)

BLOCKSCALED: tuple[Row, ...] = (
    Row("fp4-16",    Schedule(128, 16, 256, 4, 3, 4),  CONSUMER, lambda p: p.m <= 16, "at most 16 rows", OMMA, FP4_UNITS),
    Row("fp4-64",    Schedule(128, 64, 256, 8, 3, 2),  CONSUMER, lambda p: p.m <= 64, "at most 64 rows", OMMA, FP4_UNITS),
    Row("fp4",       Schedule(128, 128, 256, 8, 3, 1), CONSUMER, lambda p: True, "everything", OMMA, FP4_UNITS),
    Row("fp4-tc",    Schedule(128, 128, 256, 8, 3, 1), DATACENTER, lambda p: True, "everything", UTCOMMA, FP4_UNITS),
)

EXPANDED: tuple[Row, ...] = (
    Row("nvfp4-16",  Schedule(64, 16, 128, 2, 4, 6), EVERY - AMPERE, lambda p: p.kind == "nvfp4" and p.m <= 16, "NVFP4, at most 16 rows", f"{HMMA}|{QMMA}", FP8_UNITS),
    Row("nvfp4-64",  Schedule(128, 64, 64, 8, 4, 2), EVERY - AMPERE, lambda p: p.kind == "nvfp4" and p.m <= 64, "NVFP4, at most 64 rows", FP8_ANY, FP8_UNITS),
    Row("nvfp4",     Schedule(128, 128, 64, 8, 4, 1), EVERY - AMPERE - ADA, lambda p: p.kind == "nvfp4", "NVFP4", FP8_ANY, FP8_UNITS),
    Row("nvfp4-low", Schedule(128, 64, 64, 8, 4, 1), ADA, lambda p: p.kind == "nvfp4", "NVFP4", QMMA, FP8_UNITS),  # taller tiles spill
    Row("mxfp4-16",  Schedule(64, 16, 128, 2, 4, 6), EVERY - AMPERE, lambda p: p.m <= 16, "at most 16 rows", f"{HMMA}|{QMMA}", FP8_UNITS),
    Row("mxfp4-64",  Schedule(128, 64, 64, 8, 4, 2), EVERY - AMPERE, lambda p: p.m <= 64, "at most 64 rows", FP8_ANY, FP8_UNITS),
    Row("mxfp4",     Schedule(128, 128, 64, 8, 4, 1), EVERY - AMPERE - CONSUMER, lambda p: True, "everything", FP8_ANY, FP8_UNITS),
    Row("mxfp4-low", Schedule(128, 64, 64, 8, 4, 1), CONSUMER, lambda p: True, "everything", QMMA, FP8_UNITS),  # taller tiles spill
)

REDUCE: tuple[Row, ...] = (
    Row("reduce",    Reduce(128, 16, 4),                   EVERY, lambda p: True, "every width", NO_MMA, measured_on=H200),
)

TURN: tuple[Row, ...] = (
    Row("turn",      Reduce(1024, 1, 4),                   HOPPER, lambda p: True, "every width", NO_MMA, measured_on=H200),
)
# fmt: on
