"""Rows of the mixture of experts.

Experts: tiles of output columns, for one token's expert at a time.  Routers: a row of logits a
block.  Combining: a tile of one token's columns a block.
"""

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


@dataclass(frozen=True)
class RouteProblem:
    """num_experts: logits of a row."""

    num_experts: int


@dataclass(frozen=True)
class CombineProblem:
    """width: of a token's result."""

    width: int


@dataclass(frozen=True)
class Warps:
    """Warps of a block, and the columns it takes."""

    num_warps: int
    block: int = 0
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name      schedule              targets  serves
    Row("narrow", Schedule(16, 128, 4), EVERY,   lambda p: p.k <= 512, "k <= 512", NO_MMA),
    Row("gemv",   Schedule(32, 256, 4), EVERY,   lambda p: True,       "every size", NO_MMA),
)

ROUTE: tuple[Row, ...] = (
    Row("few",  Warps(1), EVERY, lambda p: p.num_experts <= 128, "E <= 128", NO_MMA),
    Row("many", Warps(4), EVERY, lambda p: True,                 "every E",  NO_MMA),
)

COMBINE: tuple[Row, ...] = (
    Row("combine", Warps(4, 512), EVERY, lambda p: True, "every width", NO_MMA),
)
# fmt: on
