"""Rows for the search of each row's largest logit, and for draws."""

from dataclasses import dataclass

from sparkwell.ops.schedule import EVERY, NO_MMA, Row


@dataclass(frozen=True)
class Problem:
    """vocab: logits of a row."""

    vocab: int


@dataclass(frozen=True)
class Schedule:
    """block: logits that a block looks at in one step."""

    block: int
    num_warps: int
    num_stages: int = 1


SEARCHED = (
    4096  # longest rows whose top-k and top-p a block searches; longer ones torch sorts faster
)

# fmt: off
TABLE: tuple[Row, ...] = (
    #   name     schedule            targets  serves
    Row("short", Schedule(1024, 4),  EVERY,   lambda p: p.vocab <= 4096, "V <= 4096", NO_MMA),
    Row("long",  Schedule(8192, 16), EVERY,   lambda p: True,            "every V",   NO_MMA),
)

DRAW: tuple[Row, ...] = (
    Row("short", Schedule(1024, 4),  EVERY,   lambda p: p.vocab <= 4096, "V <= 4096", NO_MMA),
    Row("long",  Schedule(4096, 16), EVERY,   lambda p: True,            "every V",   NO_MMA),
)
# fmt: on
