"""Rows for quantizing activations: values a block takes at a time."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """k: values of a row.  group: of those, what has one scale; 0: all of them."""

    k: int
    group: int


@dataclass(frozen=True)
class Schedule:
    """block: values looked at together."""

    block: int
    num_warps: int
    num_stages: int = 1


# fmt: off
TABLE: tuple[Row, ...] = (
    #   name      schedule           targets  serves
    Row("groups", Schedule(1024, 4), EVERY, lambda p: 0 < p.group <= 4096, "groups of at most 4096", NO_MMA),
    Row("short",  Schedule(1024, 4), EVERY, lambda p: not p.group and p.k <= 1024, "tokens of at most 1024 values", NO_MMA),
    Row("tokens", Schedule(8192, 8), EVERY, lambda p: not p.group, "tokens", NO_MMA),
)
# fmt: on
