"""Pairs of a token and an expert, sorted by expert, and the tiles that a grouped product takes.

position(p) = |{q: expert(q) < expert(p)}| + |{q < p: expert(q) = expert(p)}|      a counting sort

Deterministic: within an expert in the order of the list.  A pair whose id names no expert of the
range gets no position.  A tile is up to BLOCK_M neighbours of one expert: (expert, first position,
rows); tiles stand in the order of the experts, and those not needed have expert -1.
"""

import triton
import triton.language as tl

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
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """pair_at[position] = pair, and this chunk's share of the tiles.  ONE: a single chunk."""
    chunk = tl.program_id(0)
    place = tl.arange(0, CHUNK)
    expert = _local(id_ptr, pairs, first_expert, num_experts, chunk * CHUNK + place)
    names = tl.arange(0, BLOCK_E)

    before = tl.zeros((BLOCK_E,), tl.int32)  # pairs of an expert in earlier chunks
    if ONE:
        total = tl.histogram(expert, BLOCK_E)
    else:
        total = tl.zeros((BLOCK_E,), tl.int32)
        for first in range(0, chunks, BLOCK_C):
            other = (first + tl.arange(0, BLOCK_C))[:, None]
            counts = tl.load(
                count_ptr + other * BLOCK_E + names[None, :], mask=other < chunks, other=0
            )
            total += tl.sum(counts, 0)
            before += tl.sum(tl.where(other < chunk, counts, 0), 0)
    start = tl.cumsum(total, 0) - total

    # Both sides of the comparison are loaded: a row of it and a column of it.
    again = _local(id_ptr, pairs, first_expert, num_experts, chunk * CHUNK + place)
    same = (expert[:, None] == again[None, :]) & (place[None, :] < place[:, None])
    position = tl.gather(start + before, expert, 0) + tl.sum(same.to(tl.int32), 1)
    tl.store(pair_ptr + position, chunk * CHUNK + place, mask=expert < num_experts)

    count = (total + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(count, 0)
    for base in range(chunk * BLOCK_T, tiles, chunks * BLOCK_T):
        tile = base + tl.arange(0, BLOCK_T)
        owner = tl.sum((last[None, :] <= tile[:, None]).to(tl.int32), 1)
        mine = names[None, :] == owner[:, None]
        row = (tile - tl.sum(tl.where(mine, last - count, 0), 1)) * BLOCK_M
        rows = tl.minimum(tl.sum(tl.where(mine, total, 0), 1) - row, BLOCK_M)
        row += tl.sum(tl.where(mine, start, 0), 1)
        used = owner < num_experts
        tl.store(tile_ptr + tile, tl.where(used, owner, -1), mask=tile < tiles)
        tl.store(tile_ptr + tiles + tile, tl.where(used, row, 0), mask=tile < tiles)
        tl.store(tile_ptr + 2 * tiles + tile, tl.where(used, rows, 0), mask=tile < tiles)
