"""Which rows a block multiplies, and by whose weight: most layouts of a grouped product.

sorted   a table of tiles: (expert, first position, rows)
single   a tile is one pair; its id names the expert
rows     every row names its group, -1: none; of ALIGN rows that begin together one group
           has the first, and none the rest
ends     group g has the rows up to ends[g], from the last end on, rounded up to ALIGN
counted  each group has `height` rows, the first counts[g] of which hold something
whole    one group has all `height` rows
"""

import triton
import triton.language as tl


@triton.jit
def _of_ends(id_ptr, groups, begin, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """The group that owns the row `begin`, and the end of its rows; past the last one: -1."""
    group = 0
    for base in range(0, groups, BLOCK):
        at = base + tl.arange(0, BLOCK)
        end = tl.load(id_ptr + at, mask=at < groups, other=2147483520)
        group += tl.sum(((end + ALIGN - 1) // ALIGN * ALIGN <= begin).to(tl.int32), 0)
    found = group < groups
    end = tl.load(id_ptr + tl.where(found, group, 0))
    return tl.where(found, group, -1), end


@triton.jit
def tile_rows(
    tile, tile_ptr, id_ptr, tiles, first_expert, num_experts, height,
    LAYOUT: tl.constexpr, ALIGN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The tile's expert, -1: none; its first place, int64; how many hold something."""
    if LAYOUT == "sorted":
        expert = tl.load(tile_ptr + tile).to(tl.int64)
        first = tl.load(tile_ptr + tiles + tile)
        count = tl.load(tile_ptr + 2 * tiles + tile)
    elif LAYOUT == "single":
        expert = tl.load(id_ptr + tile).to(tl.int64) - first_expert
        expert = tl.where((expert >= 0) & (expert < num_experts), expert, -1)
        first = tile
        count = 1
    else:
        first = tile * BLOCK_M
        count = tl.minimum(height - first, BLOCK_M)
        if LAYOUT == "rows":
            row = tl.arange(0, BLOCK_M)
            expert = tl.load(id_ptr + first).to(tl.int64)
            expert = tl.where((expert >= 0) & (expert < num_experts), expert, -1)
            named = tl.load(id_ptr + first + row, mask=row < count, other=-1)
            count = tl.max(tl.where(named == expert, row + 1, 0), 0)
        elif LAYOUT == "ends":
            group, end = _of_ends(id_ptr, num_experts, first, ALIGN, 64)
            expert = group.to(tl.int64)
            count = tl.minimum(count, end - first)
        else:
            expert = (tile * 0).to(tl.int64)
    return expert, first.to(tl.int64), count
