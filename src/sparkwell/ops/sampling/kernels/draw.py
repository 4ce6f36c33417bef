"""A token of each row, without sorting: thresholds are searched for bit by bit; a block a row.

y = (x - largest) / temperature <= 0, so of two y the one with fewer bits in its magnitude is the
larger, and a mask by top-k or top-p is a bound on the magnitude, with a bound on the column among
the tokens at it.  Weights exp(y) and their sums are fp64.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.device import device_of
from sparkwell.ops.launch import launch
from sparkwell.ops.ragged import unit_stride
from sparkwell.ops.sampling.schedule import DRAW, Problem
from sparkwell.ops.schedule import pick

FANS: tl.constexpr = tl.constexpr(8)  # bounds that one pass of a search tries

# ---------------------------------------------------------------- kernel


@triton.jit
def _load(x_ptr, first, vocab, BLOCK: tl.constexpr):
    """Columns from `first` on and their logits; past the row's end -inf."""
    column = first + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
    return column, x


@triton.jit
def _scaled(x, largest, temperature):
    """y, and its magnitude."""
    y = tl.math.div_rn(x - largest, tl.zeros_like(x) + temperature)
    return y, y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _weight(magnitude):
    """exp(y) of a magnitude of y <= 0, fp64."""
    return tl.exp(-(magnitude.to(tl.float32, bitcast=True).to(tl.float64)))


@triton.jit
def _reach(x_ptr, vocab, largest, temperature, goal, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The least bound whose tokens reach `goal`, in number or weight, and what lies below it."""
    bound = tl.zeros((), tl.int32)
    fan = tl.arange(0, FANS)
    below = tl.zeros((), tl.float64)
    shift = tl.full((), 28, tl.int32)
    for _digit in range(11):  # three bits at a time from bit 30 on, then bit 0 alone
        tried = bound + ((fan + 1) << shift) - 1
        reached = tl.zeros((BLOCK, FANS), tl.float64)
        for first in range(0, vocab, BLOCK):
            column, x = _load(x_ptr, first, vocab, BLOCK)
            _, magnitude = _scaled(x, largest, temperature)
            if MASS:
                value = _weight(magnitude)
            else:
                value = tl.where(column < vocab, 1.0, 0.0).to(tl.float64)
            reached += tl.where(magnitude[:, None] <= tried[None, :], value[:, None], 0.0)
        sums = tl.sum(reached, 0)
        few = tl.sum((sums < goal).to(tl.int32), 0)
        few = tl.minimum(few, tl.where(shift > 0, 7, 1))
        under = tl.sum(tl.where(fan == few - 1, sums, 0.0), 0)
        below = tl.where(few > 0, under, below)
        bound += few << shift
        shift = tl.maximum(shift - 3, 0)
    return bound, below


@triton.jit
def _last_column(x_ptr, vocab, largest, temperature, bound, count, BLOCK: tl.constexpr):
    """The column of the count-th token at the bound; past all of them where there are fewer."""
    before = tl.zeros((), tl.int32)
    at = tl.full((), -1, tl.int32)
    rest = tl.zeros((), tl.int32)
    for first in range(0, vocab, BLOCK):
        column, x = _load(x_ptr, first, vocab, BLOCK)
        _, magnitude = _scaled(x, largest, temperature)
        here = tl.sum(((magnitude == bound) & (column < vocab)).to(tl.int32), 0)
        hit = (at < 0) & (before + here >= count)
        at = tl.where(hit, first, at)
        rest = tl.where(hit, count - before, rest)
        before += here
    column, x = _load(x_ptr, tl.maximum(at, 0), vocab, BLOCK)
    _, magnitude = _scaled(x, largest, temperature)
    tied = ((magnitude == bound) & (column < vocab)).to(tl.int32)
    found = tl.min(tl.where((tl.cumsum(tied, 0) == rest) & (tied > 0), column, vocab), 0)
    return tl.where(at < 0, vocab, found)


@triton.jit
def _kept(x, column, largest, temperature, least, bound, last):
    """Weights of the tokens that no mask leaves out."""
    y, magnitude = _scaled(x, largest, temperature)
    inside = (magnitude < bound) | ((magnitude == bound) & (column <= last))
    return tl.where(inside & (y >= least), _weight(magnitude), 0.0)


@triton.jit
def draw_kernel(
    id_ptr, x_ptr, table_ptr, vocab, stride_x, stride_table,
    SORTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride_x
    table_ptr += row * stride_table
    temperature = tl.load(table_ptr).to(tl.float32)
    k, p = tl.load(table_ptr + 1), tl.load(table_ptr + 2)
    least, u = tl.load(table_ptr + 3).to(tl.float32), tl.load(table_ptr + 4)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    at = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, vocab, BLOCK):
        column, x = _load(x_ptr, first, vocab, BLOCK)
        x = tl.where(x != x, float("inf"), x)
        at = tl.where(x > best, column, at)
        best = tl.maximum(best, x)
    largest = tl.max(best, 0)
    drawn = tl.min(tl.where(best == largest, at, vocab), 0)
    if (largest == float("inf")) | (largest == float("-inf")):
        drawn = -1
    elif temperature > 0.0:
        bound = tl.full((), 0x7FFFFFFF, tl.int32)  # no magnitude is above
        last = tl.zeros((), tl.int32) + vocab
        if SORTS:
            room = last  # tokens at the bound that may stay
            above = tl.zeros((), tl.float64)
            if k < vocab:
                bound, above = _reach(x_ptr, vocab, largest, temperature, k, False, BLOCK_S)
                room = (k - above).to(tl.int32)
            if p < 1.0:
                total = tl.zeros((), tl.float64)
                for first in range(0, vocab, BLOCK):
                    column, x = _load(x_ptr, first, vocab, BLOCK)
                    _, magnitude = _scaled(x, largest, temperature)
                    total += tl.sum(tl.where(magnitude < bound, _weight(magnitude), 0.0), 0)
                if k < vocab:
                    total += room * _weight(bound)
                goal = p * total
                by_k = bound
                bound, above = _reach(x_ptr, vocab, largest, temperature, goal, True, BLOCK_S)
                need = (goal - above) / _weight(bound)  # NaN where nothing lies at the bound
                need = tl.where(need > 1.0, tl.minimum(tl.ceil(need), vocab), 1.0).to(tl.int32)
                room = tl.where(bound == by_k, tl.minimum(need, room), need)
            last = _last_column(x_ptr, vocab, largest, temperature, bound, room, BLOCK)

        total = tl.zeros((), tl.float64)
        for first in range(0, vocab, BLOCK):
            column, x = _load(x_ptr, first, vocab, BLOCK)
            total += tl.sum(_kept(x, column, largest, temperature, least, bound, last), 0)
        # The block in which the sum passes u * total; a u of 1 ends where the sum reaches total.
        target = u * total
        sum_before = tl.zeros((), tl.float64)
        base = sum_before
        start = tl.full((), -1, tl.int32)
        base_end, start_end = base, start
        for first in range(0, vocab, BLOCK):
            column, x = _load(x_ptr, first, vocab, BLOCK)
            here = tl.sum(_kept(x, column, largest, temperature, least, bound, last), 0)
            passes = (start < 0) & (sum_before + here > target)
            start = tl.where(passes, first, start)
            base = tl.where(passes, sum_before, base)
            ends = (start_end < 0) & (sum_before + here >= total)
            start_end = tl.where(ends, first, start_end)
            base_end = tl.where(ends, sum_before, base_end)
            sum_before += here
        wraps = (start < 0).to(tl.int32)
        goal = tl.where(start < 0, total, target)
        base = tl.where(start < 0, base_end, base)
        start = tl.where(start < 0, start_end, start)
        column, x = _load(x_ptr, start, vocab, BLOCK)
        weight = _kept(x, column, largest, temperature, least, bound, last)
        sums = base + tl.cumsum(weight, 0)
        over = (weight > 0.0) & (((sums > goal).to(tl.int32) + (sums >= goal) * wraps) > 0)
        drawn = tl.min(tl.where(over, column, vocab), 0)
        if drawn == vocab:  # the block's sum and its running sum may differ in the last bit
            drawn = tl.max(tl.where(weight > 0.0, column, -1), 0)
    tl.store(id_ptr + row, drawn.to(tl.int64))


# ---------------------------------------------------------------- launch


def draw_rows(x: torch.Tensor, table: torch.Tensor, *, sorts: bool) -> torch.Tensor:
    """`draw` of checked operands.  [B, V], [B, COLUMNS] -> [B] int64"""
    x, table = unit_stride(x), unit_stride(table)
    rows, vocab = x.shape
    ids = torch.empty(rows, dtype=torch.int64, device=x.device)
    choice = pick("draw", DRAW, Problem(vocab), device_of(x.device).target)
    s = choice.schedule
    launch(
        draw_kernel, (rows,), ids, x, table, vocab, x.stride(0), table.stride(0), choice=choice,
        SORTS=sorts, BLOCK=s.block, BLOCK_S=512,
    )  # fmt: skip
    return ids
