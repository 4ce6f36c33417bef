"""Exact top-k of each row, lower column first among equals, columns ascending, then -1.

A sample of the row gives a bound that a little more than topk scores should reach; one pass over
the row marks those that do, a bit each; the k-th largest is then searched for among the marked
alone, all in registers.  Where too few or too many were marked (nothing but ties, say), the k-th
largest is found 6 bits at a time in passes over the whole row instead.  Counts and prefix sums
only, so the result is the same in every run.

Scores compare as integers of the same order.  Several blocks may share the marking of a row.
"""

import triton
import triton.language as tl

RUN = tl.constexpr(16)  # neighbours the sample takes together: 64 bytes
WORD = tl.constexpr(32)  # columns marked by one word
LEAST = tl.constexpr(0x00800000)  # of the lowest finite score; above what NaN and -inf have


@triton.jit
def _order(x, keep):
    """uint32 that sorts as x does, 0.0 and -0.0 alike; 0 for NaN, -inf and what is not kept."""
    bits = tl.where(x == 0.0, 0, x.to(tl.int32, bitcast=True))
    key = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    return tl.where(keep & (x > -float("inf")), key, 0)  # a comparison with NaN is false


@triton.jit
def _keys(row, column, mask):
    x = tl.load(row + column, mask=mask, other=-float("inf"))
    return _order(x.to(tl.float32), mask)


@triton.jit
def _score(key):
    """The score of a key, as `_order` maps it."""
    bits = key.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ -2147483648, ~bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _search(keys, need, most, BITS: tl.constexpr):
    """A bound that `need` to `most` of the keys reach, or the need-th largest key.

    Each step counts the keys between what the bound can be, in 2^BITS bins, and goes on with one
    of these.  -> (bound, how many keys reach it, how many of the keys equal to it are among the
    `need` largest)
    """
    d = tl.arange(0, 1 << BITS)
    reached = tl.sum((keys > 0).to(tl.int32), 0)
    above = reached * 0  # keys that reach `high`
    high = tl.max(keys, 0) + 1
    bound = tl.min(tl.where(keys > 0, keys, 0xFFFFFFFF), 0)
    while (reached > most) & (high > bound + 1):
        # Bits of the widest difference, or one more: the exponent of it as a float.
        width = ((high - 1 - bound).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
        shift = tl.maximum(width - BITS, 0).to(tl.uint32)
        inside = (keys >= bound) & (keys < high)
        counts = tl.histogram(((keys - bound) >> shift).to(tl.int32), 1 << BITS, mask=inside)
        reach = reached - tl.cumsum(counts, 0) + counts  # keys that reach a bin's lowest
        bin = tl.sum((reach >= need).to(tl.int32), 0) - 1
        both = tl.sum(tl.where(d == bin, (reach << 16) | (reach - counts), 0), 0)
        reached = both >> 16
        above = both & 0xFFFF
        high = tl.minimum(high, bound + ((bin + 1).to(tl.uint32) << shift))
        bound += bin.to(tl.uint32) << shift
    return bound, reached, tl.where(reached > need, need - above, need)


@triton.jit
def _guess(row, visible, topk, SAMPLE: tl.constexpr, BITS: tl.constexpr):
    """A bound that topk scores or a few more very likely reach, from SAMPLE of them.

    A topk-th part of what is wanted falls into the sample by chance: five standard deviations more
    are asked for.
    """
    i = tl.arange(0, SAMPLE)
    # As many columns lie between runs, or almost; each starts where memory is read from.
    column = ((i // RUN) * (visible // (SAMPLE // RUN)) & -RUN) | (i % RUN)
    share = topk * (SAMPLE / visible.to(tl.float32))
    rank = (share + 5.0 * tl.sqrt(share) + 8.0).to(tl.int32)
    keys = _keys(row, column, column < visible)
    bound, reached, _ = _search(keys, rank, rank + rank // 8, BITS)
    return tl.where(reached >= rank, tl.maximum(bound, LEAST), LEAST)


@triton.jit
def _mark_block(row, at, x, least, mark_ptr):
    """Bit c of word r: whether x[r, c] is at least `least`."""
    bits = tl.where(x.to(tl.float32) >= least, 1 << tl.arange(0, WORD)[None, :], 0)
    r = tl.arange(0, x.shape[0])
    tl.store(mark_ptr + at // WORD + r, tl.xor_sum(bits, 1))


@triton.jit
def _mark(row, first, last, bound, mark_ptr, BLOCK: tl.constexpr):
    """Marks, in whole blocks, which of columns first..last-1 reach the bound."""
    least = _score(bound)
    i = tl.arange(0, BLOCK // WORD)[:, None] * WORD + tl.arange(0, WORD)[None, :]
    left = (last - first) // BLOCK * BLOCK  # bounds divisible by a block leave the loads wide
    ahead = tl.load(row + first + i, mask=i < left, other=0.0)
    whole = first + left
    for at in range(first, whole, BLOCK):
        x = ahead
        left -= BLOCK
        ahead = tl.load(row + at + BLOCK + i, mask=i < left, other=0.0)
        _mark_block(row, at, x, least, mark_ptr)
    if whole < last:
        x = tl.load(row + whole + i, mask=whole + i < last, other=-float("inf"))
        _mark_block(row, whole, x, least, mark_ptr)


@triton.jit
def _ones(word):
    """How many bits of a uint32 are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _marked(mark_ptr, words, index_ptr, KEEP: tl.constexpr, WORDS: tl.constexpr):
    """Lists the marked columns, ascending, if they are at most KEEP; returns how many."""
    count = words * 0
    for first in range(0, words, WORDS):
        w = first + tl.arange(0, WORDS)
        word = tl.load(mark_ptr + w, mask=w < words, other=0).to(tl.uint32, bitcast=True)
        number = _ones(word)
        place = count + tl.cumsum(number, 0) - number
        count += tl.sum(number, 0)
        most = tl.where(count <= KEEP, tl.max(number, 0), 0)
        for _ in range(most):
            lowest = word & (~word + 1)
            # The exponent of a power of two is its bit.
            bit = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            tl.store(index_ptr + place, w * WORD + bit, mask=word != 0)
            word = word ^ lowest
            place += 1
    return count


@triton.jit
def _count_digits(row, visible, prefix, shift, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many kept scores, whose bits above the digit are `prefix`, have each digit."""
    counts = tl.zeros((1 << BITS,), tl.int32)
    for first in range(0, visible, BLOCK):
        column = first + tl.arange(0, BLOCK)
        key = _keys(row, column, column < visible)
        digit = ((key >> shift) & ((1 << BITS) - 1)).to(tl.int32)
        mine = (key > 0) & ((key >> shift) >> BITS == prefix)
        counts += tl.histogram(digit, 1 << BITS, mask=mine)
    return counts


@triton.jit
def _whole_row(row, visible, topk, guess, marked, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """The topk-th largest key, and how many of the keys equal to it are among the topk."""
    zero = visible * 0
    bound = guess
    ties = topk
    if marked > KEEP:  # of those that reach the guess, most may be equal to it
        for first in range(0, visible, BLOCK):
            column = first + tl.arange(0, BLOCK)
            ties -= tl.sum((_keys(row, column, column < visible) > guess).to(tl.int32), 0)
    if (marked <= KEEP) | (ties <= 0):
        bound = zero.to(tl.uint32)
        ties = zero + topk
        for done in range(11, 44, 11):
            shift = (zero + 33 - done).to(tl.uint32)
            counts = _count_digits(row, visible, bound, shift, 11, BLOCK)
            ties = tl.minimum(ties, tl.sum(counts, 0))
            d = tl.arange(0, 2048)
            above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
            here = (above < ties) & (ties <= above + counts)
            bound = (bound << 11) | tl.sum(tl.where(here, d, 0), 0).to(tl.uint32)
            ties -= tl.sum(tl.where(here, above, 0), 0)
    return bound, ties


@triton.jit
def _columns(index, i, listed):
    """Entry i of a list of columns; column i where none are listed."""
    return tl.where(listed > 0, tl.load(index + i, mask=i < listed, other=0), i)


@triton.jit
def _write(out, row, index, listed, count, topk, bound, ties, BLOCK: tl.constexpr):
    """Columns above the bound and the first `ties` equal to it; returns how many."""
    written = count * 0
    first = written
    while (first < count) & (written < topk):
        i = first + tl.arange(0, BLOCK)
        column = _columns(index, i, listed)
        key = _keys(row, column, i < count)
        tie = (key == bound) & (key > 0)
        both = (key > bound).to(tl.int32) + (tie.to(tl.int32) << 16)
        upto = tl.cumsum(both, 0)
        place = written + (upto & 0xFFFF) + tl.minimum(upto >> 16, ties) - 1
        tl.store(out + place, column, mask=(key > bound) | (tie & (upto >> 16 <= ties)))
        both = tl.sum(both, 0)
        written += (both & 0xFFFF) + tl.minimum(both >> 16, ties)
        ties -= tl.minimum(both >> 16, ties)
        first += BLOCK
    return written


@triton.jit
def _seen(visible_ptr, t, columns):
    visible = tl.minimum(tl.load(visible_ptr + t).to(tl.int32), columns)
    return tl.maximum(visible, 0)


@triton.jit
def mark_kernel(
    mark_ptr, score_ptr, visible_ptr, columns, topk, stride_score, stride_mark, splits,
    KEEP_ALL: tl.constexpr, SAMPLE: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Marks one of `splits` parts of a row; each part makes the same guess for itself."""
    t = tl.program_id(0).to(tl.int64)
    visible = _seen(visible_ptr, t, columns)
    if (visible > KEEP) & ((not KEEP_ALL) | (visible > topk)):
        row = score_ptr + t * stride_score
        guess = _guess(row, visible, topk, SAMPLE, 10)
        share = tl.cdiv(tl.cdiv(visible, splits), BLOCK) * BLOCK
        first = tl.program_id(1) * share
        last = tl.minimum(first + share, visible)
        mark = mark_ptr + t * stride_mark
        _mark(row, first, last, guess, mark, BLOCK)
        tl.store(mark + stride_mark - 1, guess.to(tl.int32, bitcast=True))


@triton.jit
def topk_kernel(
    out_ptr, index_ptr, mark_ptr, score_ptr, visible_ptr, columns, topk, stride_score, stride_mark,
    stride_index, KEEP_ALL: tl.constexpr, SAMPLE: tl.constexpr, KEEP: tl.constexpr,
    BLOCK: tl.constexpr, WORDS: tl.constexpr, FITS: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """FITS: no row sees more than KEEP.  MARKED: by mark_kernel; else this block marks its row."""
    t = tl.program_id(0).to(tl.int64)
    visible = _seen(visible_ptr, t, columns)
    row = score_ptr + t * stride_score
    out = out_ptr + t * topk
    written = visible
    if KEEP_ALL and visible <= topk:
        for first in range(0, visible, BLOCK):
            column = first + tl.arange(0, BLOCK)
            tl.store(out + column, column, mask=column < visible)
    else:
        index = index_ptr + t * stride_index
        count = visible
        listed, marked = 0, 0
        guess = tl.full((), LEAST, tl.uint32)
        if not FITS and visible > KEEP:
            mark = mark_ptr + t * stride_mark
            if MARKED:
                guess = tl.load(mark + stride_mark - 1).to(tl.uint32, bitcast=True)
            else:
                guess = _guess(row, visible, topk, SAMPLE, 10)
                _mark(row, visible * 0, visible, guess, mark, BLOCK)
                tl.debug_barrier()  # other threads of the block read what was written
            marked += _marked(mark, tl.cdiv(visible, WORD), index, KEEP, WORDS)
            tl.debug_barrier()
            # Too many are marked, or by a poor guess too few, unless there are no more.
            if (marked <= KEEP) & ((marked >= topk) | (guess == LEAST)):
                listed += marked
                count = marked
        if count <= KEEP:
            i = tl.arange(0, KEEP)
            keys = _keys(row, _columns(index, i, listed), i < count)
            bound, _, ties = _search(keys, topk, topk, 10)
        else:
            bound, ties = _whole_row(row, visible, topk, guess, marked, KEEP, 2 * WORDS)
        written = _write(out, row, index, listed, count, topk, bound, ties, WORDS)
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
