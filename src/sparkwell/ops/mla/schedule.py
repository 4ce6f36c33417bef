"""Rows for absorbed MLA: which algorithm, which tile, on which GPU."""

from dataclasses import dataclass

from sparkwell.hardware.targets import Target
from sparkwell.ops.schedule import EVERY, H200, HGMMA, HMMA, LARGE, SMALL, Row

GROUP = 128  # latent columns a warp takes, and per FP8 scale
EXACT_COLUMNS = 64  # latent columns of a group in the exact kernel


@dataclass(frozen=True)
class Problem:
    """rows: queries.  heads: of each.  keys: of one row at most.  record, query: "fp8", "bf16", ...

    rank, rope: width of the latent and of the rotated key.  d_v: width of the output.
    paged: keys are a whole context, else a list of slots.
    pairs: of a request's rows with heads, where its keys are a whole context.
    page_size: tokens, where paged; 1 where pages do not follow each other in whole records.
    aligned: every record starts at a multiple of 16 bytes.
    """

    rows: int
    heads: int
    keys: int
    record: str
    query: str
    rank: int
    rope: int
    d_v: int
    paged: bool
    pairs: int = 0
    page_size: int = 1
    aligned: bool = False


@dataclass(frozen=True)
class Schedule:
    """algorithm: "grouped", "divided", "divided-fp8", "exact"; of whole contexts "specialized" or "narrow", of lists
    "gathered" or "turned".

    A block takes block_h heads (of whole contexts: pairs of a row and a head) and block_n keys at a time.

    stages: of the key loop; the indices take two of them.  blocks: that one SM runs at a time, for
    sharing the keys of few queries among several blocks.
    """

    algorithm: str
    block_h: int
    block_n: int
    num_warps: int
    stages: int
    blocks: int
    num_stages: int = 1


def _grouped(p: Problem, record: str) -> bool:
    groups = p.rank // GROUP
    return (
        p.record == record
        and p.query in ("bf16", "fp16")
        and p.d_v == p.rank
        and p.rank % GROUP == 0
        and groups in (2, 4)
        and p.rope <= p.rank // 2
    )


def _dense(p: Problem) -> bool:
    """Whole contexts in pages that whole tiles fill."""
    same = p.record == p.query == "bf16" and (p.rank, p.rope, p.d_v) == (512, 64, 512)
    return p.paged and same and p.page_size % 64 == 0


def _lists(p: Problem) -> bool:
    """Lists of slots whose records can be copied 16 bytes at a time."""
    usual = p.query == "bf16" and (p.rank, p.rope, p.d_v) == (512, 64, 512)
    return not p.paged and usual and p.record in ("fp8", "bf16") and p.aligned


def _few_or_narrow(p: Problem) -> bool:
    """At most 16 heads; or one row, whose tiles and heads are all on the GPU at once.

    Few rows of FP8 records and few heads: the grouped kernel, which has less to begin with.
    """
    narrow = p.heads <= 16 and (p.record == "bf16" or p.rows >= 16)
    return _lists(p) and (narrow or (p.rows == 1 and 16 < p.heads <= 64))


def _divided(p: Problem, record: str, heads: int) -> bool:
    """More heads than `heads`, records that can be copied 16 bytes at a time, several tiles each.

    A block has more to begin with than the grouped kernel's: one request's few keys are faster there.
    """
    same = (p.record, p.query) == (record, "bf16") and (p.rank, p.rope, p.d_v) == (512, 64, 512)
    return same and p.aligned and p.heads > heads and p.rows * p.heads * p.keys > 1 << 20


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes: buffers of keys, and the queries, which stay there.

    The same on every target: the indices' own pipeline takes three of the stages.
    """
    if s.algorithm in ("specialized", "narrow", "gathered", "turned"):
        # Of whole contexts and many pairs, weights lie where rotated keys lay.
        weights = 0 if s.algorithm == "specialized" else s.block_n * s.block_h
        masks = s.stages * s.block_n if s.algorithm in ("gathered", "turned") else 0
        exchanged = 8 * s.block_h if s.algorithm in ("specialized", "gathered") else 0
        tiles = (p.rank + p.rope) * (s.stages * s.block_n + s.block_h)
        if s.algorithm == "turned" and p.record == "fp8":
            tiles += s.block_n * p.rope  # rotated keys have a stage more
        return 2 * (tiles + weights + masks) + exchanged
    if s.algorithm in ("divided", "divided-fp8"):
        rest = 4 * s.block_n * 16 * s.num_warps + 2 * s.block_h * p.rope  # shares of the scores
        if s.algorithm == "divided":
            return rest + s.stages * s.block_n * (2 * (p.rank + p.rope) + 4)
        once = s.block_n * 3 * p.rank + 2 * 64 * 16 * s.num_warps  # latents; some of the queries
        return rest + once + s.stages * s.block_n * (2 * p.rope + 4 * (p.rank // GROUP) + 4)
    groups = -(-p.rank // EXACT_COLUMNS)
    if s.algorithm == "exact":
        return 4 * s.block_n * EXACT_COLUMNS * _power_of_two(groups)  # one operand at a time
    groups = p.rank // GROUP
    rope = 2 * max(16, _power_of_two(-(-p.rope // groups)))
    key = groups * (GROUP + rope + 4) if p.record == "fp8" else groups * (2 * GROUP + rope)
    split = p.query == "fp16"  # a high and a low part of what BF16 does not hold
    query = groups * (2 * GROUP * (1 + (split and p.record == "bf16")) + rope * (1 + split))
    return max(1, s.stages - 3) * s.block_n * key + s.block_h * query + 2944


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


_FP8 = "FP8 caches, 16-bit queries, a latent of 256 or 512, d_v = rank"
_BF16 = "BF16 caches, 16-bit queries, a latent of 256 or 512, d_v = rank"
_ANY = "a latent of at most 1024"
_DENSE = "whole contexts, pages of 64 n, BF16, widths 512 + 64"
_FEW = _DENSE + ", rows x heads of a request at most {}"
_LISTS = (
    "lists of slots, BF16 queries, FP8 or BF16 records at multiples of 16 bytes, widths 512 + 64"
)
_MANY = "BF16 queries, {} records at multiples of 16 bytes, widths 512 + 64, more than {} heads, rows x heads x keys > 2^20"
_G, _D, _X, _S, _L, _T = "grouped", "divided", "exact", "specialized", "gathered", "turned"
_N, _W = "narrow", "divided-fp8"
_ROOM = EVERY - {100, 103}  # there a register or two are too few
_WGMMA = frozenset({90})
# fmt: off
TABLE: tuple[Row, ...] = (
    #   name             schedule: algorithm, heads, keys, warps, stages, blocks   targets
    Row("turned-16",     Schedule(_T, 16, 64, 4, 2, 1),  _WGMMA, _few_or_narrow, _LISTS + "; at most 16 heads and BF16 records or 16 rows; or one row of 17 to 64 heads", HGMMA, measured_on=H200),
    Row("turned-32",     Schedule(_T, 32, 64, 4, 2, 1),  _WGMMA, lambda p: _lists(p) and p.heads > 16 and (p.heads <= 32 or p.rows == 1), _LISTS + ", 17 to 32 heads, or one row", HGMMA, measured_on=H200),
    Row("gathered",      Schedule(_L, 64, 64, 4, 2, 1),  _WGMMA, lambda p: _lists(p) and p.heads > 32, _LISTS + ", more than 32 heads", HGMMA, measured_on=H200),
    Row("fp8-divided",   Schedule(_W, 64, 32, 8, 2, 1),  _ROOM, lambda p: _divided(p, "fp8", 32), _MANY.format("FP8", 32), HMMA),
    Row("fp8-grouped",   Schedule(_G, 16, 32, 4, 5, 2),  LARGE, lambda p: _grouped(p, "fp8"),  _FP8, HMMA, measured_on=H200),
    Row("fp8-grouped-s", Schedule(_G, 16, 32, 4, 5, 1),  SMALL, lambda p: _grouped(p, "fp8"),  _FP8, HMMA),
    Row("narrow-16",     Schedule(_N, 16, 64, 4, 2, 1),  _WGMMA, lambda p: _dense(p) and p.pairs <= 16, _FEW.format(16), HGMMA, measured_on=H200),
    Row("narrow-32",     Schedule(_N, 32, 64, 4, 2, 1),  _WGMMA, lambda p: _dense(p) and p.pairs <= 32, _FEW.format(32), HGMMA),
    Row("specialized",   Schedule(_S, 64, 64, 4, 2, 1),  _WGMMA, _dense, _DENSE, HGMMA, measured_on=H200),
    Row("bf16-divided",  Schedule(_D, 64, 32, 8, 2, 1),  EVERY, lambda p: _divided(p, "bf16", 32), _MANY.format("BF16", 32), HMMA, measured_on=H200),
    Row("bf16-divided-32", Schedule(_D, 32, 32, 8, 2, 1), EVERY, lambda p: _divided(p, "bf16", 16), _MANY.format("BF16", 16), HMMA),
    Row("bf16-grouped",  Schedule(_G, 16, 32, 4, 5, 2),  EVERY, lambda p: _grouped(p, "bf16"), _BF16, HMMA, measured_on=H200),
    Row("exact",         Schedule(_X, 16, 16, 8, 1, 1),  EVERY, lambda p: p.rank <= 1024,       _ANY, HMMA),
)
# fmt: on
