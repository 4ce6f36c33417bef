"""Waiting for a barrier in shared memory, and arriving at it, warp by warp.

Those of Gluon make all warps of a partition wait for each other first.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def wait_alone(barrier, turn):
    """Until the barrier's turn of this parity is over."""
    gl.inline_asm(
        "{ .reg .pred p; again${:uid}: mbarrier.try_wait.parity.shared.b64 p, [$0], $1;"
        " @!p bra.uni again${:uid}; }",
        "r,r,~{memory}", [barrier, turn],
    )  # fmt: skip


@gluon.jit
def arrive_alone(barrier):
    """Of each warp one thread, when all of it have come."""
    gl.inline_asm(
        "{ .reg .pred p; .reg .b64 s; elect.sync _|p, -1;"
        " @p mbarrier.arrive.shared.b64 s, [$0]; }",
        "r,~{memory}", [barrier],
    )  # fmt: skip
