"""Whole contexts of dense MLA on their way to shared memory, for kernels whose warps have roles.

A block takes some pairs (row, head) of one request and a share of the keys they see.  One warp has
tiles of keys copied; a page is a whole number of tiles.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sparkwell.ops.launch import launch
from sparkwell.ops.mla.kernels.dense import find_tile

KEYS: gl.constexpr = gl.constexpr(64)  # of a tile
RANK: gl.constexpr = gl.constexpr(512)
ROPE: gl.constexpr = gl.constexpr(64)


@gluon.jit
def pairs(tile, heads, PAIRS: gl.constexpr, layout: gl.constexpr):
    """(row in the request, head) of each pair of a tile."""
    pair = tile * PAIRS + gl.arange(0, PAIRS, layout)
    return pair // heads, pair % heads


@gluon.jit
def find_work(
    length_ptr, start_ptr, heads, width, num_rows, num_requests, EACH: gl.constexpr,
    STEPS: gl.constexpr, PAIRS: gl.constexpr, SPLITS: gl.constexpr,
):  # fmt: skip
    """What this block does: (request, tile of it, its first row, its rows, keys older than the
    first row, first key, key behind the last, split)."""
    tile = gl.program_id(0)
    split = gl.program_id(1)
    if EACH > 0:
        request, tile = tile // EACH, tile % EACH
    else:
        request, tile = find_tile(start_ptr, num_requests, heads, tile, STEPS, PAIRS)
    t0 = gl.minimum(gl.maximum(gl.load(start_ptr + request).to(gl.int32), 0), num_rows)
    rows = gl.minimum(gl.load(start_ptr + request + 1).to(gl.int32), num_rows) - t0
    before = gl.load(length_ptr + request).to(gl.int32) - rows
    last_row = gl.minimum((tile * PAIRS + PAIRS - 1) // heads, rows - 1)
    keys = gl.maximum(gl.minimum(before + last_row + 1, width), 0)
    keys = gl.where(tile * PAIRS < rows * heads, keys, 0)  # nothing to do: no key
    share = (((keys + KEYS - 1) // KEYS + SPLITS - 1) // SPLITS) * KEYS
    first = gl.minimum(split * share, keys)
    return request, tile, t0, rows, before, first, gl.minimum(first + share, keys), split


@gluon.jit
def page_of(names, key, last, limit, PAGE: gl.constexpr):
    """(page of a tile of keys, whether the cache has it and a key lies there)."""
    page = gl.load(names + gl.minimum(key, last - 1) // PAGE)
    return page, (page >= 0) & (page < limit) & (key < last)


@gluon.jit
def first_row_of(page, known, key, page_rows, PAGE: gl.constexpr):
    """Row of the cache at which a tile starts; behind its end, where zeros are copied, for none."""
    return gl.where(known, page * page_rows + key % PAGE, 2147483647 - KEYS)


# ---------------------------------------------------------------- launch


def launch_over_contexts(
    kernel, first, q, cache, lists, stride_lists, scale, *, plan, columns, **constants
):
    """A kernel that has keys copied, on as many blocks as there are tiles of pairs and splits.

    columns: of the latents that one copy takes.
    """
    p, names, lengths, starts, requests = plan.problem, lists[0], lists[1], lists[2], lists[4]
    width = p.rank + p.rope
    pages = cache.pages.view(torch.bfloat16)
    page_rows = pages.stride(0) // width
    rows = max(0, cache.num_pages - 1) * page_rows + cache.page_size
    flat = pages.as_strided((rows, width), (width, 1))
    latents, ropes = (
        TensorDescriptor(
            flat, [rows, width], [width, 1], [KEYS.value, n],
            gl.NVMMASharedLayout.get_default_for([KEYS.value, n], gl.bfloat16),
        )
        for n in (columns, p.rope)
    )  # fmt: skip
    tiles = requests * plan.each or p.rows * p.heads // plan.choice.schedule.block_h + requests
    launch(
        kernel, (tiles, plan.splits), *first, q, latents, ropes, names, lengths, starts, p.heads,
        p.keys, p.rows, requests, cache.num_pages, page_rows, q.stride(0), q.stride(1),
        stride_lists, scale, choice=plan.choice, EACH=plan.each,
        STEPS=0 if plan.each else requests.bit_length(), PAGE=cache.page_size, SPLITS=plan.splits,
        **constants,
    )  # fmt: skip
