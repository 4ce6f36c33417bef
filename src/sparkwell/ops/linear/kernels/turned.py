"""NVFP4 by some rows of x on Hopper's wgmma: weights from memory to registers, x in shared memory.

y[m, n] = factor[n] sum_k w[n, k] x[m, k] + bias[n]

Rows of the weight are those of the product, so they are its operand that may stand in registers:
each lane takes 16 neighbouring bytes of a row, which are its own share as in `direct`.  For that
x's columns are put in the order in which its lanes hold codes (`turn_kernel`): of 128 columns
32 t + 8 j + 4 h + 2 s + b  goes to  32 j + 16 s + 8 b + 2 t + h.
A step's weights are widened while the tensor cores multiply the step before.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.linear.kernels.fragments import widen_words


@triton.jit
def turn_kernel(out_ptr, x_ptr, k, stride_x, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of x with their columns turned; k: a multiple of 128."""
    row = tl.program_id(0).to(tl.int64)
    to = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = to // 128 * 128 + to % 8 // 2 * 32 + to % 128 // 32 * 8 + to % 2 * 4
    column += to % 32 // 16 * 2 + to % 16 // 8
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    value = tl.load(x_ptr + row * stride_x + column, mask=column < k, other=0.0)
    tl.store(out_ptr + row * k + to, value, mask=to < k)


@gluon.constexpr_function
def _words_layout(warps, rows, chunks, inner):
    regs = [[0, 1 << i] for i in range(inner.bit_length() - 1)]
    regs += [[0, 4 * inner << i] for i in range(chunks.bit_length() - 1)] + [[8, 0]]
    regs += [[16 * warps << i, 0] for i in range((rows // (16 * warps)).bit_length() - 1)]
    lanes = [[0, inner], [0, 2 * inner], [1, 0], [2, 0], [4, 0]]
    by_warp = [[16 << i, 0] for i in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(regs, lanes, by_warp, [], [rows, 4 * inner * chunks])


@gluon.jit
def _copy_x(xs, x_ptrs, stage, column):
    async_copy.async_load(xs.index(stage), x_ptrs + column)
    async_copy.commit_group()


@gluon.jit
def turned_kernel(
    out_ptr, w_ptr, scale_ptr, factor_ptr, x_ptr, bias_ptr, m, n, width, chunk, stride_w,
    stride_scale, BF16: gl.constexpr, PARTS: gl.constexpr, BN: gl.constexpr, BM: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """x: [m, 2 width], turned."""
    WARPS: gl.constexpr = gl.num_warps()
    HALF: gl.constexpr = gl.bfloat16 if BF16 else gl.float16
    CHUNKS: gl.constexpr = BK // 64
    of_w: gl.constexpr = _words_layout(WARPS, BN, CHUNKS, 4)
    of_s: gl.constexpr = _words_layout(WARPS, BN, CHUNKS, 1)
    of_y: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BM, 16])
    of_a: gl.constexpr = gl.DotOperandLayout(0, of_y, 2)
    LANES: gl.constexpr = min(32, BK // 4)  # 16 bytes each
    of_x: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    in_x: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, 2 * BK], HALF)
    xs = gl.allocate_shared_memory(HALF, [STAGES, BM, 2 * BK], in_x)

    first, part = gl.program_id(0) * BN, gl.program_id(1)
    low = part * chunk
    steps = gl.minimum(chunk, width - low) // BK
    row = gl.minimum(first + gl.arange(0, BN, gl.SliceLayout(1, of_w)), n - 1).to(gl.int64)
    w_ptrs = w_ptr.to(gl.pointer_type(gl.int32)) + (row * (stride_w // 4))[:, None] + low // 4
    w_ptrs += gl.arange(0, BK // 4, gl.SliceLayout(0, of_w))[None, :]
    row = gl.minimum(first + gl.arange(0, BN, gl.SliceLayout(1, of_s)), n - 1).to(gl.int64)
    s_ptrs = scale_ptr.to(gl.pointer_type(gl.int16)) + (row * (stride_scale // 2))[:, None]
    s_ptrs += low // 16 + gl.arange(0, BK // 16, gl.SliceLayout(0, of_s))[None, :]
    words, scales = gl.load(w_ptrs), gl.load(s_ptrs)

    gdc_wait()
    gdc_launch_dependents()
    first_m = gl.program_id(2) * BM
    token = gl.minimum(first_m + gl.arange(0, BM, gl.SliceLayout(1, of_x)), m - 1).to(gl.int64)
    x_ptrs = x_ptr + (token * (2 * width))[:, None] + 2 * low
    x_ptrs += gl.arange(0, 2 * BK, gl.SliceLayout(0, of_x))[None, :]
    for i in gl.static_range(STAGES - 1):
        _copy_x(xs, x_ptrs, i, gl.minimum(i, steps - 1) * (2 * BK))

    like = gl.zeros([BN, 2 * BK], HALF, of_a)
    sums = warpgroup_mma_init(gl.zeros([BN, BM], gl.float32, of_y))
    for i in range(steps):
        a = widen_words(words, scales, like, BF16, CHUNKS)
        ahead = gl.minimum(i + 1, steps - 1)
        words, scales = gl.load(w_ptrs + ahead * (BK // 4)), gl.load(s_ptrs + ahead * (BK // 16))
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        acc = warpgroup_mma_wait(0, deps=[sums])
        gl.barrier()
        ahead = gl.minimum(i + STAGES - 1, steps - 1)
        _copy_x(xs, x_ptrs, (i + STAGES - 1) % STAGES, ahead * (2 * BK))
        sums = warpgroup_mma(a, xs.index(i % STAGES).permute([1, 0]), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[sums])
    async_copy.wait_group(0)

    y = acc * 128.0  # what `fragments` leaves
    col = first + gl.arange(0, BN, gl.SliceLayout(1, of_y))
    row = first_m + gl.arange(0, BM, gl.SliceLayout(0, of_y))
    mine = (col < n)[:, None] & (row < m)[None, :]
    n_at = gl.minimum(col, n - 1)
    if PARTS:
        out = out_ptr + part.to(gl.int64) * m * n
    else:
        out = out_ptr
        if factor_ptr is not None:
            y = y * gl.load(factor_ptr + n_at)[:, None]
        if bias_ptr is not None:
            y = y + gl.load(bias_ptr + n_at).to(gl.float32)[:, None]
    at = row.to(gl.int64)[None, :] * n + col[:, None]
    gl.store(out + at, y.to(out_ptr.dtype.element_ty), mask=mine)
