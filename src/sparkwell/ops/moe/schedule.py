"""Rows for experts with float weights: tiles of output columns, for one token's expert at a time."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """n, k: of one expert's weight."""

    n: int
    k: int


@dataclass(frozen=True)
class Schedule:
    """A block makes block_n outputs, block_k inputs at a time."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name      schedule              targets  serves
    Row("narrow", Schedule(16, 128, 4), EVERY,   lambda p: p.k <= 512, "k <= 512", NO_MMA),
    Row("gemv",   Schedule(32, 256, 4), EVERY,   lambda p: True,       "every size", NO_MMA),
)
# fmt: on
