"""Rows for cache reads and writes: one block a token's group of values, or a whole token."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """block: values that share a block: an FP8 group, as many plain values, or a normed row."""

    block: int


@dataclass(frozen=True)
class Schedule:
    """Warps of a block."""

    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name     schedule     targets  serves
    Row("group", Schedule(1), EVERY,   lambda p: p.block <= 256, "blocks of at most 256", NO_MMA),
    Row("row",   Schedule(4), EVERY,   lambda p: p.block <= 4096, "blocks of at most 4096", NO_MMA),
)
ROWS: tuple[Row, ...] = (  # as many warps as the norms take, whose sums these repeat
    Row("short", Schedule(1), EVERY,   lambda p: p.block <= 512,  "rows of at most 512",  NO_MMA),
    Row("long",  Schedule(4), EVERY,   lambda p: p.block <= 4096, "rows of at most 4096", NO_MMA),
)
# fmt: on
