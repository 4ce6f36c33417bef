"""Pairs of a token and an expert, sorted by expert, and the tiles that a grouped product takes.

position(p) = |{q: expert(q) < expert(p)}| + |{q < p: expert(q) = expert(p)}|      a counting sort

Deterministic: within an expert in the order of the list.  A pair whose id names no expert of the
range gets no position.  A tile is up to BLOCK_M neighbours of one expert: (expert, first position,
rows); tiles stand in the order of the experts, and those not needed have expert -1.  The pair that
a tile begins with writes it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

# ---------------------------------------------------------------- kernels


@triton.jit
def _local(id_ptr, pairs, first_expert, num_experts, pair):
    """Expert of each pair, counted from the range's first; num_experts where it is outside."""
    expert = tl.load(id_ptr + pair, mask=pair < pairs, other=-1).to(tl.int64) - first_expert
    inside = (expert >= 0) & (expert < num_experts) & (pair < pairs)
    return tl.where(inside, expert, num_experts).to(tl.int32)


@triton.jit
def count_kernel(
    count_ptr, id_ptr, pairs, first_expert, num_experts,
    CHUNK: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """counts[c, e] = pairs of expert e in chunk c."""
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = _local(id_ptr, pairs, first_expert, num_experts, pair)
    counts = tl.histogram(expert, BLOCK_E)
    tl.store(count_ptr + chunk * BLOCK_E + tl.arange(0, BLOCK_E), counts)


@triton.jit
def place_kernel(
    pair_ptr, tile_ptr, id_ptr, count_ptr, pairs, first_expert, num_experts, chunks, tiles,
    ONE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """pair_at[position] = pair, and the tiles that its pairs open.  ONE: a single chunk.

    EARLY: the next kernel may start now.
    """
    if EARLY:
        gdc_launch_dependents()
    chunk = tl.program_id(0)
    place = tl.arange(0, CHUNK)
    expert = _local(id_ptr, pairs, first_expert, num_experts, chunk * CHUNK + place)
    # Both sides of comparisons are loaded: rows of them and columns of them.
    again = _local(id_ptr, pairs, first_expert, num_experts, chunk * CHUNK + place)
    same = expert[:, None] == again[None, :]
    rank = tl.sum((same & (place[None, :] < place[:, None])).to(tl.int32), 1)
    if ONE:
        total = tl.sum(same.to(tl.int32), 1)
        less = again[None, :] < expert[:, None]
        start = tl.sum(less.to(tl.int32), 1)
        along = tl.sum((same & (place[:, None] < place[None, :])).to(tl.int32), 0)  # rank, as a row
        opening = (along % BLOCK_M == 0) & (again < num_experts)
        tile = tl.sum((less & opening[None, :]).to(tl.int32), 1)
        used = tl.sum(opening.to(tl.int32), 0)
    else:
        names = tl.arange(0, BLOCK_E)
        before = tl.zeros((BLOCK_E,), tl.int32)  # pairs of an expert in earlier chunks
        totals = tl.zeros((BLOCK_E,), tl.int32)
        for first in range(0, chunks, BLOCK_C):
            other = (first + tl.arange(0, BLOCK_C))[:, None]
            counts = tl.load(
                count_ptr + other * BLOCK_E + names[None, :], mask=other < chunks, other=0
            )
            totals += tl.sum(counts, 0)
            before += tl.sum(tl.where(other < chunk, counts, 0), 0)
        count = tl.where(names < num_experts, (totals + BLOCK_M - 1) // BLOCK_M, 0)
        rank += tl.gather(before, expert, 0)
        total = tl.gather(totals, expert, 0)
        start = tl.gather(tl.cumsum(totals, 0) - totals, expert, 0)
        tile = tl.gather(tl.cumsum(count, 0) - count, expert, 0)
        used = tl.sum(count, 0)
    known = expert < num_experts
    tl.store(pair_ptr + start + rank, chunk * CHUNK + place, mask=known)

    opens = known & (rank % BLOCK_M == 0)
    at = tile_ptr + tile + rank // BLOCK_M
    tl.store(at, expert, mask=opens)
    tl.store(at + tiles, start + rank, mask=opens)
    tl.store(at + 2 * tiles, tl.minimum(total - rank, BLOCK_M), mask=opens)
    for base in range(chunk * BLOCK_T, tiles, chunks * BLOCK_T):
        spare = base + tl.arange(0, BLOCK_T)
        tl.store(tile_ptr + spare, -1, mask=(spare >= used) & (spare < tiles))
