"""Products of rows with the weight of their group, in the layouts that callers sort rows into."""

from dataclasses import replace

import torch
import triton

from sparkwell.errors import Unsupported
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.weights import Weight
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.device import device_of
from sparkwell.ops.kernels.fp8_products import copyable, fp8_products
from sparkwell.ops.launch import interpreting
from sparkwell.ops.moe.operand import Operand, operand
from sparkwell.ops.moe.products import TYPES, Layout, Rows, bits, product, turned
from sparkwell.ops.moe.schedule import (
    FP4_STEP,
    GROUP,
    SHORT,
    TABLE,
    WHOLE,
    Problem,
    height,
    narrowed,
    regular,
    shared,
)
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import pick

BOXED = ("rows", "ends", "whole")  # layouts in which a tile's rows lie side by side


def grouped_rows(
    x: torch.Tensor | Fp8Block | Nvfp4,
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
    if not k:  # sums of nothing
        out.zero_() if add is None else out.view(-1, n).copy_(add)
        return
    rows = _rows(x, stored)
    total = rows.values.shape[0]
    if not total or not n:
        return
    counted = layout == "counted"
    expected = num * each if each else total
    problem = _problem(rows, stored, out, expected, align if layout in ("rows", "ends") else 0)
    device = device_of(out.device)
    if problem.type == "fp8" and layout in BOXED and add is None:
        boxes = stored.block_rows % GROUP == 0 and copyable(rows.values, stored.values)
        problem = replace(problem, boxes=boxes)
    choice = pick("grouped_linear", TABLE, problem, device.target, shared=shared)
    if choice.schedule.roles and not interpreting():
        assert rows.scales is not None and stored.scales is not None
        fp8_products(
            out.view(-1, n), rows.values, rows.scales, stored.values, stored.scales, choice=choice,
            sms=device.sms, group_n=stored.block_rows, group=stored.group, layout=layout, ids=ids,
            align=align,
        )  # fmt: skip
        return
    tall = choice.schedule.block_m
    if turn := bits(choice, stored):
        rows = turned(rows.values, turn, choice.target)
    depth = total // num if counted else total
    # Groups hold about what is expected, not all they have room for: half as much again is ready.
    slots = triton.cdiv(min(depth, 3 * (each or depth) // 2), tall) if counted else 1
    tiles = num * slots if counted else triton.cdiv(total, tall)
    place = Layout(layout, tiles, num, ids, height=depth, align=align, slots=slots)
    product(out.view(-1, n), rows, stored, place, choice, problem, add=add)


def _rows(x: torch.Tensor | Fp8Block | Nvfp4, weight: Operand) -> Rows:
    """x as the kernel takes it, [R, K]."""
    k = weight.shape[2]
    if isinstance(x, Fp8Block):
        values = unit_stride(x.values).reshape(-1, k).view(torch.uint8)
        return Rows(values, x.scales.reshape(values.shape[0], -1))
    if isinstance(x, Nvfp4):
        codes = unit_stride(x.codes).reshape(-1, k // 2)
        return Rows(codes, x.scales.reshape(-1, k // 16), x.row_scales.reshape(-1))
    rows = unit_stride(x).reshape(-1, k)
    return Rows(rows if weight.order is None else rows.index_select(1, weight.order))


def _problem(rows: Rows, weight: Operand, out: torch.Tensor, expected: int, align: int) -> Problem:
    """align: heights of tiles divide it; 0: any do.

    Raises Unsupported where quantized rows meet another weight, or a GPU without units for them.
    """
    num, n, k = weight.shape
    narrow = "fp4" if rows.factors is not None else "" if rows.scales is None else "fp8"
    kind = narrow or TYPES[rows.values.dtype]
    if weight.kind == "float" and weight.values.dtype != rows.values.dtype:
        kind = "fp32"
    aligned = weight.aligned and rows.values.stride(0) * rows.values.element_size() % 16 == 0
    tall = height(expected, num, kind == "fp16" and weight.kind == "mxfp4")
    while (align and align % tall) or (narrow == "fp8" and k % GROUP and tall == 64):
        tall = {128: 64, 64: SHORT}[tall]
    size = out.element_size()
    found = Problem(
        weight.kind, kind, tall, n, k, False, weight.factored, size, aligned, stacked=False
    )
    if narrow:
        return _quantized(found, weight, device_of(out.device).target)
    return found if regular(found) else replace(found, height=SHORT)


def _quantized(p: Problem, weight: Operand, target: Target) -> Problem:
    """The same product, of rows that are quantized."""
    step, form = (WHOLE, "fp8-block") if p.type == "fp8" else (FP4_STEP, "nvfp4")
    why = None
    if weight.kind != form or p.group % GROUP or p.k % step or not regular(p):
        blocks = f" in blocks {GROUP} n columns wide" if p.type == "fp8" else ""
        why = f"wants {form} weights{blocks}, k of {step} n, rows at multiples of 16 bytes"
    elif p.type == "fp4" and target.missing(Feature.FP4_BLOCK_MMA):
        why = f"{target.name} has no matrix units that take block scales"
    if why:
        what = f"{p.type} rows by {weight.kind} {list(weight.shape)} in groups of {weight.group}"
        refused = {"quantized": why}
        raise Unsupported("grouped_linear", what, refused, "dequantize the rows first")
    return narrowed(p, p.type, target)
