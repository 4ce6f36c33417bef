"""Products of FP8 rows on Hopper where warps have roles: some copy, two groups of four multiply.

    y[r, n] = sum over g of s_x[r, g] s_w[n, g] (x[r, g] . w[n, g])          g: 128 columns

Blocks walk over tiles of 128 rows, 64 a group, by HALVES times COLS outputs.  A product of 128
columns starts from zero; while one group adds it in fp32, the tensor cores work for the other.
One scale per row of each operand (BY_ROW) multiplies the sums instead.  A tile's rows are of one
group of rows, each with its own weight (LAYOUT); `moe.kernels.places` says what the names mean.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sparkwell.ops.launch import launch

STEP: gl.constexpr = gl.constexpr(128)  # columns multiplied at a time
MINE: gl.constexpr = gl.constexpr(64)  # rows of a group of warps
ROWS: gl.constexpr = gl.constexpr(128)  # of a tile
COLS: gl.constexpr = gl.constexpr(128)  # outputs that share a scale
REGISTERS: gl.constexpr = gl.constexpr(224)  # of a thread that multiplies
REST: gl.constexpr = gl.constexpr(56)  # of one that copies


@gluon.constexpr_function
def _in_every_warp():
    """64 values, all of them in each of four warps: what is summed of them stays in a warp."""
    lanes = [[1], [2], [4], [8], [16]]
    return gl.DistributedLinearLayout([[32]], lanes, [[0], [0]], [], [64])


@gluon.jit
def _place(tile, tiles_m, tiles_n, BAND: gl.constexpr):
    """(row of tiles, column of tiles): BAND rows of tiles at a time, which share operands."""
    band = BAND * tiles_n
    first = tile // band * BAND
    height = gl.minimum(tiles_m - first, BAND)
    inside = tile % band
    return first + inside % height, inside // height


@gluon.jit
def _owner(id_ptr, row, groups, m, LAYOUT: gl.constexpr, ALIGN: gl.constexpr):
    """(the group whose rows begin at `row`, -1: none; behind its last row, unless rows say so)."""
    group = 0
    end = m
    if LAYOUT == "rows":
        group = gl.load(id_ptr + row)
        group = gl.where(group < groups, group, -1)
    if LAYOUT == "ends":
        every: gl.constexpr = _in_every_warp()
        for base in range(0, groups, 64):
            at = base + gl.arange(0, 64, every)
            ends = gl.load(id_ptr + at, mask=at < groups, other=2147483520)
            group += gl.sum(((ends + ALIGN - 1) // ALIGN * ALIGN <= row).to(gl.int32), 0)
        found = group < groups
        end = gl.minimum(gl.load(id_ptr + gl.where(found, group, 0)), m)
        group = gl.where(found, group, -1)
    return group, end


@gluon.jit
def _some(id_ptr, row, group, end, m, LAYOUT: gl.constexpr):
    """Whether any of a group of warps' rows, from `row` on, holds something."""
    if LAYOUT == "rows":
        at = row + gl.arange(0, MINE, _in_every_warp())
        named = gl.load(id_ptr + at, mask=at < m, other=-1)
        some = gl.max((named == group).to(gl.int32), 0) > 0
    else:
        some = row < end
    return some


@gluon.jit
def _share(k, parts, part):
    """(first step, steps) of a part of the columns."""
    steps = (k + STEP - 1) // STEP
    chunk = (steps + parts - 1) // parts
    return part * chunk, gl.maximum(gl.minimum(chunk, steps - part * chunk), 0)


@gluon.jit
def next_stage(stage, turn, STAGES: gl.constexpr):
    """The stage after `stage`, and whether its turn is odd."""
    last = stage == STAGES - 1
    return gl.where(last, 0, stage + 1), gl.where(last, turn ^ 1, turn)


@gluon.jit
def _copy(
    x_tiles, w_tiles, x_scale_ptr, w_scale_ptr, id_ptr, xs, ws, scales, ready, free, groups, m, n,
    k, tiles_m, tiles_n, parts, group_n, stride_xs, stride_xk, stride_we, stride_ws,
    LAYOUT: gl.constexpr, ALIGN: gl.constexpr, BY_ROW: gl.constexpr, GROUP: gl.constexpr,
    HALVES: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr,
):  # fmt: skip
    """Tiles of both operands and, for each half's outputs, the products of their scales."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    each = gl.arange(0, ROWS, flat)
    stage = 0
    turn = 0
    for tile in tl.range(
        gl.program_id(0), tiles_m * tiles_n * parts, gl.num_programs(0), disable_licm=True
    ):
        at_m, at_n = _place(tile // parts, tiles_m, tiles_n, BAND)
        row = at_m * ROWS
        group, _ = _owner(id_ptr, row, groups, m, LAYOUT, ALIGN)
        column = at_n * (HALVES * COLS)
        mine = gl.maximum(group, 0)
        of_x = x_scale_ptr + gl.minimum(row + each, m - 1).to(gl.int64) * stride_xs
        of_w = w_scale_ptr + gl.to_tensor(mine).to(gl.int64) * stride_we
        first, count = _share(k, parts, tile % parts)
        for step in range(first, gl.where(group >= 0, first + count, first)):
            if not BY_ROW:
                at = step * STEP // GROUP
                of_row = gl.load(of_x + at * stride_xk)
                factors = ()
                for half in gl.static_range(HALVES):
                    block = gl.minimum(column + half * COLS, n - 1) // group_n
                    factors = factors + (gl.load(of_w + block * stride_ws + at),)  # type: ignore[assignment]
            done = ready.index(stage)
            mbarrier.wait(free.index(stage), turn ^ 1)
            mbarrier.expect(done, (ROWS + HALVES * COLS) * STEP)
            tma.async_load(x_tiles, [row, step * STEP], done, xs.index(stage))
            tma.async_load(w_tiles, [mine * n + column, step * STEP], done, ws.index(stage))
            if not BY_ROW:
                for half in gl.static_range(HALVES):
                    scales.index(stage * HALVES + half).store(of_row * factors[half])
                mbarrier.arrive(done, count=1)
            stage, turn = next_stage(stage, turn, STAGES)


@gluon.jit
def _add_step(
    sums, xs, ws, scales, ready, free, stage, turn, never,
    BY_ROW: gl.constexpr, HALVES: gl.constexpr, G: gl.constexpr, matrix: gl.constexpr,
):  # fmt: skip
    """The sums with the product of a stage added.

    never: False, but not for the compiler: it then puts both halves' products into the same
    registers, for which there is no room twice.
    """
    mbarrier.wait(ready.index(stage), turn)
    x = xs.index(stage).slice(G * MINE, MINE, 0)
    zeros = gl.zeros([MINE, COLS], gl.float32, matrix)
    new = ()
    for half in gl.static_range(HALVES):
        w = ws.index(stage).slice(half * COLS, COLS, 0).permute([1, 0])
        if half == 0:
            part = warpgroup_mma(x, w, zeros, use_acc=False, is_async=True)
        else:
            part = warpgroup_mma(x, w, part, use_acc=never, is_async=True)
        if not BY_ROW:
            mine = scales.index(stage * HALVES + half).slice(G * MINE, MINE)
            scale = mine.load(gl.SliceLayout(1, matrix))[:, None]
        part = warpgroup_mma_wait(0, deps=[part])
        if half == HALVES - 1:
            mbarrier.arrive(free.index(stage), count=1)
        product = part
        if not BY_ROW:
            product = part * scale
        new = new + (sums[half] + product,)  # type: ignore[assignment]
    return new


@gluon.jit
def _finish(
    out_ptr, sums, bias_ptr, x_scale_ptr, w_scale_ptr, id_ptr, row, column, group, end, m, n,
    stride_y, stride_xs, stride_we,
    LAYOUT: gl.constexpr, BY_ROW: gl.constexpr, matrix: gl.constexpr,
):  # fmt: skip
    """A half's sums to memory; rows between a group's end and the next group's become 0."""
    VEC: gl.constexpr = 128 // out_ptr.dtype.element_ty.primitive_bitwidth
    LANES: gl.constexpr = 32 if COLS // VEC > 32 else COLS // VEC
    lines: gl.constexpr = gl.BlockedLayout([1, VEC], [32 // LANES, LANES], [4, 1], [1, 0])
    col = column + gl.arange(0, COLS, gl.SliceLayout(0, matrix))
    if BY_ROW:
        r = gl.minimum(row + gl.arange(0, MINE, gl.SliceLayout(1, matrix)), m - 1)
        of_x = gl.load(x_scale_ptr + r.to(gl.int64) * stride_xs)
        at = gl.to_tensor(gl.maximum(group, 0)).to(gl.int64) * stride_we + gl.minimum(col, n - 1)
        sums = sums * of_x[:, None] * gl.load(w_scale_ptr + at)[None, :]
    if bias_ptr is not None:
        sums += gl.load(bias_ptr + gl.minimum(col, n - 1)).to(gl.float32)[None, :]
    y = gl.convert_layout(sums.to(out_ptr.dtype.element_ty), lines)
    r = gl.arange(0, MINE, gl.SliceLayout(1, lines))
    c = gl.arange(0, COLS, gl.SliceLayout(0, lines))
    stored = r < m - row
    if LAYOUT == "rows":
        held = gl.load(id_ptr + row + r, mask=stored, other=-1) == group
        y = gl.where((held & (group >= 0))[:, None], y, gl.zeros_like(y))
    if LAYOUT == "ends":
        y = gl.where((r < end - row)[:, None], y, gl.zeros_like(y))
        stored = stored & (group >= 0)
    out = out_ptr + gl.to_tensor(row).to(gl.int64) * stride_y + column
    at = r[:, None] * stride_y + c[None, :]
    gl.store(out + at, y, mask=stored[:, None] & (c < n - column)[None, :])


@gluon.jit
def _multiply(
    out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, id_ptr, xs, ws, scales, ready, free, groups, m, n,
    k, tiles_m, tiles_n, parts, stride_y, stride_xs, stride_we,
    LAYOUT: gl.constexpr, ALIGN: gl.constexpr, BY_ROW: gl.constexpr, HALVES: gl.constexpr,
    STAGES: gl.constexpr, BAND: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    matrix: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 32])
    stage = 0
    turn = 0
    for tile in tl.range(
        gl.program_id(0), tiles_m * tiles_n * parts, gl.num_programs(0), disable_licm=True
    ):
        at_m, at_n = _place(tile // parts, tiles_m, tiles_n, BAND)
        group, end = _owner(id_ptr, at_m * ROWS, groups, m, LAYOUT, ALIGN)
        row = at_m * ROWS + G * MINE
        _, count = _share(k, parts, tile % parts)
        copied = gl.where(group >= 0, count, 0)
        mine = gl.where(_some(id_ptr, row, group, end, m, LAYOUT), copied, 0)
        sums = ()
        for _ in gl.static_range(HALVES):
            sums = sums + (gl.zeros([MINE, COLS], gl.float32, matrix),)  # type: ignore[assignment]
        for _ in tl.range(mine, disable_licm=True):
            sums = _add_step(
                sums, xs, ws, scales, ready, free, stage, turn, n < 0, BY_ROW, HALVES, G, matrix
            )
            stage, turn = next_stage(stage, turn, STAGES)
        for _ in range(copied - mine):  # of rows that are all the other group's
            mbarrier.wait(ready.index(stage), turn)
            mbarrier.arrive(free.index(stage), count=1)
            stage, turn = next_stage(stage, turn, STAGES)
        out = out_ptr + gl.to_tensor(tile % parts).to(gl.int64) * m * stride_y
        for half in gl.static_range(HALVES):
            _finish(
                out, sums[half], bias_ptr, x_scale_ptr, w_scale_ptr, id_ptr, row,
                (at_n * HALVES + half) * COLS, group, end, m, n, stride_y, stride_xs, stride_we,
                LAYOUT, BY_ROW, matrix,
            )  # fmt: skip


@gluon.jit
def fp8_products_kernel(
    out_ptr, x_tiles, w_tiles, x_scale_ptr, w_scale_ptr, bias_ptr, id_ptr, groups, m, n, k,
    tiles_m, tiles_n, parts, group_n, stride_y, stride_xs, stride_xk, stride_we, stride_ws,
    LAYOUT: gl.constexpr, ALIGN: gl.constexpr, BY_ROW: gl.constexpr, GROUP: gl.constexpr,
    HALVES: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr,
):  # fmt: skip
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    xs = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, ROWS, STEP], x_tiles.layout)
    ws = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, HALVES * COLS, STEP], w_tiles.layout)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES * HALVES, ROWS], flat)
    ready = mbarrier.allocate_mbarrier(batch=STAGES)
    free = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):  # ready: by the copy engine, and scales
        mbarrier.init(ready.index(stage), count=1 if BY_ROW else 2)
        mbarrier.init(free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_multiply, (
                out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, id_ptr, xs, ws, scales, ready, free,
                groups, m, n, k, tiles_m, tiles_n, parts, stride_y, stride_xs, stride_we, LAYOUT,
                ALIGN, BY_ROW, HALVES, STAGES, BAND, 0,
            )),
            (_multiply, (
                out_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, id_ptr, xs, ws, scales, ready, free,
                groups, m, n, k, tiles_m, tiles_n, parts, stride_y, stride_xs, stride_we, LAYOUT,
                ALIGN, BY_ROW, HALVES, STAGES, BAND, 1,
            )),
            (_copy, (
                x_tiles, w_tiles, x_scale_ptr, w_scale_ptr, id_ptr, xs, ws, scales, ready, free,
                groups, m, n, k, tiles_m, tiles_n, parts, group_n, stride_xs, stride_xk, stride_we,
                stride_ws, LAYOUT, ALIGN, BY_ROW, GROUP, HALVES, STAGES, BAND,
            )),
        ],
        [4, 4],
        [REGISTERS, REST],
    )  # fmt: skip


# ---------------------------------------------------------------- launch


def fp8_products(
    out, x, x_scales, w, w_scales, *, choice, sms, group_n, group=0, parts=1, layout="whole",
    ids=None, align=1, bias=None,
):  # fmt: skip
    """out [m, n], or parts of it, from x [m, k] and w [groups, n, k], bytes of e4m3.

    x_scales: [m, k / group].  w_scales: [groups, n / group_n, k / group].  group 0: [m] and
    [groups, n].  layout, ids, align: whose rows x's are.
    """
    s, (m, k), (groups, n, _) = choice.schedule, x.shape, w.shape
    halves = s.block_n // COLS.value
    tiles_m, tiles_n = triton.cdiv(m, ROWS.value), triton.cdiv(n, s.block_n)
    launch(
        fp8_products_kernel, (min(sms, tiles_m * tiles_n * parts),), out, boxes(x, ROWS.value),
        boxes(w.view(-1, k), s.block_n), x_scales, w_scales, bias, ids, groups, m, n, k, tiles_m,
        tiles_n, parts, group_n, n, x_scales.stride(0), x_scales.stride(-1) if group else 0,
        w_scales.stride(0), w_scales.stride(1) if group else 0, choice=choice, LAYOUT=layout,
        ALIGN=align, BY_ROW=not group, GROUP=group, HALVES=halves, STAGES=s.num_stages,
        BAND=16 if groups == 1 else 8,
    )  # fmt: skip


def copyable(*matrices):
    """Whether the copy engine reads these bytes: rows at multiples of 16 in rows of matrices."""
    return all(
        t.numel() > 0
        and t.stride(-1) == 1
        and (t.data_ptr() | t.stride(-2)) % 16 == 0
        and (t.ndim == 2 or t.stride(0) == t.shape[1] * t.stride(1))
        for t in matrices
    )


def boxes(x, rows):
    """What the copy engine reads of a matrix, `rows` of STEP bytes at a time."""
    box = [rows, STEP.value]
    layout = gl.NVMMASharedLayout.get_default_for(box, gl.float8e4nv)
    x = x.view(torch.float8_e4m3fn)
    return TensorDescriptor(x, list(x.shape), [x.stride(0), 1], box, layout)
