"""Rows for cache reads and writes: one block a token's group of values."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """block: values that share a block: an FP8 group, or as many plain values."""

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
# fmt: on
