"""Few rows of FP8 times FP8 on Hopper where warps have roles: two copy, four multiply.

    y[r, n] = sum over g of s_x[r, g] s_w[n / group_n, g] (x[r, g] . w[n, g])      g: 128 columns

Rows of the weight are those of the matrix instruction, rows of x its few columns, so that nothing
is added up behind a block.  A slab is 128 columns of a tile of the weight, or of x.  Where a tile
has fewer rows than the instruction, EACH slabs share one: those of the weight beneath, those of x
beside each other.  Of the products only those of a slab with its own count.  They start from zero
every time, and are added in fp32.

The weight is asked for before the kernel in front of this one has ended, x only then: a weight must
not be what an operation shortly before writes.  Blocks are small enough for several to share a
multiprocessor, those of the next launch among them: the memory has no pause between two layers.
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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.kernels.barriers import arrive_alone, wait_alone
from sparkwell.ops.kernels.fp8_products import STEP, boxes, next_stage
from sparkwell.ops.launch import launch
from sparkwell.ops.linear.schedule import table_steps

HEIGHT: gl.constexpr = gl.constexpr(64)  # rows of a matrix instruction
COPYING: gl.constexpr = gl.constexpr(32)  # registers of a thread that copies
AT_ONCE: gl.constexpr = gl.constexpr(1024)  # scales that are read together


@gluon.jit
def _copy(
    tiles, to, ready, free, k, units, WEIGHT: gl.constexpr, LINES: gl.constexpr,
    STAGES: gl.constexpr, SLABS: gl.constexpr, EACH: gl.constexpr,
):  # fmt: skip
    """LINES rows of an operand to a ring of STAGES, SLABS at a time."""
    stage = 0
    turn = 0
    if not WEIGHT:
        gdc_wait()
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        row = unit * LINES if WEIGHT else 0
        for at in range(0, k, SLABS * STEP):
            done = ready.index(stage)
            mbarrier.wait(free.index(stage), turn ^ 1)
            mbarrier.expect(done, SLABS * LINES * STEP)
            for slab in gl.static_range(SLABS):
                there = to.index((stage * SLABS + slab) // EACH).slice(
                    slab % EACH * LINES, LINES, 0
                )
                tma.async_load(tiles, [row, at + slab * STEP], done, there)
            stage, turn = next_stage(stage, turn, STAGES)


@gluon.jit
def _scale_table(
    table, x_scale_ptr, w_scale_ptr, m, k, stride_xs, stride_xk,
    GROUP: gl.constexpr, ROWS: gl.constexpr, STEPS: gl.constexpr,
):  # fmt: skip
    """Products of both operands' scales, for every step and row; 0 behind the last column."""
    SOME: gl.constexpr = min(STEPS, AT_ONCE // ROWS)
    LANES: gl.constexpr = min(ROWS, 32)
    lines: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32 // LANES, LANES], [4, 1], [1, 0])
    row = gl.minimum(gl.arange(0, ROWS, gl.SliceLayout(0, layout)), m - 1).to(gl.int64)
    for first in gl.static_range(0, STEPS, SOME):  # as many as registers hold
        column = (first + gl.arange(0, SOME, gl.SliceLayout(1, layout))) * STEP
        group = column // GROUP
        of_w = gl.load(w_scale_ptr + group, mask=column < k, other=0.0)
        of_x = gl.load(
            x_scale_ptr + (row * stride_xs)[None, :] + (group * stride_xk)[:, None],
            mask=(column < k)[:, None], other=0.0,
        )  # fmt: skip
        there = table.reinterpret(shape=[STEPS, ROWS], layout=lines).slice(first, SOME, 0)
        there.store(of_x * of_w[:, None])


@gluon.jit
def _fetch_scales(w_scale_ptr, k, GROUP: gl.constexpr, STEPS: gl.constexpr):
    """Bring a row of the weight's scales near."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    column = gl.minimum(gl.arange(0, STEPS, layout) * STEP, k - 1)
    gl.inline_asm("prefetch.global.L2 [$0];", "l", [w_scale_ptr + column // GROUP])


@gluon.jit
def _multiply(
    out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, xs, ws, table, ready, free, m, n, k, units,
    group_n, stride_y, stride_xs, stride_xk, stride_ws,
    BY_ROW: gl.constexpr, GROUP: gl.constexpr, TALL: gl.constexpr, ROWS: gl.constexpr,
    STEPS: gl.constexpr, STAGES: gl.constexpr, SLABS: gl.constexpr,
):  # fmt: skip
    EACH: gl.constexpr = HEIGHT // TALL
    WIDE: gl.constexpr = EACH * ROWS
    LANES: gl.constexpr = min(32, TALL)
    matrix: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    of_column: gl.constexpr = gl.SliceLayout(0, matrix)
    short: gl.constexpr = gl.BlockedLayout([1, 1], [LANES, 32 // LANES], [1, 4], [0, 1])
    lines: gl.constexpr = short if EACH > 1 else matrix
    zeros = gl.zeros([HEIGHT, WIDE], gl.float32, matrix)
    of_w = gl.arange(0, HEIGHT, gl.SliceLayout(1, matrix)) // TALL
    own = of_w[:, None] == (gl.arange(0, WIDE, of_column) // ROWS)[None, :]
    stage = 0
    turn = 0
    if not BY_ROW:
        tile = gl.program_id(0) * TALL // group_n
        _fetch_scales(w_scale_ptr + tile * stride_ws, k, GROUP, STEPS)
    gdc_wait()
    gdc_launch_dependents()
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        column = unit * TALL
        if not BY_ROW:
            gl.barrier()  # all have read the last tile's
            _scale_table(
                table, x_scale_ptr, w_scale_ptr + column // group_n * stride_ws, m, k, stride_xs,
                stride_xk, GROUP, ROWS, STEPS,
            )  # fmt: skip
            gl.barrier()
        sums = zeros
        for at in range(0, k, SLABS * STEP):
            wait_alone(ready.index(stage), turn)
            new = ()
            for i in gl.static_range(SLABS // EACH):
                place = stage * (SLABS // EACH) + i
                x = xs.index(place).permute([1, 0])
                part = warpgroup_mma(ws.index(place), x, zeros, use_acc=False, is_async=True)
                new = new + (part,)  # type: ignore[assignment]
            new = warpgroup_mma_wait(0, deps=new)
            arrive_alone(free.index(stage))
            for i in gl.static_range(SLABS // EACH):
                part = new[i] if SLABS > EACH else new
                if not BY_ROW:
                    scale = table.index(at // (EACH * STEP) + i).load(of_column)[None, :]
                    part = part * (gl.where(own, scale, 0.0) if EACH > 1 else scale)
                elif EACH > 1:
                    part = gl.where(own, part, 0.0)
                sums += part
            stage, turn = next_stage(stage, turn, STAGES)
        y = sums
        if EACH > 1:
            y = gl.sum(gl.sum(sums.reshape([EACH, TALL, EACH, ROWS]), 2), 0)
            y = gl.convert_layout(y, lines)
        row = gl.arange(0, ROWS, gl.SliceLayout(0, lines))
        col = column + gl.arange(0, TALL, gl.SliceLayout(1, lines))
        mine = gl.minimum(col, n - 1)
        if BY_ROW:
            of_x = gl.load(x_scale_ptr + gl.minimum(row, m - 1).to(gl.int64) * stride_xs)
            y = y * of_x[None, :] * gl.load(w_scale_ptr + mine)[:, None]
        if bias_ptr is not None:
            y += gl.load(bias_ptr + mine).to(gl.float32)[:, None]
        to = row.to(gl.int64)[None, :] * stride_y + col[:, None]
        mask = (col < n)[:, None] & (row < m)[None, :]
        gl.store(out_ptr + to, y.to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def fp8_few_kernel(
    out_ptr, x_tiles, w_tiles, x_scale_ptr, w_scale_ptr, bias_ptr, m, n, k, units, group_n,
    stride_y, stride_xs, stride_xk, stride_ws,
    BY_ROW: gl.constexpr, GROUP: gl.constexpr, TALL: gl.constexpr, ROWS: gl.constexpr,
    STEPS: gl.constexpr, STAGES: gl.constexpr, SLABS: gl.constexpr,
):  # fmt: skip
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    EACH: gl.constexpr = HEIGHT // TALL
    TILES: gl.constexpr = STAGES * SLABS // EACH
    gl.static_assert(SLABS % EACH == 0)
    gl.static_assert(STEPS % SLABS == 0)  # a stage's scales are all there
    xs = gl.allocate_shared_memory(gl.float8e4nv, [TILES, EACH * ROWS, STEP], x_tiles.layout)
    ws = gl.allocate_shared_memory(gl.float8e4nv, [TILES, HEIGHT, STEP], w_tiles.layout)
    scales: gl.constexpr = [1 if BY_ROW else STEPS // EACH, EACH * ROWS]
    table = gl.allocate_shared_memory(gl.float32, scales, flat)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=2)
        mbarrier.init(free.index(stage), count=gl.num_warps())
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, xs, ws, table, ready, free, m, n, k,
                units, group_n, stride_y, stride_xs, stride_xk, stride_ws,
                BY_ROW, GROUP, TALL, ROWS, STEPS, STAGES, SLABS,
            )),
            (_copy, (w_tiles, ws, ready, free, k, units, True, TALL, STAGES, SLABS, EACH)),
            (_copy, (x_tiles, xs, ready, free, k, units, False, ROWS, STAGES, SLABS, EACH)),
        ],
        [1, 1],
        [COPYING, COPYING],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def fp8_few(out, x, x_scales, w, w_scales, *, choice, sms, group_n, group=0, bias=None):
    """out [m, n] from x [m, k] and w [n, k], bytes of e4m3; scales as `fp8_products` takes them."""
    s, (m, k), n = choice.schedule, x.shape, w.shape[0]
    units = triton.cdiv(n, s.block_n)
    threads = 32 * (s.num_warps + 4)  # warps are taken by four
    registers = choice.target.registers_per_sm // (s.blocks * threads) // 8 * 8
    launch(
        fp8_few_kernel, (min(s.blocks * sms, units),), out, boxes(x, s.block_m),
        boxes(w, s.block_n), x_scales, w_scales, bias, m, n, k, units, group_n, n,
        x_scales.stride(0), x_scales.stride(-1) if group else 0,
        w_scales.stride(0) if group else 0, choice=choice, early=True,
        BY_ROW=not group, GROUP=group, TALL=s.block_n, ROWS=s.block_m, STEPS=table_steps(k),
        STAGES=s.num_stages, SLABS=s.block_k // STEP.value, maxnreg=registers,
    )  # fmt: skip
