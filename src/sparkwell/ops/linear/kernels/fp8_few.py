"""Few rows of FP8 times FP8 on Hopper where warps have roles: one copies, two groups multiply.

    y[r, n] = sum over g of s_x[r, g] s_w[n / group_n, g] (x[r, g] . w[n, g])      g: 128 columns

A block has COLS outputs of all rows, so that nothing is added up behind it; many small tiles of the
weight are on their way at a time.  The groups of four warps take every other step of 128 columns,
whose products start from zero and are added in fp32; the second group's sums go to the first.
The number of stages is even, so that a stage is always read by the same group: a barrier's parity
tells a group its next turn from its last one, but not from one that the other group waits for.
Rows that are not there are never copied: what a matrix instruction reads for them, it writes to
sums that nothing reads.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparkwell.ops.kernels.fp8_products import STEP, boxes, next_stage
from sparkwell.ops.launch import launch

TALL: gl.constexpr = gl.constexpr(64)  # rows of a matrix instruction


@gluon.jit
def _copy(
    x_tiles, w_tiles, xs, ws, ready, free, k, tiles,
    COLS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    stage = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        for step in range((k + STEP - 1) // STEP):
            done = ready.index(stage)
            mbarrier.wait(free.index(stage), turn ^ 1)
            mbarrier.expect(done, (ROWS + COLS) * STEP)
            tma.async_load(w_tiles, [tile * COLS, step * STEP], done, ws.index(stage))
            there = xs.index(stage).slice(0, ROWS, 0)
            tma.async_load(x_tiles, [0, step * STEP], done, there)
            stage, turn = next_stage(stage, turn, STAGES)


@gluon.jit
def _scale_table(
    table, x_scale_ptr, w_scale_ptr, column, m, n, k, group_n, stride_xs, stride_xk, stride_ws,
    GROUP: gl.constexpr, ROWS: gl.constexpr, STEPS: gl.constexpr,
):  # fmt: skip
    """Products of both operands' scales, for every step and row."""
    SIZE: gl.constexpr = min(STEPS * ROWS, 512)
    for first in gl.static_range(0, STEPS * ROWS, SIZE):  # as many as registers hold
        i = first + gl.arange(0, SIZE, gl.BlockedLayout([1], [32], [4], [0]))
        row = gl.minimum(i % ROWS, m - 1)
        group = i // ROWS * STEP // GROUP
        there = i // ROWS * STEP < k
        at = row.to(gl.int64) * stride_xs + group * stride_xk
        of_x = gl.load(x_scale_ptr + at, mask=there, other=0.0)
        of_w = gl.load(w_scale_ptr + column // group_n * stride_ws + group, mask=there, other=0.0)
        table.slice(first, SIZE).store(of_x * of_w)


@gluon.jit
def _multiply(
    out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, xs, ws, table, shelf, ready, free, told, read,
    m, n, k, tiles, group_n, stride_y, stride_xs, stride_xk, stride_ws,
    BY_ROW: gl.constexpr, GROUP: gl.constexpr, COLS: gl.constexpr, ROWS: gl.constexpr,
    STEPS: gl.constexpr, STAGES: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    matrix: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 32])
    of_row: gl.constexpr = gl.SliceLayout(1, matrix)
    zeros = gl.zeros([TALL, COLS], gl.float32, matrix)
    steps = (k + STEP - 1) // STEP
    row = gl.arange(0, TALL, of_row)
    i = 0
    odd = 0  # whether this tile is
    gl.static_assert(STAGES % 2 == 0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        column = tile * COLS
        if not BY_ROW:
            gl.barrier()  # all have read the last tile's
            _scale_table(
                table, x_scale_ptr, w_scale_ptr, column, m, n, k, group_n, stride_xs, stride_xk,
                stride_ws, GROUP, ROWS, STEPS,
            )  # fmt: skip
            gl.barrier()
        sums = zeros
        for step in range(G ^ (i & 1), steps, 2):
            place = i + step
            stage, turn = place % STAGES, (place // STAGES) & 1
            mbarrier.wait(ready.index(stage), turn)
            w = ws.index(stage).permute([1, 0])
            part = warpgroup_mma(xs.index(stage), w, zeros, use_acc=False, is_async=True)
            if not BY_ROW:
                scale = table.gather(step * ROWS + gl.minimum(row, ROWS - 1), 0)
            part = warpgroup_mma_wait(0, deps=[part])
            mbarrier.arrive(free.index(stage), count=1)
            if not BY_ROW:
                part = part * scale[:, None]
            sums += part
        i += steps
        if G == 1:
            mbarrier.wait(read, odd ^ 1)
            shelf.store(sums)
            mbarrier.arrive(told, count=1)
        else:
            mbarrier.wait(told, odd)
            sums += shelf.load(matrix)
            mbarrier.arrive(read, count=1)
            col = column + gl.arange(0, COLS, gl.SliceLayout(0, matrix))
            mine = gl.minimum(col, n - 1)
            if BY_ROW:
                of_x = gl.load(x_scale_ptr + gl.minimum(row, m - 1).to(gl.int64) * stride_xs)
                sums = sums * of_x[:, None] * gl.load(w_scale_ptr + mine)[None, :]
            if bias_ptr is not None:
                sums += gl.load(bias_ptr + mine).to(gl.float32)[None, :]
            y = sums.to(out_ptr.dtype.element_ty)
            at = row.to(gl.int64)[:, None] * stride_y + col[None, :]
            gl.store(out_ptr + at, y, mask=(row < m)[:, None] & (col < n)[None, :])
        odd = odd ^ 1


@gluon.jit
def fp8_few_kernel(
    out_ptr, x_tiles, w_tiles, x_scale_ptr, w_scale_ptr, bias_ptr, m, n, k, tiles, group_n,
    stride_y, stride_xs, stride_xk, stride_ws,
    BY_ROW: gl.constexpr, GROUP: gl.constexpr, COLS: gl.constexpr, ROWS: gl.constexpr,
    STEPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    lines: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    xs = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, TALL, STEP], x_tiles.layout)
    ws = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, COLS, STEP], w_tiles.layout)
    table0 = gl.allocate_shared_memory(gl.float32, [STEPS * ROWS], flat)
    table1 = gl.allocate_shared_memory(gl.float32, [STEPS * ROWS], flat)
    shelf = gl.allocate_shared_memory(gl.float32, [TALL, COLS], lines)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    told = mbarrier.allocate_mbarrier()
    read = mbarrier.allocate_mbarrier()
    mbarrier.init(told, count=1)
    mbarrier.init(read, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, xs, ws, table0, shelf, ready, free,
                told, read, m, n, k, tiles, group_n, stride_y, stride_xs, stride_xk, stride_ws,
                BY_ROW, GROUP, COLS, ROWS, STEPS, STAGES, 0,
            )),
            (_multiply, (
                out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, xs, ws, table1, shelf, ready, free,
                told, read, m, n, k, tiles, group_n, stride_y, stride_xs, stride_xk, stride_ws,
                BY_ROW, GROUP, COLS, ROWS, STEPS, STAGES, 1,
            )),
            (_copy, (
                x_tiles, w_tiles, xs, ws, ready, free, k, tiles, COLS, ROWS, STAGES,
            )),
        ],
        [4, 1],
        [160, 40],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def fp8_few(out, x, x_scales, w, w_scales, *, choice, sms, group_n, group=0, bias=None):
    """out [m, n] from x [m, k] and w [n, k], bytes of e4m3; scales as `fp8_products` takes them."""
    s, (m, k), n = choice.schedule, x.shape, w.shape[0]
    tiles = triton.cdiv(n, s.block_n)
    launch(
        fp8_few_kernel, (min(sms, tiles),), out, boxes(x, s.block_m), boxes(w, s.block_n),
        x_scales, w_scales, bias, m, n, k, tiles, group_n, n, x_scales.stride(0),
        x_scales.stride(-1) if group else 0, w_scales.stride(0) if group else 0, choice=choice,
        BY_ROW=not group, GROUP=group, COLS=s.block_n, ROWS=s.block_m,
        STEPS=max(2, triton.next_power_of_2(triton.cdiv(k, STEP.value))), STAGES=s.num_stages,
    )  # fmt: skip
