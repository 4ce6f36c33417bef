"""What all quantized weights have in common: their tensors, one of a stack, moves, sizes.

A quantized weight is a frozen dataclass of tensors.  Leading dimensions `...` are a stack of
experts; all kinds store [..., n, k] row by row, k being what a product sums over.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from sparkwell.errors import BadInput

# What the checkpoint's makers multiply the weight with; "none": with activations left as they are.
Activations = Literal["none", "fp8-token", "fp8-tensor", "fp8-group", "nvfp4", "mxfp4"]


@dataclass(frozen=True, eq=False)
class Quantized(ABC):
    """Base of the kinds; a kind lists in ROWS its tensors whose dimension after `...` counts rows.

    Of the other tensors, `input_scale` has one value a weight and `order` serves a whole stack.
    """

    ROWS: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight, computed in fp32 and rounded once; [..., n, k]."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors it consists of, by the names of its fields."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: t for name, t in held.items() if isinstance(t, torch.Tensor)}

    def options(self) -> dict[str, Any]:
        """Everything but the tensors, by name: what two weights must share to become one."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in held.items() if not isinstance(v, torch.Tensor | None)}

    def changed(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Self:
        """The same kind with change(name, tensor) in place of each tensor."""
        return replace(self, **{name: change(name, t) for name, t in self.tensors().items()})

    def scaled(self, input_scale: torch.Tensor | None) -> Self:
        """The same weight with another static scale of its activations, or none.

        Raises BadInput for a scale where the format knows none.
        """
        if "input_scale" in (field.name for field in fields(self)):
            return replace(self, input_scale=input_scale)  # type: ignore[call-arg]
        if input_scale is not None:
            raise BadInput(f"{type(self).__name__}: has no static scale of activations")
        return self

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return next(iter(self.tensors().values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.nbytes for t in self.tensors().values())

    def to(self, device: torch.device | str) -> Self:
        """The same weight on `device`; itself where it lies there already."""
        if self.device == torch.device(device):
            return self
        return self.changed(lambda _, t: t.to(device))

    def select(self, expert: int) -> Self:
        """One weight of a stack: `expert` counts along the first dimension, as views.

        Raises BadInput where there is no such dimension or no such expert.
        """
        kind, shape = type(self).__name__, self.shape
        if len(shape) < 3:
            raise BadInput(f"{kind}.select: shape {list(shape)} is one weight, not a stack")
        if not 0 <= expert < shape[0]:
            raise BadInput(f"{kind}.select: expert {expert}, want 0 <= expert < {shape[0]}")
        return self.changed(lambda name, t: t if name == "order" else t[expert])


def check_tensor(
    kind: str,
    name: str,
    t: torch.Tensor,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: list[int],
    of: str,
) -> None:
    """Raises BadInput unless `t` has one of the types and the shape; `of`: what asks for it."""
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if t.dtype not in allowed or list(t.shape) != shape:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise BadInput(f"{kind}: {name} are {t.dtype} {list(t.shape)}, want {names} {shape} {of}")


def check_matrix(kind: str, name: str, t: torch.Tensor, dtype: torch.dtype, want: str) -> None:
    """Raises BadInput unless `t` is of the type and a matrix, or a stack of matrices."""
    if t.dtype != dtype or t.ndim < 2:
        short = str(dtype).removeprefix("torch.")
        raise BadInput(f"{kind}: {name} are {t.dtype} {list(t.shape)}, want {short} {want}")


def check_groups(kind: str, k: int, group: int) -> None:
    """Raises BadInput where k ends inside a group: the formats have no partial ones."""
    if group < 1 or k % group:
        raise BadInput(
            f"{kind}: k is {k}, want a multiple of {group}, the values of one scale; a row that "
            "ends inside a group has to be padded with zeros before it is quantized"
        )


def check_activations(
    kind: str, activations: str, input_scale: torch.Tensor | None, lead: list[int]
) -> None:
    """Raises BadInput for a format of activations without a name, or a scale of a wrong shape."""
    if activations not in get_args(Activations):
        names = ", ".join(get_args(Activations))
        raise BadInput(f"{kind}: activations are {activations!r}, want one of {names}")
    if input_scale is not None:
        of = "one value a weight"
        check_tensor(kind, "input_scale", input_scale, torch.float32, lead, of)


def check_device(weight: Quantized) -> None:
    """Raises BadInput where a weight's tensors lie on different devices."""
    places = {name: str(t.device) for name, t in weight.tensors().items()}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise BadInput(f"{type(weight).__name__}: {listed}; want one device")


def weight_values(op: str, w: torch.Tensor) -> torch.Tensor:
    """w in fp32.  Raises BadInput unless it is a matrix or a stack of floats, all finite."""
    if w.ndim < 2 or not w.is_floating_point():
        raise BadInput(f"{op}: w is {w.dtype} {list(w.shape)}, want float [..., n, k]")
    w = w.float()
    if bad := int((~torch.isfinite(w)).sum()):
        raise BadInput(f"{op}: {bad} of {w.numel()} values are not finite; mend w")
    return w


def check_rows(op: str, x: torch.Tensor, input_scale: torch.Tensor | None) -> None:
    """Raises BadInput unless x has rows of floats, and its static scale is one fp32 number."""
    if x.ndim < 2 or not x.is_floating_point():
        raise BadInput(f"{op}: x is {x.dtype} {list(x.shape)}, want float [..., m, k]")
    if input_scale is not None and (input_scale.dtype != torch.float32 or input_scale.numel() != 1):
        raise BadInput(
            f"{op}: input_scale is {input_scale.dtype} {list(input_scale.shape)}, want one float32"
        )


def divided(x: torch.Tensor, by: float) -> torch.Tensor:
    """x / by, rounded once: on a GPU torch turns division by a number into a product."""
    return x / x.new_full((), by)


def by_groups(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """values[..., k] * scales[..., k // group], where each scale serves a group of a row."""
    if not scales.shape[-1]:
        return values
    groups = values.unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales[..., None]).flatten(-2)
