"""Rows for SwiGLU: blocks of one row's columns."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """width: of the result."""

    width: int


@dataclass(frozen=True)
class Schedule:
    """block: columns a block takes."""

    block: int
    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name     schedule           targets  serves
    Row("narrow", Schedule(256, 1),  EVERY,  lambda p: p.width <= 256, "width <= 256", NO_MMA),
    Row("wide",   Schedule(1024, 4), EVERY,  lambda p: True,           "every width",  NO_MMA),
)
# fmt: on
