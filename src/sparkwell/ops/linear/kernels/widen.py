"""A quantized weight as a plain one:  w = code * scale, in fp32 and then rounded, as `dequantize`.

For many rows of x the plain weight pays for itself: it is made once and multiplied by torch.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import e4m3_value


@triton.jit
def _e2m1(code):
    bits = ((code.to(tl.int32) & 7) << 9) | ((code.to(tl.int32) & 8) << 12)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def _e8m0(code):
    bits = tl.where(code == 0, 0x400000, code.to(tl.int32) << 23)
    value = bits.to(tl.float32, bitcast=True)
    return tl.where(code == 255, float("nan"), value)


@triton.jit
def _value(code, scale_ptr, zero_ptr, at, mask, KIND: tl.constexpr):
    """What `code`, 4 or 8 bits of it, is worth with the scale at `at`."""
    if KIND == "fp8":
        value = e4m3_value(code)
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + at, mask=mask, other=0.0)
    elif KIND == "int4":
        if zero_ptr is None:
            value = code.to(tl.float32) - 8.0
        else:
            value = code.to(tl.float32) - tl.load(zero_ptr + at, mask=mask, other=0).to(tl.float32)
        value *= tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    else:
        scale = tl.load(scale_ptr + at, mask=mask, other=0)
        value = _e2m1(code) * (e4m3_value(scale) if KIND == "nvfp4" else _e8m0(scale))
    return value


@triton.jit
def widen_kernel(
    out_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, n, k, group_n, group_k, stride_w,
    stride_scale, KIND: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)[:, None]
    of_n = row < n
    scales = row // group_n * stride_scale
    EACH: tl.constexpr = 1 if KIND == "fp8" else 2  # columns of a byte
    byte = (tl.program_id(1) * BK + tl.arange(0, BK))[None, :]
    held = of_n & (byte * EACH < k)
    code = tl.load(w_ptr + row * stride_w + byte, mask=held, other=0)
    if KIND == "fp8":
        w = _value(code, scale_ptr, zero_ptr, scales + byte // group_k, held, KIND)
        col = byte
    else:
        low_at, high_at = scales + 2 * byte // group_k, scales + (2 * byte + 1) // group_k
        low = _value(code & 15, scale_ptr, zero_ptr, low_at, held, KIND)
        high = _value(code >> 4, scale_ptr, zero_ptr, high_at, held, KIND)
        w = tl.reshape(tl.join(low, high), (BN, 2 * BK))
        col = (tl.program_id(1) * 2 * BK + tl.arange(0, 2 * BK))[None, :]
    if factor_ptr is not None:
        w *= tl.load(factor_ptr + row, mask=of_n, other=0.0)
    tl.store(out_ptr + row * k + col, w.to(out_ptr.dtype.element_ty), mask=of_n & (col < k))
