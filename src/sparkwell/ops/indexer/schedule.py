"""Rows for the indexer: tiles of the scores, blocks of the selection."""

from dataclasses import dataclass

from sparkwell.hardware.targets import Target
from sparkwell.ops.schedule import EVERY, HMMA, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """rows: queries that share keys.  heads, d: of each.  key: "fp8", "bf16", "fp32".

    fp8: whether queries and keys are both e4m3.
    """

    rows: int
    heads: int
    d: int
    key: str
    fp8: bool


@dataclass(frozen=True)
class Schedule:
    """A block scores block_r rows (all their heads) against block_n keys.

    operand: type of the product's operands: "fp8", "fp16" or "fp32" (three TF32 products).
    """

    block_r: int
    block_n: int
    operand: str
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Select:
    """block: scores a block looks at together."""

    block: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class SelectProblem:
    """columns: scores of a row.  topk: how many are kept."""

    columns: int
    topk: int


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes: queries and keys as operands."""
    size = {"fp8": 1, "fp16": 2, "fp32": 4}[s.operand]
    heads = 1 << max(0, p.heads - 1).bit_length()
    width = max(16, 1 << max(0, p.d - 1).bit_length())
    return size * width * (max(16, heads * s.block_r) + s.block_n)


# fmt: off
SCORES: tuple[Row, ...] = (
    #   name         rows keys operand  warps       targets
    Row("exact",     Schedule(1, 16, "fp32", 4),    EVERY, lambda p: p.key == "fp32" or (p.key == "bf16" and not p.fp8), "fp32 or BF16 keys", HMMA),
    Row("widened-4", Schedule(4, 64, "fp16", 8),    EVERY, lambda p: p.fp8 and p.heads <= 32 and p.rows >= 4, "e4m3 operands, at most 32 heads, several rows a request", HMMA),
    Row("widened",   Schedule(1, 64, "fp16", 4),    EVERY, lambda p: p.fp8 and p.heads <= 128, "e4m3 operands, at most 128 heads", HMMA),
)
SELECT: tuple[Row, ...] = (
    Row("block",  Select(2048, 8), EVERY, lambda p: p.topk <= 8192, "top-k of at most 8192", NO_MMA),
)
SLOTS: tuple[Row, ...] = (
    Row("slots",  Select(256, 2),  EVERY, lambda p: True, "everything", NO_MMA),
)
# fmt: on
