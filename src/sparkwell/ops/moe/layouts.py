"""`grouped_linear`, a linear layer whose weight is that of a row's group, and its reference."""

from typing import TypeAlias

import torch
from torch.nn import functional

from sparkwell.errors import BadInput
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight, dequantize, select
from sparkwell.ops.backend import choose
from sparkwell.ops.ragged import shown

Rows: TypeAlias = torch.Tensor | Fp8Block | Nvfp4
LAYOUTS = ("rows", "ends", "counted")
SMALLEST = 16  # rows that a group's first row is a multiple of


def grouped_linear(
    x: Rows,
    weight: Weight,
    groups: torch.Tensor | None,
    *,
    layout: str = "rows",
    alignment: int = 128,
    add: torch.Tensor | None = None,
    expected_rows: int | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """y[r] = weight[g(r)] x[r] + add[r].

    x: [R, K], for "counted" [G, M, K], fp32/bf16/fp16; or an Fp8Block with blocks of 1 x 128, for
    an Fp8Block; or Nvfp4, for Nvfp4 where matrix units take block scales.
    weight: [G, N, K], a float tensor or a quantized one.
    groups: int32 on x's device; None: one group has all rows.
    layout: "rows": groups [R] is each row's, -1 for none; of the rows from alignment n to alignment
    (n + 1) one group has the first ones, and none the rest.  "ends": groups [G] is where each
    group's rows end; it begins at the last end, rounded up to `alignment`.  "counted": group g has
    the first groups[g] of its M rows.
    alignment: a multiple of 16.
    add: [R, N] or [G, M, N], or None; may be `out`.
    expected_rows: of a group, for choosing a tile; changes no result.
    out: where the result goes; None: a new tensor of out_dtype.
    out_dtype: None: x's, for a quantized x bfloat16.

    Returns [R, N] or [G, M, N]; products and sums are fp32, cast once.  Rows of no group are 0;
    "ends": those after the last group, "counted": those past the count, hold anything.
    Raises BadInput where shapes or the layout do not fit; Unsupported where no kernel multiplies
    these operands.
    """
    tensor = x if isinstance(x, torch.Tensor) else next(iter(x.tensors().values()))
    served_by = choose("grouped_linear", tensor, backend)
    _check(x, weight, groups, layout, alignment)
    shape = (*x.shape[:-1], weight.shape[1])
    for name, t in (("add", add), ("out", out)):
        if t is not None and (t.shape != shape or not t.is_contiguous()):
            raise BadInput(
                f"grouped_linear: {name} is {shown(t)}, want {list(shape)}, its rows one after "
                "the other"
            )
    if out is None:
        plain = x.dtype if isinstance(x, torch.Tensor) else torch.bfloat16
        out = torch.empty(shape, dtype=out_dtype or plain, device=tensor.device)
    if served_by == "reference":
        y = grouped_linear_reference(x, weight, groups, layout=layout, alignment=alignment, add=add)
        return out.copy_(y)
    from sparkwell.ops.moe.grouped import grouped_rows

    name = "whole" if groups is None else layout
    add = None if add is None else add.view(-1, shape[-1])
    grouped_rows(x, weight, name, groups, out, align=alignment, each=expected_rows, add=add)
    return out


def grouped_linear_reference(
    x: Rows,
    weight: Weight,
    groups: torch.Tensor | None,
    *,
    layout: str = "rows",
    alignment: int = 128,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """The meaning of `grouped_linear`, in fp32; what may hold anything is 0."""
    rows = x.float() if isinstance(x, torch.Tensor) else x.dequantize()
    y = rows.new_zeros(*rows.shape[:-1], weight.shape[1])
    for group in range(weight.shape[0]):
        mine = _members(rows, groups, group, layout, alignment)
        if len(rows[mine]):
            y[mine] = functional.linear(rows[mine], dequantize(select(weight, group)))
    return y if add is None else y + add.float()


def _members(
    rows: torch.Tensor, groups: torch.Tensor | None, group: int, layout: str, alignment: int
) -> torch.Tensor | slice | tuple[int, slice]:
    if groups is None:
        return slice(None)
    if layout == "rows":
        return groups == group
    if layout == "counted":
        return group, slice(0, int(groups[group]))
    before = int(groups[group - 1]) if group else 0
    return slice(-(-before // alignment) * alignment, int(groups[group]))


def _check(
    x: Rows,
    weight: Weight,
    groups: torch.Tensor | None,
    layout: str,
    alignment: int,
) -> None:
    if layout not in LAYOUTS or alignment < SMALLEST or alignment % SMALLEST:
        raise BadInput(
            f"grouped_linear: layout is {layout!r} and alignment {alignment}, want one of "
            f"{', '.join(LAYOUTS)} and a multiple of {SMALLEST}"
        )
    lead = 3 if layout == "counted" else 2
    num = weight.shape[0]
    if (
        len(weight.shape) != 3
        or len(x.shape) != lead
        or x.shape[-1] != weight.shape[-1]
        or (lead == 3 and x.shape[0] != num)
    ):
        raise BadInput(
            f"grouped_linear: x is {list(x.shape)} and weight {list(weight.shape)}, want x "
            f"{'[G, M, K]' if lead == 3 else '[R, K]'} and weight [G, N, K]"
        )
    if groups is None:
        if num != 1 or lead == 3:
            raise BadInput(f"grouped_linear: no groups for {num} weights, want them, or one weight")
    elif groups.dtype != torch.int32 or list(groups.shape) != [
        x.shape[0] if layout == "rows" else num
    ]:
        raise BadInput(
            f"grouped_linear: groups is {shown(groups)}, want int32 "
            f"[{x.shape[0] if layout == 'rows' else num}] for layout {layout!r}"
        )
