"""NVFP4 rows by NVFP4 weights, where matrix units take block scales: sums of one tile.

sum over blocks b of 16:  s_w[n, b] s_x[m, b] (w[n, b] . x[m, b])       exact products, fp32 sums
"""

import triton
import triton.language as tl


@triton.jit
def _scaled(ptr, rows, stride, first, WIDTH: tl.constexpr):
    """[rows, WIDTH] bytes of each row from `first` on."""
    return tl.load(ptr + rows[:, None] * stride + first + tl.arange(0, WIDTH)[None, :])


@triton.jit
def fp4_sums(
    w_ptr, scale_ptr, x_ptr, x_scale_ptr, rows, up_rows, source, k,
    stride_w, stride_s, stride_x, stride_xs, GATED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of the weight's `rows`, and of its `up_rows` where gated.  -> two of [BLOCK_N, BLOCK_M]"""
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    lifted = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for begin in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        half, block = begin // 2, begin // 16
        x = tl.trans(_scaled(x_ptr, source, stride_x, half, BLOCK_K // 2))
        x_scale = _scaled(x_scale_ptr, source, stride_xs, block, BLOCK_K // 16)
        w = _scaled(w_ptr, rows, stride_w, half, BLOCK_K // 2)
        scale = _scaled(scale_ptr, rows, stride_s, block, BLOCK_K // 16)
        total = tl.dot_scaled(w, scale, "e2m1", x, x_scale, "e2m1", total)
        if GATED:
            w = _scaled(w_ptr, up_rows, stride_w, half, BLOCK_K // 2)
            scale = _scaled(scale_ptr, up_rows, stride_s, block, BLOCK_K // 16)
            lifted = tl.dot_scaled(w, scale, "e2m1", x, x_scale, "e2m1", lifted)
    return total, lifted
