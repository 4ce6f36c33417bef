"""Launches of `experts`: sort the pairs, two grouped products, the sum over a token's experts.

Nothing here waits for the device or reads a value: sizes come from shapes alone.
"""

from functools import partial

import torch
import triton

from sparkwell.formats.fp8 import Fp8Block
from sparkwell.formats.nvfp4 import Nvfp4
from sparkwell.formats.quantized import Quantized
from sparkwell.formats.weights import Weight
from sparkwell.hardware.targets import Target
from sparkwell.ops.device import Device, device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.linear.arithmetic import memory_bound_rows
from sparkwell.ops.moe.decision import narrow
from sparkwell.ops.moe.kernels.combine import combine_kernel
from sparkwell.ops.moe.kernels.sort import count_kernel, place_kernel
from sparkwell.ops.moe.operand import Operand, operand
from sparkwell.ops.moe.products import TYPES, Layout, Rows, bits, product, turned
from sparkwell.ops.moe.schedule import (
    COMBINE,
    SHORT,
    SORT,
    TABLE,
    CombineProblem,
    Problem,
    SortProblem,
    narrowed,
    shared,
    sized,
)
from sparkwell.ops.quantize import quantize_activations
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

_HIDDEN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTED = 8  # chunks whose counts are added at a time
LISTED = 32  # tiles of the table written at a time


def experts_rows(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    first_expert: int,
    arithmetic: str,
) -> torch.Tensor:
    """`experts` of checked operands.  [T, h] -> [T, h]"""
    x = unit_stride(x)
    flat = ids.reshape(-1)
    up, back = operand(gate_up), operand(down)
    rows, width = x.shape
    num_experts, inner = back.shape[0], back.shape[2]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    ordered = x if up.order is None else x.index_select(1, up.order)
    device = device_of(x.device)
    lift, drop = _problems(ordered, up, back, len(flat), device.target)
    target, each = device.target, len(flat) / min(len(flat), num_experts)
    made_for, few = getattr(gate_up, "activations", "none"), partial(_rows_read, gate_up, device)
    if kind := narrow((lift, drop), made_for, target, arithmetic, each, few):
        lift, drop = narrowed(lift, kind, target), narrowed(drop, kind, target)
    chosen = [_pick(problem, x.device) for problem in (lift, drop)]
    early = bool(chosen[0].schedule.streamed)  # kernels of streams start before others are over
    tall = chosen[0].schedule.block_m
    tiles = _tiles(flat, ids.shape[1], first_expert, num_experts, tall, early)

    hidden = x.new_empty(len(flat), inner, dtype=_HIDDEN.get(lift.type, x.dtype))
    turn, turns = bits(chosen[0], up), bits(chosen[1], back)
    rows_up = (
        turned(ordered, turn, target, early and tiles.pairs is not None)
        if turn
        else _rows(ordered, lift)
    )
    product(hidden, rows_up, up, tiles, chosen[0], lift, gather=True, turns=turns)
    if back.order is not None:
        hidden = hidden.index_select(1, back.order)
    split = _split(chosen[1], drop, tiles, device)
    parts = torch.empty(len(flat) * split, width, dtype=torch.float32, device=x.device)
    rows_back = _rows(hidden, drop)
    product(parts, rows_back, back, tiles, chosen[1], drop, scatter=True, parts=split)
    _combine(out, parts, weights, flat, tiles, split, bool(chosen[1].schedule.streamed))
    return out


def _pick(problem: Problem, device: torch.device) -> Choice:
    return pick("experts", TABLE, problem, device_of(device).target, shared=shared)


def _rows(x: torch.Tensor, problem: Problem) -> Rows:
    """x as the product takes it: as it is, or quantized."""
    if problem.type == "fp8":
        made = quantize_activations(x, "fp8-group", group=problem.group, backend="kernel")
        assert isinstance(made, Fp8Block)
        return Rows(made.values.view(torch.uint8), made.scales)
    if problem.type == "fp4":
        four = quantize_activations(x, "nvfp4", backend="kernel")
        assert isinstance(four, Nvfp4)
        return Rows(four.codes, four.scales, four.row_scales)
    return Rows(x)


def _rows_read(weight: Weight, device: Device) -> int:
    """Rows of x that take as long as reading one expert's weight."""
    assert isinstance(weight, Quantized)
    return memory_bound_rows(weight.select(0), device)


def _problems(
    x: torch.Tensor, up: Operand, back: Operand, pairs: int, target: Target
) -> tuple[Problem, Problem]:
    """Both products."""
    num_experts, width, inner = back.shape
    kind = TYPES[x.dtype]
    if any(o.kind == "float" and o.values.dtype != x.dtype for o in (up, back)):
        kind = "fp32"  # no tensor core multiplies two types
    half = x.element_size() if kind != "fp32" else 4

    def problem(o: Operand, n: int, k: int, gated: bool, result: int, distance: int) -> Problem:
        return Problem(
            o.kind, kind, SHORT, n, k, gated, o.factored, result,
            aligned=o.aligned and distance % 16 == 0,
            stacked=o.stacked and not interpreting(),
        )  # fmt: skip

    lift = problem(up, inner, width, True, half, x.stride(0) * x.element_size())
    drop = problem(back, width, inner, False, 4, inner * half)
    return sized((lift, drop), pairs, num_experts, target)


def _tiles(
    ids: torch.Tensor, per_row: int, first: int, num_experts: int, tall: int, early: bool
) -> Layout:
    """The tiles of all pairs: for one token the pairs themselves, otherwise sorted by expert."""
    pairs = len(ids)
    if pairs == per_row:
        return Layout("single", pairs, num_experts, ids, first=first, per_row=per_row)
    num = min(pairs, pairs // tall + num_experts)
    made = [torch.empty(size, dtype=torch.int32, device=ids.device) for size in (pairs, 3 * num)]
    target = device_of(ids.device).target
    choice = pick("experts", SORT, SortProblem(pairs), target)
    chunk = min(choice.schedule.block, triton.next_power_of_2(pairs))
    chunks, bins = triton.cdiv(pairs, chunk), triton.next_power_of_2(num_experts + 1)
    counts = None
    if chunks > 1:
        counts = torch.empty(chunks, bins, dtype=torch.int32, device=ids.device)
        launch(
            count_kernel, (chunks,), counts, ids, pairs, first, num_experts, choice=choice,
            CHUNK=chunk, BLOCK_E=bins,
        )  # fmt: skip
    launch(
        place_kernel, (chunks,), *made, ids, counts, pairs, first, num_experts, chunks, num,
        choice=choice, ONE=chunks == 1, CHUNK=chunk, BLOCK_E=bins, BLOCK_C=COUNTED,
        BLOCK_T=LISTED, BLOCK_M=tall, EARLY=early,
    )  # fmt: skip
    pair, table = made
    return Layout("sorted", num, num_experts, None, pair, table, first, per_row, counts=counts)


def _split(choice: Choice, p: Problem, tiles: Layout, device: Device) -> int:
    """Parts of the columns that have units of their own: 2 where that fills blocks better."""
    if not choice.schedule.streamed:
        return 1
    s = choice.schedule
    units, slots = tiles.tiles * triton.cdiv(p.n, s.block_n), s.streamed * device.sms
    return 2 if triton.cdiv(2 * units, slots) < 2 * triton.cdiv(units, slots) else 1


def _combine(
    out: torch.Tensor,
    parts: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    tiles: Layout,
    split: int,
    early: bool,
) -> None:
    rows, width = out.shape
    choice = pick("experts", COMBINE, CombineProblem(width), device_of(out.device).target)
    block = choice.schedule.block
    launch(
        combine_kernel, (rows, triton.cdiv(width, block)), out, parts, weights, ids, tiles.first,
        tiles.experts, width, weights.stride(0), weights.stride(1), choice=choice,
        K=tiles.per_row, BLOCK=block, PARTS=split, EARLY=early, launch_pdl=early,
    )  # fmt: skip
