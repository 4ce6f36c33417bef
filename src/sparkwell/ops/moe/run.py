"""Launches of `experts`: sort the pairs, two grouped products, the sum over a token's experts.

Nothing here waits for the device or reads a value: sizes come from shapes alone.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from sparkwell.formats.weights import Weight
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.moe.kernels.combine import combine_kernel
from sparkwell.ops.moe.kernels.grouped import grouped_kernel
from sparkwell.ops.moe.kernels.sort import count_kernel, place_kernel
from sparkwell.ops.moe.operand import Operand, operand
from sparkwell.ops.moe.schedule import (
    COMBINE,
    SHORT,
    SORT,
    TABLE,
    CombineProblem,
    Problem,
    SortProblem,
    height,
    regular,
    shared,
)
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.schedule import Choice, pick

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TYPE = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
_HIDDEN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTED = 8  # chunks whose counts are added at a time
LISTED = 32  # tiles of the table written at a time


@dataclass(frozen=True)
class Tiles:
    """Tiles of positions: which expert's, from which position, how many.

    num: their number at most.  ids: None, or the tiles are the pairs themselves, unsorted.
    pairs: which pair stands at a position.  table: [3, num] int32.
    first, experts: the range of experts whose weights are here.
    """

    num: int
    per_row: int
    first: int
    experts: int
    ids: torch.Tensor | None = None
    pairs: torch.Tensor | None = None
    table: torch.Tensor | None = None


def experts_rows(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
    first_expert: int,
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
    lift, drop = _problems(ordered, up, back, len(flat))
    target = device_of(x.device).target
    chosen = [pick("experts", TABLE, p, target, shared=shared) for p in (lift, drop)]
    tiles = _tiles(flat, ids.shape[1], first_expert, num_experts, chosen[0].schedule.block_m)

    hidden = x.new_empty(len(flat), inner, dtype=_HIDDEN[lift.type])
    _product(hidden, ordered, up, tiles, chosen[0], lift)
    if back.order is not None:
        hidden = hidden.index_select(1, back.order)
    parts = torch.empty(len(flat), width, dtype=torch.float32, device=x.device)
    _product(parts, hidden, back, tiles, chosen[1], drop)
    _combine(out, parts, weights, flat, tiles)
    return out


def _problems(x: torch.Tensor, up: Operand, back: Operand, pairs: int) -> tuple[Problem, Problem]:
    """Both products; of one tile height, since one table of tiles serves both."""
    num_experts, width, inner = back.shape
    kind = _TYPES[x.dtype]
    if any(o.kind == "float" and o.values.dtype != x.dtype for o in (up, back)):
        kind = "fp32"  # no tensor core multiplies two types
    tall = height(pairs, num_experts)
    sizes = [(up, inner, width, True, x.stride(0) * x.element_size())]
    sizes += [(back, width, inner, False, inner * x.element_size())]
    found = [
        Problem(o.kind, kind, tall, n, k, gated, o.factored, o.aligned and step % 16 == 0)
        for o, n, k, gated, step in sizes
    ]
    if not all(map(regular, found)):
        found = [replace(problem, height=SHORT) for problem in found]
    return found[0], found[1]


def _tiles(ids: torch.Tensor, per_row: int, first: int, num_experts: int, tall: int) -> Tiles:
    """The tiles of all pairs: for one token the pairs themselves, otherwise sorted by expert."""
    pairs = len(ids)
    if pairs == per_row:
        return Tiles(pairs, per_row, first, num_experts, ids)
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
        BLOCK_T=LISTED, BLOCK_M=tall,
    )  # fmt: skip
    return Tiles(num, per_row, first, num_experts, None, *made)


def _product(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: Operand,
    tiles: Tiles,
    choice: Choice,
    problem: Problem,
) -> None:
    """One grouped product: gated: of a pair's token, to its position; else back to its place."""
    s, p = choice.schedule, problem
    step = s.step(p.group)
    converted = tl.bfloat16 if weight.kind == "mxfp4" and p.type != "fp32" else _TYPE[p.type]
    convert = weight.kind.startswith("fp8") and _converts(choice.target, p.type)
    left = 128 if weight.kind == "nvfp4" else 256 if not convert and p.type != "bf16" else 1
    launch(
        grouped_kernel, (tiles.num * triton.cdiv(p.n, s.block_n),), y, x, None, *weight.pointers,
        tiles.pairs, tiles.table, tiles.ids, tiles.first, tiles.experts, p.n, p.k, tiles.num,
        tiles.per_row, y.stride(0), x.stride(0), 0, *weight.strides, choice=choice,
        KIND=weight.kind, GROUP=weight.group, BLOCK_ROWS=weight.block_rows, CONVERT=convert,
        ASM=not interpreting(), LEFT=left, TYPE=converted, GATED=p.gated, GATHER=p.gated,
        SCATTER=not p.gated, BLOCK_N=s.block_n, BLOCK_M=s.block_m, BLOCK_K=step,
        EVEN=p.k % step == 0, STAGES=s.num_stages,
    )  # fmt: skip


def _converts(target: Target, kind: str) -> bool:
    """Whether e4m3 is converted by instructions made for it: to bfloat16 Hopper's are slow."""
    return not target.missing(Feature.FP8_CONVERT) and (
        kind != "bf16" or not target.missing(Feature.FP8_MMA_SYNC)
    )


def _combine(
    out: torch.Tensor,
    parts: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    tiles: Tiles,
) -> None:
    rows, width = out.shape
    choice = pick("experts", COMBINE, CombineProblem(width), device_of(out.device).target)
    block = choice.schedule.block
    launch(
        combine_kernel, (rows, triton.cdiv(width, block)), out, parts, weights, ids, tiles.first,
        tiles.experts, tiles.per_row, width, weights.stride(0), weights.stride(1), choice=choice,
        BLOCK=block,
    )  # fmt: skip
