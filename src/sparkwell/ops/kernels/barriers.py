"""Waiting for a barrier in shared memory, and arriving at it, warp by warp.

Those of Gluon make all warps of a partition wait for each other first.

Neither waits for reads of shared memory that are under way: machine code arrives as soon as they
are issued, and where memory is slow the copy that the arrival lets go overtakes them.  So what was
read must be `settled` first; `sparkwell verify` looks for arrivals that are not.
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


@gluon.constexpr_function
def _compared(outputs, inputs, each=1):
    lines = ["{ .reg .pred never; setp.eq.b32 never, 0, 1;"]
    lines += [f"setp.eq.or.b32 never, {value}, 0x7FABCDEF, never;" for value in inputs[0][::each]]
    return "\n".join([*lines, "@never nanosleep.u32 0; }"])


@gluon.constexpr_function
def _compared_sums(outputs, inputs):
    return _compared(outputs, inputs, 4)


@gluon.jit
def settled(values, SUMS: gl.constexpr = False):
    """Until values in fp32 are there: read from shared memory, or made of what was.

    SUMS: of mma.sync, four of which come together.  They are compared with a NaN that no
    arithmetic makes; a thread that holds it sleeps for 0 ns.
    """
    gl.inline_asm(_compared_sums if SUMS else _compared, ("f",), [values])
