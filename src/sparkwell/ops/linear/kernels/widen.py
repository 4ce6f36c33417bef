"""A quantized weight as a plain one:  w = code * scale, in fp32 and then rounded, as `dequantize`.

For many rows of x the plain weight pays for itself: it is made once and multiplied by torch.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import e4m3_value
from sparkwell.ops.kernels.nibbles import along, e2m1_halves


@triton.jit
def _e8m0(code):
    bits = tl.where(code == 0, 0x400000, code.to(tl.int32) << 23)
    value = bits.to(tl.float32, bitcast=True)
    return tl.where(code == 255, float("nan"), value)


@triton.jit
def widen_kernel(
    out_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, n, k, group_n, group_k, stride_w,
    stride_scale, KIND: tl.constexpr, ASM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """GROUP: bytes of a block that certainly have one scale."""
    row = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)[:, None]
    of_n = row < n
    EACH: tl.constexpr = 1 if KIND == "fp8" else 2  # columns of a byte
    byte = (tl.program_id(0) * BK + tl.arange(0, BK))[None, :]
    code = tl.load(w_ptr + row * stride_w + byte, mask=of_n & (byte * EACH < k), other=0)
    first = (tl.program_id(0) * BK + tl.arange(0, BK // GROUP) * GROUP)[None, :] * EACH
    at, held = row // group_n * stride_scale + first // group_k, of_n & (first < k)
    zero = 8.0
    if zero_ptr is not None:
        zero = tl.load(zero_ptr + at, mask=held, other=0).to(tl.float32)
        zero = along(zero, BN, BK // GROUP, GROUP)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + at, mask=held, other=0)
        if KIND == "nvfp4":
            scale = e4m3_value(scale)
        elif KIND == "mxfp4":
            scale = _e8m0(scale)
        scale = along(scale.to(tl.float32), BN, BK // GROUP, GROUP)
    if KIND == "fp8":
        w = e4m3_value(code)
        if scale_ptr is not None:
            w *= scale
    else:
        if KIND == "int4":
            low, high = (code & 15).to(tl.float32) - zero, (code >> 4).to(tl.float32) - zero
        else:
            low, high = e2m1_halves(code, False, ASM)
            low, high = low.to(tl.float32) * 16384.0, high.to(tl.float32) * 16384.0
        w = tl.reshape(tl.join(low * scale, high * scale), (BN, 2 * BK))
    if factor_ptr is not None:
        w *= tl.load(factor_ptr + row, mask=of_n, other=0.0)
    col = (tl.program_id(0) * (EACH * BK) + tl.arange(0, EACH * BK))[None, :]
    tl.store(out_ptr + row * k + col, w.to(out_ptr.dtype.element_ty), mask=of_n & (col < k))
