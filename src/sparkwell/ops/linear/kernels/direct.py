"""A few rows of x on Hopper: weights go from memory straight to the registers that need them.

y[m, n] = factor[n] sum_k w[n, k] x[m, k] + bias[n]

A warp multiplies 16 rows of the weight by 8 of x, 16 columns an instruction.  Which columns these
are is free as long as both operands agree, so a lane takes 16 neighbouring bytes of a row: all that
they hold is its own share of the products, and nothing passes through shared memory.  The warps of
a block take chunks of 128 columns in turns, ask for the next ones before they multiply, and add in
a fixed order at the end.  Arithmetic is that of `streamed`.

Weights are asked for before the kernel in front of this one has ended, x only then: a weight must
not be what an operation shortly before writes.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.linear.kernels.fragments import multiply_chunks


@gluon.constexpr_function
def _doubled(base, count):
    """[base, 2 base, 4 base, ...], as many as address `count` places."""
    return [[b << i for b in base] for i in range(count.bit_length() - 1)]


@gluon.constexpr_function
def _tile(inner, times, apart, warps, chunks, rows):
    """Layout of [rows, columns] whose chunk a lane holds `times` times `inner` neighbours of.

    apart: columns from one of a row's four lanes to the next; 0: they all hold the same.
    """
    chunk = 4 * inner * times if apart else inner
    regs = _doubled([0, 1], inner) + _doubled([0, 4 * inner], times)
    regs += _doubled([0, chunk * warps], chunks) + _doubled([8, 0], rows // 8)
    lanes = [[0, apart], [0, 2 * apart], [1, 0], [2, 0], [4, 0]]
    shape = [rows, chunk * warps * chunks]
    return gl.DistributedLinearLayout(regs, lanes, _doubled([0, chunk], warps), [], shape)


@gluon.constexpr_function
def _sums(warps, rows, tokens):
    """Layout of each warp's sums, as mma.sync leaves them."""
    regs = (
        [[0, 0, 1], [0, 8, 0]] + _doubled([0, 0, 8], tokens // 8) + _doubled([0, 16, 0], rows // 16)
    )
    lanes = [[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    shape = [warps, rows, tokens]
    return gl.DistributedLinearLayout(regs, lanes, _doubled([1, 0, 0], warps), [], shape)


@gluon.jit
def _rows(first, n, stride, COUNT: gl.constexpr, layout: gl.constexpr):
    """Where COUNT rows from `first` on start; beyond n the last one."""
    row = first + gl.arange(0, COUNT, gl.SliceLayout(1, layout))
    return (gl.minimum(row, n - 1).to(gl.int64) * stride)[:, None]


@gluon.jit
def _weights(
    w_ptrs, s_ptrs, z_ptrs, first, width, group_k, KIND: gl.constexpr, BF16: gl.constexpr,
    EVEN: gl.constexpr, BK: gl.constexpr, BYTES: gl.constexpr, of_w: gl.constexpr,
    of_s: gl.constexpr,
):  # fmt: skip
    """Words, scales and zero points of BK bytes of each row, from byte `first` on; 0 beyond."""
    inside = (gl.arange(0, BK // 4, gl.SliceLayout(0, of_w)) < (width - first) // 4)[None, :]
    ptrs = w_ptrs + first // 4
    words = gl.load(ptrs) if EVEN else gl.load(ptrs, mask=inside, other=0)
    scales, zeros = None, None
    if KIND == "nvfp4":  # two scales together
        inside = (gl.arange(0, BK // 16, gl.SliceLayout(0, of_s)) < (width - first) // 16)[None, :]
        ptrs = s_ptrs + first // 16
        scales = gl.load(ptrs) if EVEN else gl.load(ptrs, mask=inside, other=0)
    elif s_ptrs is not None:
        at = first + gl.arange(0, BK // BYTES, gl.SliceLayout(0, of_s)) * BYTES
        inside, at = (at < width)[None, :], (at // group_k)[None, :]
        scales = gl.load(s_ptrs + at, mask=inside, other=0).to(gl.float32)
        if z_ptrs is not None:
            HALF: gl.constexpr = gl.bfloat16 if BF16 else gl.float16
            zeros = gl.load(z_ptrs + at, mask=inside, other=0).to(gl.float32).to(HALF)
            zeros = zeros.to(gl.int16, bitcast=True)
    return words, scales, zeros


@gluon.jit
def direct_kernel(
    out_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, x_ptr, bias_ptr, m, n, width, chunk, groups,
    group_k, group_n, stride_w, stride_scale, stride_x, KIND: gl.constexpr, BF16: gl.constexpr,
    ASM: gl.constexpr, PARTS: gl.constexpr, EVEN: gl.constexpr, BN: gl.constexpr, BM: gl.constexpr,
    BK: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = gl.num_warps()
    FP8: gl.constexpr = KIND == "fp8"
    BYTES: gl.constexpr = 128 if FP8 else 64  # of a chunk
    PAIR: gl.constexpr = 2 if FP8 else 1  # bytes of two columns
    CHUNKS: gl.constexpr = BK // (BYTES * WARPS)
    of_w: gl.constexpr = _tile(4, PAIR, 4, WARPS, CHUNKS, BN)
    of_x: gl.constexpr = _tile(16 // PAIR, PAIR, 16 // PAIR, WARPS, CHUNKS, BM)
    of_s: gl.constexpr = _tile(1, 1, KIND == "nvfp4", WARPS, CHUNKS, BN)
    sums: gl.constexpr = _sums(WARPS, BN, BM)
    of_y: gl.constexpr = gl.SliceLayout(0, sums)

    first, part = gl.program_id(0) * BN, gl.program_id(1)
    low = part * chunk
    high = gl.minimum(low + chunk, width)
    words_at = gl.arange(0, BK // 4, gl.SliceLayout(0, of_w))[None, :]
    w_ptrs = (
        w_ptr.to(gl.pointer_type(gl.int32)) + _rows(first, n, stride_w // 4, BN, of_w) + words_at
    )
    s_ptrs, z_ptrs = None, None
    if KIND == "nvfp4":
        pairs_at = gl.arange(0, BK // 16, gl.SliceLayout(0, of_s))[None, :]
        s_ptrs = scale_ptr.to(gl.pointer_type(gl.int16)) + pairs_at
        s_ptrs += _rows(first, n, stride_scale // 2, BN, of_s)
    elif scale_ptr is not None:
        s_rows = _rows(first, n, 1, BN, of_s) // group_n * stride_scale
        s_ptrs = scale_ptr + s_rows
        if zero_ptr is not None:
            z_ptrs = zero_ptr + s_rows
    words, scales, zeros = _weights(
        w_ptrs, s_ptrs, z_ptrs, low, high, group_k, KIND, BF16, EVEN, BK, BYTES, of_w, of_s
    )
    col = first + gl.arange(0, BN, gl.SliceLayout(1, of_y))
    if factor_ptr is not None:
        factor = gl.load(factor_ptr + gl.minimum(col, n - 1))
    if bias_ptr is not None:
        bias = gl.load(bias_ptr + gl.minimum(col, n - 1))
    gdc_wait()
    gdc_launch_dependents()
    token = gl.program_id(2) * BM + gl.arange(0, BM, gl.SliceLayout(1, of_x))[:, None]
    held, pair = token < m, gl.arange(0, BK // PAIR, gl.SliceLayout(0, of_x))[None, :]
    x_ptrs = x_ptr + token.to(gl.int64) * stride_x + pair
    x = gl.load(x_ptrs + low // PAIR, mask=held & (pair < (high - low) // PAIR), other=0)

    acc = gl.zeros([WARPS, BN, BM], gl.float32, sums)
    for at in range(low, high, BK):
        now, now_s, now_z, now_x = words, scales, zeros, x
        ahead = gl.minimum(at + BK, high - BK) if EVEN else at + BK
        words, scales, zeros = _weights(
            w_ptrs, s_ptrs, z_ptrs, ahead, high, group_k, KIND, BF16, EVEN, BK, BYTES, of_w, of_s
        )
        inside = held if EVEN else held & (pair < (high - ahead) // PAIR)
        x = gl.load(x_ptrs + ahead // PAIR, mask=inside, other=0)
        acc = multiply_chunks(acc, now, now_x, now_s, now_z, KIND, BF16, BN, BM, CHUNKS)

    y = gl.sum(acc, 0)
    if KIND == "nvfp4":
        y = y * 128.0  # what `fragments` leaves
    elif FP8 and not BF16:
        y = y * 256.0
    row = gl.program_id(2) * BM + gl.arange(0, BM, gl.SliceLayout(0, of_y))
    mine = (col < n)[:, None] & (row < m)[None, :]
    if PARTS:
        out = out_ptr + part.to(gl.int64) * m * n
    else:
        out = out_ptr
        if factor_ptr is not None:
            y = y * factor[:, None]
        if bias_ptr is not None:
            y = y + bias.to(gl.float32)[:, None]
    at = row.to(gl.int64)[None, :] * n + col[:, None]
    gl.store(out + at, y.to(out_ptr.dtype.element_ty), mask=mine)
