"""Rows for the norms: one block a row of x, more warps for longer rows."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """d: length of a row."""

    d: int


@dataclass(frozen=True)
class Schedule:
    """Warps of a block."""

    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name      schedule      targets  serves
    Row("short",  Schedule(1),  EVERY,   lambda p: p.d <= 512,    "d <= 512",    NO_MMA),
    Row("medium", Schedule(4),  EVERY,   lambda p: p.d <= 4096,   "d <= 4096",   NO_MMA),
    Row("long",   Schedule(8),  EVERY,   lambda p: p.d <= 65536,  "d <= 65536",  NO_MMA),
)
# fmt: on
