"""What two groups of warps that share a tile's keys tell each other, through shared memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def meet(barrier, turn):
    """Both groups are here, and see what the other wrote."""
    mbarrier.arrive(barrier, count=1)
    mbarrier.wait(barrier, turn)


@gluon.jit
def other_group(x, shelf, barrier, turn, SIDE: gl.constexpr):
    """The other group's x, for this group's; shelf [2, n]."""
    shelf.index(SIDE).store(x)
    meet(barrier, turn)
    return shelf.index(1 - SIDE).load(x.type.layout)
