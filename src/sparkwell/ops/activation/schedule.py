"""Rows for SwiGLU: blocks of one row's columns."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """width: of the result.  whole: whether a block needs all of a row."""

    width: int
    whole: bool = False


@dataclass(frozen=True)
class Schedule:
    """block: columns a block takes."""

    block: int
    num_warps: int
    num_stages: int = 1


WHOLE = 16384  # values of a row that a block can hold

# fmt: off
TABLE: tuple[Row, ...] = (
    #   name     schedule           targets  serves
    Row("whole", Schedule(1024, 16), EVERY,  lambda p: p.whole and 4096 < p.width <= WHOLE, "rows of one scale, width <= 16384", NO_MMA),
    Row("narrow", Schedule(256, 1),  EVERY,  lambda p: p.width <= 256, "width <= 256", NO_MMA),
    Row("wide",   Schedule(1024, 4), EVERY,  lambda p: not p.whole or p.width <= 4096, "every width",  NO_MMA),
)
# fmt: on
