"""Products of rows with the weight of their group, in the layouts that callers sort rows into."""

from dataclasses import replace

import torch
import triton

from sparkwell.errors import Unsupported
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.weights import Weight
from sparkwell.ops.device import device_of
from sparkwell.ops.moe.operand import Operand, operand
from sparkwell.ops.moe.products import TYPES, Layout, Rows, product
from sparkwell.ops.moe.schedule import GROUP, SHORT, TABLE, WHOLE, Problem, height, regular, shared
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick


def grouped_rows(
    x: torch.Tensor | Fp8Block,
    weight: Weight,
    layout: str,
    ids: torch.Tensor | None,
    out: torch.Tensor,
    *,
    align: int = 1,
    each: int | None = None,
    add: torch.Tensor | None = None,
) -> None:
    """`grouped_linear` of checked operands, x [R, K] or [G, M, K], into out.

    layout: "rows", "ends", "counted" or "whole".  align: what a group's first row is a multiple of.
    each: rows of a group that are expected; None: by the shapes.
    """
    stored = operand(weight)
    num, n, k = stored.shape
    rows = _rows(x, stored)
    total = rows.values.shape[0]
    if not total or not n:
        return
    counted = layout == "counted"
    expected = num * each if each else total
    problem = _problem(rows, stored, out, expected, align if layout in ("rows", "ends") else 0)
    choice = pick("grouped_linear", TABLE, problem, device_of(out.device).target, shared=shared)
    tall = choice.schedule.block_m
    depth = total // num if counted else total
    # Groups hold about what is expected, not all they have room for: half as much again is ready.
    slots = triton.cdiv(min(depth, 3 * (each or depth) // 2), tall) if counted else 1
    tiles = num * slots if counted else triton.cdiv(total, tall)
    place = Layout(layout, tiles, num, ids, height=depth, align=align, slots=slots)
    product(out.view(-1, n), rows, stored, place, choice, problem, add=add)


def _rows(x: torch.Tensor | Fp8Block, weight: Operand) -> Rows:
    """x as the kernel takes it, [R, K]."""
    k = weight.shape[2]
    if isinstance(x, Fp8Block):
        values = unit_stride(x.values).reshape(-1, k).view(torch.uint8)
        return Rows(values, x.scales.reshape(values.shape[0], -1))
    rows = unit_stride(x).reshape(-1, k)
    return Rows(rows if weight.order is None else rows.index_select(1, weight.order))


def _problem(rows: Rows, weight: Operand, out: torch.Tensor, expected: int, align: int) -> Problem:
    """align: heights of tiles divide it; 0: any do.

    Raises Unsupported where FP8 rows meet another weight.
    """
    num, n, k = weight.shape
    eight = rows.scales is not None
    if eight and (weight.kind != "fp8-block" or weight.group % GROUP or k % WHOLE):
        raise Unsupported(
            "grouped_linear",
            f"FP8 rows by {weight.kind} [{num}, {n}, {k}] in groups of {weight.group}",
            {"w8a8": f"wants FP8 blocks {GROUP} n columns wide, k a multiple of {WHOLE}"},
            "dequantize the rows first",
        )
    kind = "fp8" if eight else TYPES[rows.values.dtype]
    if weight.kind == "float" and weight.values.dtype != rows.values.dtype:
        kind = "fp32"
    aligned = weight.aligned and rows.values.stride(0) * rows.values.element_size() % 16 == 0
    tall = height(expected, num)
    while (align and align % tall) or (eight and k % GROUP and tall == 64):
        tall = {128: 64, 64: SHORT}[tall]
    found = Problem(
        weight.kind, kind, tall, n, k, False, weight.factored, out.element_size(), aligned
    )
    return found if regular(found) else replace(found, height=SHORT)
