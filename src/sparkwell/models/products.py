"""The products of a model's layers, in the arithmetic that its runner asks for; their operands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import QuantizedTensor, Weight
from sparkwell.ops import activation, moe, norm
from sparkwell.ops import linear as op_linear
from sparkwell.ops.linear.arithmetic import Quantizer, made_for

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


@dataclass(frozen=True)
class QuantizedRows:
    """Rows quantized where they were made.  dtype: theirs before, and that of their products."""

    values: QuantizedTensor
    dtype: torch.dtype


Rows = torch.Tensor | QuantizedRows  # [T, k]


def linear(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`ops.linear.linear`."""
    if isinstance(x, QuantizedRows):
        return op_linear.linear(x.values, weight, bias, out_dtype=out_dtype or x.dtype)
    return op_linear.linear(x, weight, bias, out_dtype=out_dtype, arithmetic=_asked(weight))


def swiglu_for(reader: Weight, gate_up: torch.Tensor) -> Rows:
    """`ops.activation.swiglu`, quantized in its pass where the product with `reader` would."""
    how = _quantizer(gate_up, [reader])
    if how is None:
        return activation.swiglu(gate_up)
    return QuantizedRows(activation.swiglu_quantized(gate_up, **how._asdict()), gate_up.dtype)


def add_rms_norm_for(
    readers: Sequence[Weight],
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, Rows]:
    """`ops.norm.add_rms_norm`, its rows quantized in its pass where all of `readers` want the same.

    readers: weights that the rows are multiplied by; (): something else reads them, too.
    """
    how = _quantizer(x, readers)
    if how is None:
        return norm.add_rms_norm(x, delta, weight, eps=eps)
    total, rows = norm.add_rms_norm_quantized(x, delta, weight, eps=eps, **how._asdict())
    return total, QuantizedRows(rows, x.dtype)


def _asked(weight: Weight) -> str:
    """The arithmetic that a product is asked for."""
    if _ARITHMETIC.get() == "scheme" and not isinstance(weight, torch.Tensor):
        return made_for(weight)
    return "auto"


def _quantizer(x: torch.Tensor, readers: Sequence[Weight]) -> Quantizer | None:
    """How the products of x's rows with all of `readers` have them quantized; None: not alike."""
    first, *rest = [
        op_linear.linear_quantizer(len(x), weight, x.device, _asked(weight)) for weight in readers
    ] or [None]
    if first is None or rest and (first.input_scale is not None or set(rest) != {first}):
        return None
    return first


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
