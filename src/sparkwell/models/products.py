"""The products of a model's layers, in the arithmetic that its runner asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight
from sparkwell.ops import linear as op_linear
from sparkwell.ops import moe
from sparkwell.ops.linear.arithmetic import made_for

ARITHMETICS = ("auto", "scheme")
_ARITHMETIC: ContextVar[str] = ContextVar("arithmetic", default="auto")


@contextmanager
def products(arithmetic: str) -> Iterator[None]:
    """How activations are multiplied inside.

    "auto": quantized where a GPU gains by it, as `ops.linear.linear` decides; on a CPU never.
    "scheme": quantized as the weights were made for, on every device; where no kernel can, the
    product raises Unsupported.  Experts' FP8 rows are multiplied as they are: nothing else does.
    Raises BadInput for another name.
    """
    if arithmetic not in ARITHMETICS:
        raise BadInput(f"arithmetic is {arithmetic!r}, want one of {', '.join(ARITHMETICS)}")
    token = _ARITHMETIC.set(arithmetic)
    try:
        yield
    finally:
        _ARITHMETIC.reset(token)


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`ops.linear.linear`."""
    arithmetic = "auto"
    if _ARITHMETIC.get() == "scheme" and not isinstance(weight, torch.Tensor):
        arithmetic = made_for(weight)
    return op_linear.linear(x, weight, bias, out_dtype=out_dtype, arithmetic=arithmetic)


def experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: Weight, down: Weight
) -> torch.Tensor:
    """`ops.moe.experts`."""
    arithmetic = "auto"
    if _ARITHMETIC.get() == "scheme":
        arithmetic = _both(gate_up, down)
    return moe.experts(x, ids, weights, gate_up, down, arithmetic=arithmetic)


def _both(gate_up: Weight, down: Weight) -> str:
    """What both were made for, of what `ops.moe.experts` can."""
    for kind in (Fp8Block, Nvfp4):
        if isinstance(gate_up, kind) and isinstance(down, kind):
            wanted = {made_for(gate_up), made_for(down)}
            if len(wanted) == 1 and not wanted & {"w4a8"}:
                return wanted.pop()
    return "auto"
