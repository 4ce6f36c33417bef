"""Exact top-k of each row, lower column first among equals, columns ascending, then -1.

Scores become integers of the same order; three passes over the row count 11, 11 and 10 of their
bits to find the k-th largest, and a last one writes the columns above it and the first of those
equal to it.  Counts and prefix sums only, so the result is the same in every run.
"""

import triton
import triton.language as tl


@triton.jit
def _order(x, keep):
    """uint32 that sorts as x does, 0.0 and -0.0 alike; 0 for NaN, -inf and what is not kept."""
    bits = tl.where(x == 0.0, 0, x.to(tl.int32, bitcast=True))
    key = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    return tl.where(keep & (x > -float("inf")), key, 0)  # a comparison with NaN is false


@triton.jit
def _count_digits(
    row_ptr, visible, prefix, SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """How many kept scores, whose bits above the digit are `prefix`, have each digit."""
    counts = tl.zeros((1 << BITS,), tl.int32)
    for first in range(0, visible, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + column, mask=column < visible, other=-float("inf"))
        key = _order(x.to(tl.float32), column < visible)
        digit = ((key >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
        above = key >> (SHIFT + BITS) if SHIFT + BITS < 32 else tl.zeros_like(key)
        counts += tl.histogram(digit, 1 << BITS, mask=(key > 0) & (above == prefix))
    return counts


@triton.jit
def _digit(counts, need, BITS: tl.constexpr):
    """The digit of the need-th largest, and how many larger digits there are before it."""
    d = tl.arange(0, 1 << BITS)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    here = (above < need) & (need <= above + counts)
    return tl.sum(tl.where(here, d, 0), 0), tl.sum(tl.where(here, above, 0), 0)


@triton.jit
def topk_kernel(
    out_ptr, score_ptr, visible_ptr, columns, topk, stride_score, KEEP_ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    visible = tl.minimum(tl.load(visible_ptr + t).to(tl.int32), columns)
    visible = tl.maximum(visible, 0)
    row = score_ptr + t * stride_score
    out = out_ptr + t * topk
    written = 0
    if KEEP_ALL and visible <= topk:
        for first in range(0, visible, BLOCK):
            column = first + tl.arange(0, BLOCK)
            tl.store(out + column, column, mask=column < visible)
        written += visible
    else:
        counts = _count_digits(row, visible, 0, 21, 11, BLOCK)
        need = tl.minimum(topk, tl.sum(counts, 0))
        high, larger = _digit(counts, need, 11)
        ties = need - larger
        counts = _count_digits(row, visible, high.to(tl.uint32), 10, 11, BLOCK)
        middle, larger = _digit(counts, ties, 11)
        ties -= larger
        prefix = (high << 11) | middle
        counts = _count_digits(row, visible, prefix.to(tl.uint32), 0, 10, BLOCK)
        low, larger = _digit(counts, ties, 10)
        ties -= larger
        threshold = ((prefix << 10) | low).to(tl.uint32)
        for first in range(0, visible, BLOCK):
            column = first + tl.arange(0, BLOCK)
            x = tl.load(row + column, mask=column < visible, other=-float("inf"))
            key = _order(x.to(tl.float32), column < visible)
            tie = (key == threshold) & (key > 0)
            rank = tl.cumsum(tie.to(tl.int32), 0)
            chosen = (key > threshold) | (tie & (rank <= ties))
            place = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(out + place, column, mask=chosen)
            written += tl.sum(chosen.to(tl.int32), 0)
            ties -= tl.sum(tie.to(tl.int32), 0)
    for first in range(written, topk, BLOCK):
        column = first + tl.arange(0, BLOCK)
        tl.store(out + column, tl.full((BLOCK,), -1, tl.int32), mask=column < topk)


@triton.jit
def slots_kernel(
    out_ptr, index_ptr, request_ptr, table_ptr, topk, page_size, num_requests, table_width,
    stride_index, stride_table, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < topk
    request = tl.zeros((BLOCK,), tl.int64) + tl.load(request_ptr + t).to(tl.int64)
    position = tl.load(index_ptr + t * stride_index + column, mask=mask, other=-1).to(tl.int64)
    logical = position // page_size
    known = mask & (position >= 0) & (logical < table_width)
    known = known & (request >= 0) & (request < num_requests)
    page = tl.load(table_ptr + request * stride_table + logical, mask=known, other=-1)
    slot = page.to(tl.int64) * page_size + position % page_size
    slot = tl.where((page >= 0) & (slot <= 2147483647), slot, -1)
    tl.store(out_ptr + t * topk + column, slot.to(tl.int32), mask=mask)
