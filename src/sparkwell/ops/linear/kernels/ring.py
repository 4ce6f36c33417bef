"""NVFP4 by a few rows of x on Hopper where warps have roles: some copy, the others multiply.

y[m, n] = factor[n] sum_k w[n, k] x[m, k] + bias[n]

Blocks stay, and share the steps of all tiles evenly: one may end a tile and begin another, and a
tile that several make is added by `join_kernel`, always in the same order.  Weights run through a
ring of stages, ahead into the next tile; the first of them are asked for before the kernels in
front of this one have ended, x and all else only then.  So a weight must not be what an
operation shortly before writes.

What copies x puts its columns in the order in which threads hold codes.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.kernels.nvfp4_stream import LEFT, STEP, stream_sums
from sparkwell.ops.launch import interpreting, launch

COPYING: gl.constexpr = gl.constexpr(64)  # registers of a thread that copies


@gluon.constexpr_function
def _held(words, warps, tile):
    """Layout of tiles of [tile, 4 words]: a thread has `words` neighbours of a row."""
    own = [[0, 1 << i] for i in range(words.bit_length() - 1)] + [[8, 0]]
    own += [[16 * warps << i, 0] for i in range((tile // (16 * warps)).bit_length() - 1)]
    lanes = [[0, words], [0, 2 * words], [1, 0], [2, 0], [4, 0]]
    by_warp = [[16 << i, 0] for i in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(own, lanes, by_warp, [], [tile, 4 * words])


@gluon.jit
def _share(total):
    """The steps of this block, of `total`."""
    block, blocks = gl.program_id(0), gl.num_programs(0)
    return block * total // blocks, (block + 1) * total // blocks


@triton.jit
def _owner(step, blocks, total):
    """The block that has this step."""
    return ((step + 1) * blocks - 1) // total


@gluon.jit
def _copy_weight(
    w_tiles, s_tiles, ws, ss, ready, free, total, steps, TILE: gl.constexpr, STAGES: gl.constexpr
):
    """Codes and scales to a ring of STAGES."""
    low, high = _share(total)
    for at in range(high - low):
        tile, step = (low + at) // steps, (low + at) % steps
        stage, turn = at % STAGES, (at // STAGES) & 1
        full = ready.index(stage)
        mbarrier.wait(free.index(stage), turn ^ 1)
        mbarrier.expect(full, TILE * (STEP // 2 + STEP // 16))
        tma.async_load(w_tiles, [tile * TILE, step * (STEP // 8)], full, ws.index(stage))
        tma.async_load(s_tiles, [tile * TILE, step * (STEP // 64)], full, ss.index(stage))


@gluon.jit
def _copy_rows(
    x_ptr, xs, ready, free, total, steps, m, stride_x, ROWS: gl.constexpr, STAGES: gl.constexpr
):
    """Rows of x to the same ring, columns as `nvfp4_stream` has them, zeros beyond the last."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = gl.arange(0, STEP, gl.SliceLayout(0, layout))
    offsets = (row * stride_x)[:, None] + column[None, :]
    low, high = _share(total)
    gdc_wait()
    for at in range(high - low):
        stage, turn = at % STAGES, (at // STAGES) & 1
        first = (low + at) % steps * STEP
        x = gl.load(x_ptr + first + offsets, mask=(row < m)[:, None], other=0.0)
        x = x.reshape([ROWS, 4, 4, 2, 2, 2, 2]).permute([0, 2, 3, 5, 6, 1, 4])
        mbarrier.wait(free.index(stage), turn ^ 1)
        xs.index(stage).store(x.reshape([ROWS, STEP]))
        gl.barrier()
        mbarrier.arrive(ready.index(stage))


@gluon.jit
def _multiply(
    y_ptr, part_ptr, factor_ptr, bias_ptr, ws, ss, xs, ready, free, m, n, total, steps,
    TILE: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1], [16, 8])
    of_words: gl.constexpr = _held(8, WARPS, TILE)
    of_scales: gl.constexpr = _held(1, WARPS, TILE)
    low, high = _share(total)
    row = gl.arange(0, ROWS, gl.SliceLayout(0, layout))
    for tile in range(low // steps, (high + steps - 1) // steps):
        begin, end = gl.maximum(low, tile * steps), gl.minimum(high, (tile + 1) * steps)
        col = tile * TILE + gl.arange(0, TILE, gl.SliceLayout(1, layout))
        y = LEFT * stream_sums(
            ws, ss, xs, ready, free, begin - low, end - begin, of_words, of_scales, TILE, ROWS,
            STAGES, TYPE, True, layout,
        )  # fmt: skip
        at = row.to(gl.int64)[None, :] * n + col[:, None]
        mine = (col < n)[:, None] & (row < m)[None, :]
        if end - begin < steps:
            part = gl.program_id(0) - _owner(tile * steps, gl.num_programs(0), total)
            gl.store(part_ptr + part.to(gl.int64) * m * n + at, y, mask=mine)
        else:
            y = y * gl.load(factor_ptr + col, mask=col < n, other=0.0)[:, None]
            if bias_ptr is not None:
                y = y + gl.load(bias_ptr + col, mask=col < n, other=0.0).to(gl.float32)[:, None]
            gl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mine)


@gluon.jit(do_not_specialize=["m", "total", "steps"])
def ring_kernel(
    y_ptr, part_ptr, w_tiles, s_tiles, x_ptr, factor_ptr, bias_ptr, m, n, total, steps, stride_x,
    TILE: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """total: steps of all tiles.  steps: of one."""
    ws = gl.allocate_shared_memory(gl.int32, [STAGES, TILE, STEP // 8], w_tiles.layout)
    ss = gl.allocate_shared_memory(gl.int32, [STAGES, TILE, STEP // 64], s_tiles.layout)
    of_x: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, STEP], TYPE)
    xs = gl.allocate_shared_memory(TYPE, [STAGES, ROWS, STEP], of_x)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=2)
        mbarrier.init(free.index(stage), count=gl.num_warps())
    fence_async_shared()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (_multiply, (
                y_ptr, part_ptr, factor_ptr, bias_ptr, ws, ss, xs, ready, free, m, n, total, steps,
                TILE, ROWS, STAGES, TYPE,
            )),
            (_copy_weight, (w_tiles, s_tiles, ws, ss, ready, free, total, steps, TILE, STAGES)),
            (_copy_rows, (x_ptr, xs, ready, free, total, steps, m, stride_x, ROWS, STAGES)),
        ],
        [1, 2],
        [COPYING, COPYING],
    )  # fmt: skip


@triton.jit(do_not_specialize=["m", "total", "steps", "blocks"])
def join_kernel(
    y_ptr, part_ptr, factor_ptr, bias_ptr, m, n, total, steps, blocks, TILE: tl.constexpr,
    ROWS: tl.constexpr, AT_ONCE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a tile that several of `blocks` made: its parts, AT_ONCE at a time."""
    if EARLY:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    owner = _owner(tile * steps, blocks, total)
    parts = _owner((tile + 1) * steps - 1, blocks, total) - owner + 1
    col = tile * TILE + tl.arange(0, TILE)
    factor = tl.load(factor_ptr + col, mask=col < n, other=0.0)
    if EARLY:
        gdc_wait()
    if parts > 1:
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (col < n)[None, :]
        at = row.to(tl.int64)[:, None] * n + col[None, :]
        y = tl.zeros((ROWS, TILE), tl.float32)
        for first in range(0, parts, AT_ONCE):
            part = first + tl.arange(0, AT_ONCE)[:, None, None]
            ptrs = part_ptr + part.to(tl.int64) * m * n + at[None, :, :]
            y += tl.sum(tl.load(ptrs, mask=mask[None, :, :] & (part < parts), other=0.0), 0)
        y *= factor[None, :]
        if bias_ptr is not None:
            y += tl.load(bias_ptr + col, mask=col < n, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launch


def ring(y, x, weight, bias, choice, reduced, sms):
    """y [m, n] = x W^T + bias of an NVFP4 operand.  reduced: the row for what adds parts."""
    s, (m, k), n = choice.schedule, x.shape, y.shape[1]
    tiles, steps = triton.cdiv(n, s.block_n), k // STEP.value
    total = tiles * steps
    blocks = min(total, s.blocks * sms)
    whole = total % blocks == 0 and total // blocks % steps == 0
    most = 1 if whole else triton.cdiv(steps * blocks, total) + 1
    parts = y if whole else torch.empty(most, m, n, dtype=torch.float32, device=x.device)
    threads = 32 * (s.num_warps + 4)  # warps are taken by four
    launch(
        ring_kernel, (blocks,), y, parts, _boxes(weight.codes, STEP.value // 8, s.block_n),
        _boxes(weight.scales, STEP.value // 64, s.block_n), x, weight.factor, bias, m, n, total,
        steps, x.stride(0), choice=choice, early=True, TILE=s.block_n, ROWS=s.block_m,
        STAGES=s.num_stages, TYPE=getattr(gl, str(x.dtype).removeprefix("torch.")),
        maxnreg=choice.target.registers_per_sm // (s.blocks * threads) // 8 * 8,
    )  # fmt: skip
    if whole:
        return
    at_once = min(reduced.schedule.at_once, triton.next_power_of_2(most))
    rows = min(reduced.schedule.at_once // at_once, triton.next_power_of_2(m))
    early = not interpreting()
    launch(
        join_kernel, (tiles, triton.cdiv(m, rows)), y, parts, weight.factor, bias, m, n, total,
        steps, blocks, choice=reduced, early=early, TILE=s.block_n, ROWS=rows, AT_ONCE=at_once,
        EARLY=early,
    )  # fmt: skip


def _boxes(matrix, width, rows):
    """What the copy engine reads of bytes, `width` words of `rows` at a time."""
    words = matrix.view(torch.int32)
    layout = gl.NVMMASharedLayout(128 if width == 32 else 0, 32, rank=2)
    return TensorDescriptor(words, list(words.shape), [words.stride(0), 1], [rows, width], layout)
