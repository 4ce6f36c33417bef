"""Rows for the indexer: tiles of the scores, blocks of the selection."""

from dataclasses import dataclass
from functools import cache

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
    """rows: queries that share keys.  heads, d: of each.  key: "fp8", "bf16", "fp32".

    fp8: whether queries and keys are both e4m3.  paged: whether keys come from pages.
    copyable: whether the copy engine reads queries and tiles of 64 keys.
    """

    rows: int
    heads: int
    d: int
    key: str
    fp8: bool
    paged: bool
    copyable: bool = False


@dataclass(frozen=True)
class Schedule:
    """A block scores block_r rows (all their heads) against block_n keys.

    operand: type of the product's operands: "fp8", "fp16" or "fp32" (three TF32 products).
    groups: of four warps that score while another copies; 0: warps have no roles.
    apart: whether each group takes block_r rows of its own, else every so many-th tile of keys.
    """

    block_r: int
    block_n: int
    operand: str
    num_warps: int
    num_stages: int = 1
    groups: int = 0
    apart: bool = False
    wide: int = 0


@dataclass(frozen=True)
class Select:
    """block: scores looked at together.  sample: scores a guess is made from.

    keep: scores a row may keep for the exact search; a row of at most as many is searched itself.
    words: of 32 marks each, looked at together.
    """

    block: int
    sample: int
    keep: int
    words: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Slots:
    """block: positions a block translates."""

    block: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Heads:
    """block_h: heads of a row that a block quantizes."""

    block_h: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class SelectProblem:
    """columns: scores of a row.  topk: how many are kept.  Of queries: width and heads."""

    columns: int
    topk: int


def kept(p: SelectProblem, sample: int) -> float:
    """Scores of a row that a guess of the sample keeps at most, but for bad luck.

    The wanted ones' share of the sample and five standard deviations, an eighth of which the
    search may add, and four more of the count itself.
    """
    every = max(1.0, p.columns / sample)
    share = p.topk / every
    rank = (share + 5 * share**0.5 + 8) * 9 / 8
    return every * (rank + 4 * rank**0.5)


@dataclass(frozen=True)
class Walk:
    """How blocks share the work where they walk over keys.

    grid: blocks of rows, parts of the keys.  chunk: keys of a part.  r: queries of one product.
    """

    grid: tuple[int, int]
    chunk: int
    r: int


def queries(p: Problem, s: Schedule, heads: int) -> int:
    """Queries that are multiplied by a tile of keys at a time, with all their `heads`."""
    most = max(1, s.wide // heads)
    return most if s.apart else max(16 // heads, min(most, 1 << max(0, p.rows - 1).bit_length()))


def walk(p: Problem, s: Schedule, r: int, rows: int, columns: int, sms: int) -> Walk:
    """Blocks for `rows` queries of `columns` keys on so many SMs."""
    tiles = max(1, -(-columns // s.block_n))
    blocks = -(-rows // (r * s.groups if s.apart else r))
    chunk = -(-tiles // _parts(blocks, tiles, sms, p.rows * p.heads > s.wide)) * s.block_n
    return Walk((blocks, -(-columns // chunk)), chunk, r)


@cache
def _parts(blocks: int, tiles: int, sms: int, many: bool) -> int:
    """Parts that the keys of each block of rows are cut into.

    many: as many blocks an SM as keep the last ones from mattering; else what takes the fewest
    steps, of one block an SM, where a block costs as much as 8 tiles beside its own.
    """
    if many:
        return max(1, min(-(-tiles // 16), -(-sms * 20 // max(1, blocks))))
    most = max(1, min(tiles, 4 * sms // max(1, blocks)))
    return min(range(1, most + 1), key=lambda n: -(-blocks * n // sms) * (-(-tiles // n) + 8))


def padded(p: Problem, s: Schedule) -> tuple[int, int, int]:
    """Rows a block takes, heads and width as powers of two; a matrix has 16 rows at least."""
    heads, width = (1 << max(0, n - 1).bit_length() for n in (p.heads, p.d))
    return max(s.block_r, -(-16 // heads)), heads, max(16, width)


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes, as Triton 3.9 places the operands.

    Matrix units that read shared memory hold the keys there; queries stay there where one block
    serves several requests; mma.sync needs room to change layouts.
    """
    rows, heads, width = padded(p, s)
    if s.operand == "fp8":
        held = queries(p, s, heads) * heads * width * (s.groups if s.apart else 1)
        if s.groups:
            return held + s.num_stages * (s.block_n * (width + 4) + 16)
        sync = target.tensor_path is TensorPath.MMA_SYNC
        buffers = s.num_stages - sync - (2 if p.paged else 0)  # page numbers take two stages
        return held + buffers * s.block_n * width + (1536 if p.paged else 1024 * sync)
    matrix = rows * heads
    exact = s.operand == "fp32"
    size = 8 if exact else 2  # exact: a high and a low part, 4 bytes each
    query, keys = matrix * width * size, s.block_n * width * size
    if target.tensor_path is not TensorPath.MMA_SYNC and matrix >= 64:
        both = p.paged or target.tensor_path is TensorPath.TCGEN05
        return keys + (query if both and not (exact and target.missing(Feature.WGMMA)) else 0)
    if p.paged:
        return query + 3072
    return max(3072, matrix * width * 2) if exact else 4096


def select_shared(p: SelectProblem, s: Select, target: Target) -> int:
    """Bytes of shared memory a block takes: the bins of the widest digit."""
    return 4 * 2048


HMMA_ANY = f"{HMMA}|{HGMMA}|{UTCHMMA}"  # the wider the matrix, the newer the instruction
WGMMA = frozenset({90})
FP8_ANY = f"{QMMA}|{QGMMA}|{UTCQMMA}"
AMPERE = frozenset({80, 86})  # no e4m3 there: its bits are moved into float16


def _roles(p: Problem) -> bool:
    return p.fp8 and p.copyable and p.heads in (16, 32, 64, 128) and p.d in (64, 128)


# fmt: off
SCORES: tuple[Row, ...] = (
    #   name         rows keys operand  warps       targets
    Row("exact-64",  Schedule(1, 16, "fp32", 8),    EVERY, lambda p: not p.fp8 and p.key in ("fp32", "bf16") and p.heads > 32, "fp32 or BF16 keys, more than 32 heads", HMMA_ANY),
    Row("exact",     Schedule(1, 16, "fp32", 4),    EVERY, lambda p: not p.fp8 and p.key in ("fp32", "bf16"), "fp32 or BF16 keys", HMMA),
    Row("roles",     Schedule(0, 64, "fp8", 4, 8, 3, True, 128),  WGMMA, lambda p: _roles(p) and p.rows * p.heads > 128, "e4m3 operands that the copy engine reads, 16 to 128 heads, several rows a request", QGMMA, measured_on=H200),
    Row("roles-few", Schedule(0, 64, "fp8", 4, 9, 3, False, 128), WGMMA, _roles, "e4m3 operands that the copy engine reads, 16 to 128 heads", QGMMA, measured_on=H200),
    Row("tiled",     Schedule(0, 128, "fp8", 4, 3, wide=64), EVERY - AMPERE, lambda p: p.fp8 and p.heads <= 64 and not p.paged, "e4m3 operands side by side, at most 64 heads", FP8_ANY, Feature.FP8_MMA),
    Row("tiled-pages", Schedule(0, 128, "fp8", 4, 5, wide=64), EVERY - AMPERE, lambda p: p.fp8 and p.heads <= 64, "e4m3 operands, at most 64 heads", FP8_ANY, Feature.FP8_MMA),
    Row("tiled-128", Schedule(0, 64, "fp8", 8, 5, wide=128), EVERY - AMPERE, lambda p: p.fp8 and p.heads <= 128, "e4m3 operands, at most 128 heads", FP8_ANY, Feature.FP8_MMA),
    Row("widened-2", Schedule(2, 64, "fp16", 8),      AMPERE, lambda p: p.fp8 and 16 < p.heads <= 32 and p.rows >= 2, "e4m3 operands, 17 to 32 heads, several rows a request", HMMA),
    Row("widened",   Schedule(1, 64, "fp16", 4),      AMPERE, lambda p: p.fp8 and p.heads <= 128, "e4m3 operands, at most 128 heads", HMMA),
)
SELECT: tuple[Row, ...] = (
    #   name         block sample  keep  warps
    Row("keep-4k",   Select(4096, 4096, 4096, 1024, 8),     EVERY, lambda p: p.columns <= 4096 or kept(p, 4096) <= 4096, "at most 4096 columns, or about as many to keep", NO_MMA, measured_on=H200),
    Row("keep-8k",   Select(4096, 4096, 8192, 1024, 16),    EVERY, lambda p: p.columns <= 8192 or kept(p, 4096) <= 8192, "at most 8192 columns, or about as many to keep", NO_MMA, measured_on=H200),
    Row("keep-16k",  Select(4096, 8192, 16384, 2048, 32),   EVERY, lambda p: p.topk <= 8192, "top-k of at most 8192", NO_MMA, measured_on=H200),
)
QUERIES: tuple[Row, ...] = (
    Row("queries", Heads(16, 4),  EVERY, lambda p: p.columns <= 512, "queries at most 512 wide", NO_MMA),
)
SLOTS: tuple[Row, ...] = (
    Row("slots",  Slots(256, 2),  EVERY, lambda p: True, "everything", NO_MMA),
)
# fmt: on
