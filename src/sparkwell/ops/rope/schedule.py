"""Rows for the rotary embedding: one block a row of x."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """heads, d: of one row."""

    heads: int
    d: int


@dataclass(frozen=True)
class Schedule:
    """block_h: heads a block takes."""

    block_h: int
    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name     schedule        targets  serves
    Row("few",   Schedule(4, 1),   EVERY, lambda p: p.heads <= 4 and p.d <= 4096, "4 heads of d <= 4096", NO_MMA),
    Row("heads", Schedule(16, 4),  EVERY, lambda p: p.d <= 1024,                  "d <= 1024",            NO_MMA),
)
# fmt: on
