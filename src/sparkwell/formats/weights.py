"""A weight in any format: a plain tensor or a quantized one; stacks of them, and joined rows."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar, cast

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block, Fp8Rows
from sparkwell.formats.int4 import Int4Group
from sparkwell.formats.mxfp4 import Mxfp4
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.quantized import Quantized

QuantizedTensor: TypeAlias = Fp8Block | Fp8Rows | Nvfp4 | Mxfp4 | Int4Group
Weight: TypeAlias = torch.Tensor | QuantizedTensor
W = TypeVar("W", bound=Weight)


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as a plain tensor of `dtype`, [..., n, k], rounded once."""
    return weight.to(dtype) if isinstance(weight, torch.Tensor) else weight.dequantize(dtype)


def select(weight: Weight, expert: int) -> Weight:
    """One weight of a stack, as views."""
    return weight[expert] if isinstance(weight, torch.Tensor) else weight.select(expert)


def kind(weight: Weight) -> str:
    """The format's name: that of the class, or of the plain tensor's type."""
    if isinstance(weight, torch.Tensor):
        return str(weight.dtype).removeprefix("torch.")
    return type(weight).__name__


def unstackable(weights: Sequence[Weight]) -> str | None:
    """Why these weights can't be the experts of one stack; None where they can.

    Reads values (orders): not for a step of the model.
    """
    shapes = sorted({tuple(weight.shape) for weight in weights})
    if len(shapes) > 1:
        return f"shapes differ: {', '.join(str(list(shape)) for shape in shapes)}"
    return _different(weights)


def unjoinable(weights: Sequence[Weight]) -> str | None:
    """Why these weights can't stand exactly one below the other; None where they can.

    Reads values (orders, input scales): not for a step of the model.
    """
    outer = sorted({(*weight.shape[:-2], weight.shape[-1]) for weight in weights})
    if len(outer) > 1:
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        return f"shapes differ in more than the number of rows: {shapes}"
    if reason := _different(weights):
        return reason
    quantized = [weight for weight in weights if isinstance(weight, Quantized)]
    if reason := _unequal("input_scale", quantized):
        return reason
    for weight in weights[:-1]:
        if isinstance(weight, Fp8Block) and weight.shape[-2] % weight.block[0]:
            return f"{weight.shape[-2]} rows end inside a block of {weight.block[0]}"
    return None


def stack(weights: Sequence[W]) -> W:
    """[n, k] each -> [E, n, k]: weight i is the stack's expert i; copies.

    Raises BadInput for no weights, and where kinds, shapes or options differ.
    """
    first = _first("stack", weights, unstackable(weights))
    if isinstance(first, torch.Tensor):
        return cast(W, torch.stack([w for w in weights if isinstance(w, torch.Tensor)]))
    parts = [weight.tensors() for weight in weights if isinstance(weight, Quantized)]
    whole = first.changed(
        lambda name, t: t if name == "order" else torch.stack([part[name] for part in parts])
    )
    return cast(W, whole)


def join(weights: Sequence[W]) -> W:
    """[..., n_i, k] each -> [..., sum n_i, k]: one below the other, every row unchanged; copies.

    Raises BadInput for no weights, and where the rows can't be kept exactly as they are: kinds,
    groups, orders or input scales differ, or FP8 blocks would be cut.
    """
    first = _first("join", weights, unjoinable(weights))
    if isinstance(first, torch.Tensor):
        return cast(W, torch.cat([w for w in weights if isinstance(w, torch.Tensor)], -2))
    parts = [weight.tensors() for weight in weights if isinstance(weight, Quantized)]
    held, rows = first.ROWS, len(first.shape) - 2
    whole = first.changed(
        lambda name, t: torch.cat([part[name] for part in parts], rows) if name in held else t
    )
    return cast(W, whole)


def _first(op: str, weights: Sequence[Weight], reason: str | None) -> Weight:
    if not weights:
        raise BadInput(f"{op}: no weights, want at least one")
    if reason:
        raise BadInput(f"{op}: {reason}; keep these weights apart, or dequantize them first")
    return weights[0]


def _different(weights: Sequence[Weight]) -> str | None:
    """Why these weights are not of one format on one device; None where they are."""
    for name, found in (
        ("kinds", sorted({kind(weight) for weight in weights})),
        ("devices", sorted({str(weight.device) for weight in weights})),
    ):
        if len(found) > 1:
            return f"{name} differ: {', '.join(found)}"
    quantized = [weight for weight in weights if isinstance(weight, Quantized)]
    for one in quantized[1:]:
        for name, value in quantized[0].options().items():
            if one.options().get(name) != value:
                return f"{name} differs: {value!r} and {one.options().get(name)!r}"
        if one.tensors().keys() != quantized[0].tensors().keys():
            odd = sorted(one.tensors().keys() ^ quantized[0].tensors().keys())
            return f"some have {', '.join(odd)} and some have not"
        for name, t in one.tensors().items():
            if t.dtype != quantized[0].tensors()[name].dtype:
                return f"{name} differ: {quantized[0].tensors()[name].dtype} and {t.dtype}"
    return _unequal("order", quantized)


def _unequal(name: str, weights: Sequence[Quantized]) -> str | None:
    held = [t for weight in weights if (t := weight.tensors().get(name)) is not None]
    if all(torch.equal(t, held[0]) for t in held[1:]):
        return None
    return f"the values of {name} differ"
