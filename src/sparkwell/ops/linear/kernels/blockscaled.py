"""NVFP4 times NVFP4 where matrix units take block scales:

y[m, n] = f_x[m] f_w[n] sum over blocks b of 16: s_x[m, b] s_w[n, b] (x[m, b] . w[n, b])

The units multiply codes and scales exactly and add in fp32.  Scales are read row by row, as they
are stored.
"""

import triton
import triton.language as tl

from sparkwell.ops.linear.kernels.scaled import tile_of


@triton.jit
def blockscaled_kernel(
    out_ptr, w_ptr, w_scale_ptr, w_factor_ptr, x_ptr, x_scale_ptr, x_factor_ptr, bias_ptr, m, n, k,
    chunk, stride_w, stride_w_scale, stride_x, stride_x_scale, PARTS: tl.constexpr,
    EVEN: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    at_n, at_m = tile_of(tl.program_id(0), tl.cdiv(n, BN), tl.cdiv(m, BM), 8)
    part = tl.program_id(1)
    low = part * chunk  # counted in blocks of 16 columns
    count = tl.minimum(chunk, k // 16 - low)
    col = at_n * BN + tl.arange(0, BN)
    row = at_m * BM + tl.arange(0, BM)
    n_at = tl.minimum(col, n - 1).to(tl.int64)
    m_at = tl.minimum(row, m - 1).to(tl.int64)
    byte = tl.arange(0, BK // 2)
    block = tl.arange(0, BK // 16)
    w_ptrs = w_ptr + n_at[:, None] * stride_w + low * 8 + byte[None, :]
    x_ptrs = x_ptr + m_at[:, None] * stride_x + low * 8 + byte[None, :]
    ws_ptrs = w_scale_ptr + n_at[:, None] * stride_w_scale + low + block[None, :]
    xs_ptrs = x_scale_ptr + m_at[:, None] * stride_x_scale + low + block[None, :]

    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(tl.cdiv(count, BK // 16)):
        b_at, s_at = step * (BK // 2), step * (BK // 16)
        if EVEN:
            w, x = tl.load(w_ptrs + b_at), tl.load(x_ptrs + b_at)
            ws, xs = tl.load(ws_ptrs + s_at), tl.load(xs_ptrs + s_at)
        else:  # scales of 0 as well: what stands there may be NaN
            inside = (byte < count * 8 - b_at)[None, :]
            held = (block < count - s_at)[None, :]
            w = tl.load(w_ptrs + b_at, mask=inside, other=0)
            x = tl.load(x_ptrs + b_at, mask=inside, other=0)
            ws = tl.load(ws_ptrs + s_at, mask=held, other=0.0)
            xs = tl.load(xs_ptrs + s_at, mask=held, other=0.0)
        acc = tl.dot_scaled(x, xs, "e2m1", tl.trans(w), ws, "e2m1", acc)

    mine = (row < m)[:, None] & (col < n)[None, :]
    acc *= tl.load(x_factor_ptr + m_at)[:, None] * tl.load(w_factor_ptr + n_at)[None, :]
    if PARTS:
        out = out_ptr + part.to(tl.int64) * m * n
    else:
        out = out_ptr
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + n_at).to(tl.float32)[None, :]
    at = m_at[:, None] * n + col[None, :]
    tl.store(out + at, acc.to(out_ptr.dtype.element_ty), mask=mine)
