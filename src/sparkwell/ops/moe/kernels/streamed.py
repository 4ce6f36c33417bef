"""NVFP4 experts of few rows where warps have roles: two copy, four multiply.

y[to(p)] = W[e] x[from(p)]  or  y[to(p)] = silu(gate) * up,  W[e] x = (gate, up)      as `grouped`

Blocks stay, and walk over units: a tile of positions by 128 rows of its expert's weight (gated: 64
of either half).  Copies run ahead into the next unit, so that memory is never idle, those of the
weight even before the kernel is over that makes x.  Where units are few, parts of the columns are
units of their own.

A thread takes 64 neighbouring codes of 256 with all their four scales; rows of x come with their
columns in the order that this makes (`turned`).  bfloat16 x comes as float16, with a power of two
a row: a code is then fewer instructions away from its value.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.kernels.nvfp4_stream import LEFT, STEP, stream_sums
from sparkwell.ops.launch import launch
from sparkwell.ops.moe.kernels.places import tile_rows
from sparkwell.ops.moe.kernels.turned import turned_place

TILE: gl.constexpr = gl.constexpr(128)  # rows of a weight
HALF: gl.constexpr = gl.constexpr(64)
COPYING: gl.constexpr = gl.constexpr(32)  # registers of a thread that copies


@gluon.constexpr_function
def _held(words, WARPS):
    """Layout of tiles of [2, HALF, 4 words]: a thread has `words` neighbours of a row."""
    own = [[0, 0, 1 << i] for i in range(words.bit_length() - 1)] + [[1, 0, 0]]
    lanes = [[0, 0, words], [0, 0, 2 * words], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    rows, split = [[0, 8, 0], [0, 16, 0], [0, 32, 0]], WARPS.bit_length() - 1
    shape = [2, HALF.value, 4 * words]
    return gl.DistributedLinearLayout(own + rows[split:], lanes, rows[:split], [], shape)


@gluon.jit
def _unit(
    unit, tile_ptr, id_ptr, tiles, first_expert, num_experts, n, k,
    LAYOUT: gl.constexpr, ROWS: gl.constexpr, PARTS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Its expert, first position and positions; first output; first and last step of columns."""
    EACH: gl.constexpr = HALF if GATED else TILE
    part, block = unit % PARTS, unit // PARTS
    blocks = (n + EACH - 1) // EACH
    expert, first, count = tile_rows(
        block // blocks, tile_ptr, id_ptr, tiles, first_expert, num_experts, 0, LAYOUT, 1, ROWS
    )
    steps = k // STEP
    low, high = part * steps // PARTS, (part + 1) * steps // PARTS
    high = gl.where(expert < 0, low, high)
    count = gl.where(expert < 0, 0, count)
    return gl.maximum(expert, 0), first, count, block % blocks * EACH, part, low, high


@gluon.jit
def _source(pair_ptr, position, mask, per_row):
    """Rows of x that the pairs at these positions are made of."""
    if pair_ptr is not None:
        position = gl.load(pair_ptr + position, mask=mask, other=0).to(gl.int64)
    return position // per_row


@gluon.jit
def _copy_weight(
    w_tiles, s_tiles, tile_ptr, id_ptr, ws, ss, ready, free, units, tiles, first_expert,
    num_experts, n, k, LAYOUT: gl.constexpr, ROWS: gl.constexpr, PARTS: gl.constexpr,
    GATED: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Codes and scales to a ring of STAGES."""
    at = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        expert, _, _, outer, _, low, high = _unit(
            unit, tile_ptr, id_ptr, tiles, first_expert, num_experts, n, k,
            LAYOUT, ROWS, PARTS, GATED,
        )  # fmt: skip
        if GATED:
            a, b = expert.to(gl.int32) * 2, outer
        else:
            a, b = (expert.to(gl.int32) * n + outer) // HALF, 0
        for step in range(low, high):
            stage, turn = at % STAGES, (at // STAGES) & 1
            full = ready.index(stage)
            mbarrier.wait(free.index(stage), turn ^ 1)
            mbarrier.expect(full, TILE * (STEP // 2 + STEP // 16))
            tma.async_load(w_tiles, [a, b, step * (STEP // 8)], full, ws.index(stage))
            tma.async_load(s_tiles, [a, b, step * (STEP // 64)], full, ss.index(stage))
            at += 1


@gluon.jit
def _copy_rows(
    x_ptr, pair_ptr, tile_ptr, id_ptr, xs, ready, free, units, tiles, first_expert, num_experts, n,
    k, per_row, stride_x, LAYOUT: gl.constexpr, ROWS: gl.constexpr, PARTS: gl.constexpr,
    GATED: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Rows of x to the same ring, zeros where a tile has none."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [1, 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = gl.arange(0, STEP, gl.SliceLayout(0, layout))
    at = 0
    gdc_wait()  # until then the kernel before may be at work; the tiles are older than that
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        _, first, count, _, _, low, high = _unit(
            unit, tile_ptr, id_ptr, tiles, first_expert, num_experts, n, k,
            LAYOUT, ROWS, PARTS, GATED,
        )  # fmt: skip
        source = first + row
        if GATED:
            source = _source(pair_ptr, source, row < count, per_row)
        x_row = x_ptr + source * stride_x
        for step in range(low, high):
            stage, turn = at % STAGES, (at // STAGES) & 1
            mbarrier.wait(free.index(stage), turn ^ 1)
            async_copy.async_load(
                xs.index(stage),
                x_row[:, None] + (step * STEP + column)[None, :],
                mask=(row < count)[:, None],
            )
            async_copy.mbarrier_arrive(ready.index(stage), increment_count=False)
            at += 1


@gluon.jit
def _multiply(
    y_ptr, row_scale_ptr, x_factor_ptr, pair_ptr, tile_ptr, id_ptr, ws, ss, xs, ready, free, units,
    tiles, first_expert, num_experts, n, k, per_row, stride_y, stride_re,
    LAYOUT: gl.constexpr, ROWS: gl.constexpr, PARTS: gl.constexpr,
    GATED: gl.constexpr, STAGES: gl.constexpr, TYPE: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1], [16, 8])
    flat: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [2, WARPS // 2], [0, 1])
    m = gl.arange(0, TILE, gl.SliceLayout(1, layout))
    half, place = m // 8 % 2, m // 16 * 8 + m % 8  # where a row of the product stands
    column_of: gl.constexpr = gl.SliceLayout(0, layout)
    at = 0
    if x_factor_ptr is not None:
        gdc_wait()
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        expert, first, count, outer, part, low, high = _unit(
            unit, tile_ptr, id_ptr, tiles, first_expert, num_experts, n, k,
            LAYOUT, ROWS, PARTS, GATED,
        )  # fmt: skip
        if GATED:
            of_row = half * n + outer + place
            known = outer + place < n
        else:
            of_row = outer + half * HALF + place
            known = of_row < n
        factor = gl.load(row_scale_ptr + expert * stride_re + of_row, mask=known, other=0.0)
        total = stream_sums(
            ws, ss, xs, ready, free, at, high - low, _held(8, WARPS), _held(1, WARPS), TILE, ROWS,
            STAGES, TYPE, False, layout,
        )  # fmt: skip
        at += high - low
        total = total * (factor * LEFT)[:, None]
        if x_factor_ptr is not None:
            row = gl.arange(0, ROWS, column_of)
            source = _source(pair_ptr, first + row, row < count, per_row)
            total = total * gl.load(x_factor_ptr + source, mask=row < count, other=0.0)[None, :]
        if GATED:
            gate, up = gl.split(total.reshape([TILE // 16, 2, 8, ROWS]).permute([0, 2, 3, 1]))
            total = (gate / (1.0 + gl.exp(-gate)) * up).reshape([HALF, ROWS])
            total = gl.convert_layout(total, flat)
            row = gl.arange(0, ROWS, gl.SliceLayout(0, flat))
            column = outer + gl.arange(0, HALF, gl.SliceLayout(1, flat))
            goal = first + row
            mask = (column < n)[:, None] & (row < count)[None, :]
            if TURNS:
                column = turned_place(column, TURNS)
        else:
            row = gl.arange(0, ROWS, column_of)
            goal = first + row
            if pair_ptr is not None:
                goal = gl.load(pair_ptr + goal, mask=row < count, other=0).to(gl.int64)
            goal = goal * PARTS + part
            column = of_row
            mask = known[:, None] & (row < count)[None, :]
        to = y_ptr + goal[None, :] * stride_y + column[:, None]
        gl.store(to, total.to(y_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def streamed_kernel(
    y_ptr, x_ptr, x_factor_ptr, w_tiles, s_tiles, row_scale_ptr, pair_ptr, tile_ptr, id_ptr,
    first_expert, num_experts, n, k, units, tiles, per_row, stride_y, stride_x, stride_re,
    LAYOUT: gl.constexpr, ROWS: gl.constexpr, PARTS: gl.constexpr, GATED: gl.constexpr,
    STAGES: gl.constexpr, TYPE: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    codes: gl.constexpr = gl.NVMMASharedLayout(128, 32, rank=3)
    plain: gl.constexpr = gl.NVMMASharedLayout(0, 32, rank=3)
    rows: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, STEP], TYPE)
    ws = gl.allocate_shared_memory(gl.int32, [STAGES, 2, HALF, STEP // 8], codes)
    ss = gl.allocate_shared_memory(gl.int32, [STAGES, 2, HALF, STEP // 64], plain)
    xs = gl.allocate_shared_memory(TYPE, [STAGES, ROWS, STEP], rows)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1 + 32)
        mbarrier.init(free.index(stage), count=gl.num_warps())
    fence_async_shared()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (_multiply, (
                y_ptr, row_scale_ptr, x_factor_ptr, pair_ptr, tile_ptr, id_ptr, ws, ss, xs, ready,
                free, units, tiles, first_expert, num_experts, n, k, per_row, stride_y, stride_re,
                LAYOUT, ROWS, PARTS, GATED, STAGES, TYPE, TURNS,
            )),
            (_copy_weight, (
                w_tiles, s_tiles, tile_ptr, id_ptr, ws, ss, ready, free, units, tiles,
                first_expert, num_experts, n, k, LAYOUT, ROWS, PARTS, GATED, STAGES,
            )),
            (_copy_rows, (
                x_ptr, pair_ptr, tile_ptr, id_ptr, xs, ready, free, units, tiles, first_expert,
                num_experts, n, k, per_row, stride_x, LAYOUT, ROWS, PARTS, GATED, STAGES,
            )),
        ],
        [1, 1],
        [COPYING, COPYING],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def streamed(y, x, weight, layout, choice, problem, *, turns, parts, sms):
    """Both products; each of the parts of the columns has a row of y."""
    s, p = choice.schedule, problem
    units = layout.tiles * triton.cdiv(p.n, s.block_n) * parts
    threads = 32 * (s.num_warps + 4)  # warps are taken by four
    registers = choice.target.registers_per_sm // (s.streamed * threads) // 8 * 8
    launch(
        streamed_kernel, (min(units, s.streamed * sms),), y, x.values, x.factors,
        _tiles(weight.values, p, STEP.value // 8), _tiles(weight.scales, p, STEP.value // 64),
        weight.row_scales, layout.pairs, layout.table, layout.ids, layout.first,
        layout.experts, p.n, p.k, units, layout.tiles, layout.per_row,
        y.stride(0), x.values.stride(0), weight.row_scales.stride(0),
        choice=choice, LAYOUT=layout.name, ROWS=s.block_m, PARTS=parts, GATED=p.gated,
        STAGES=s.num_stages, TYPE=getattr(gl, str(x.values.dtype).removeprefix("torch.")),
        TURNS=turns, maxnreg=registers, launch_pdl=True,
    )  # fmt: skip


def _tiles(stack, problem, width):
    """Tiles of [2, HALF, width] words over [E, n, bytes]: halves of an expert, or neighbours."""
    words = stack.view(torch.int32)
    experts, rows, columns = words.shape
    each = problem.n if problem.gated else HALF.value
    layout = gl.NVMMASharedLayout(128 if width == 32 else 0, 32, rank=3)
    return TensorDescriptor(
        words, [experts * rows // each, each, columns],
        [each * words.stride(1), words.stride(1), 1], [2, HALF.value, width], layout,
    )  # fmt: skip
