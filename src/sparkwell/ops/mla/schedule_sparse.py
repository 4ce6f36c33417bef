"""Rows for attention over lists of slots: which algorithm, which tile, on which GPU."""

from dataclasses import dataclass

from sparkwell.hardware.targets import Target
from sparkwell.ops.schedule import EVERY, HGMMA, HMMA, LARGE, NO_MMA, SMALL, UTCHMMA, Row

GROUP = 128


@dataclass(frozen=True)
class Problem:
    """rows: queries.  heads: of each.  topk: slots of each.  record, query: "fp8", "bf16", ...

    rank, rope: width of the latent and of the rotated key.  d_v: width of the output.
    """

    rows: int
    heads: int
    topk: int
    record: str
    query: str
    rank: int
    rope: int
    d_v: int


@dataclass(frozen=True)
class Schedule:
    """algorithm: "grouped" or "tiled".  A block takes block_h heads and block_n keys at a time.

    stages: of the key loop; the indices take two of them.  blocks: that one SM runs at a time, for
    sharing the keys of few queries among several blocks.
    """

    algorithm: str
    block_h: int
    block_n: int
    num_warps: int
    stages: int
    blocks: int
    exact: bool = False
    num_stages: int = 1


def _grouped(p: Problem, record: str) -> bool:
    groups = p.rank // GROUP
    return (
        p.record == record
        and p.query in ("bf16", "fp16")
        and p.d_v == p.rank
        and p.rank % GROUP == 0
        and groups in (1, 2, 4, 8)
        and p.rope <= p.rank // 2
    )


def _plain(p: Problem) -> bool:
    return p.query == "bf16" and p.record in ("bf16", "fp8")


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes."""
    raise NotImplementedError


_FP8 = "FP8 caches, 16-bit queries, a latent of 1, 2, 4 or 8 groups of 128, d_v = rank"
_BF16 = "BF16 caches, 16-bit queries, a latent of 1, 2, 4 or 8 times 128, d_v = rank"
_G, _T = "grouped", "tiled"
# fmt: off
TABLE: tuple[Row, ...] = (
    #   name             schedule: algorithm, heads, keys, warps, stages, blocks   targets
    Row("fp8-grouped",   Schedule(_G, 16, 32, 4, 5, 2),  LARGE, lambda p: _grouped(p, "fp8"),  _FP8, HMMA),
    Row("fp8-grouped-s", Schedule(_G, 16, 32, 4, 5, 1),  SMALL, lambda p: _grouped(p, "fp8"),  _FP8, HMMA),
    Row("bf16-grouped",  Schedule(_G, 16, 32, 4, 5, 2),  EVERY, lambda p: _grouped(p, "bf16"), _BF16, HMMA),
    Row("exact",         Schedule(_T, 16, 16, 4, 1, 1, exact=True), EVERY, lambda p: p.rank <= 1024, "a latent of at most 1024", NO_MMA),
)
# fmt: on
