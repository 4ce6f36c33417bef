"""Triton's CPU interpreter, corrected for what kernels here need.

As shipped (3.9) it multiplies the bit patterns of bfloat16 operands, in `tl.dot` and in binary
operations, and its own conversions truncate towards zero where the hardware rounds to nearest even
and read the e4m3 NaN as 480; block scales in e4m3 are read as
exponents.  `correct` replaces those methods by torch's conversions.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}
_UINTS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
E4M3_MAX = 448.0  # conversion to e4m3 saturates, infinities too (PTX cvt.rn.satfinite)


def _tensor(data: np.ndarray, dtype: Any) -> torch.Tensor:
    """The interpreter's array of a Triton float type, as torch reads it."""
    bits = np.array(data, copy=True, order="C")
    return torch.from_numpy(bits.view(np.uint8)).view(_DTYPES[dtype.name]).reshape(data.shape)


def _convert(data: Any, source: Any, wanted: Any, rounding: Any = None) -> np.ndarray:
    """Bits of `data`, a float of type `source`, converted to `wanted`, to nearest even."""
    values = _tensor(data.reshape(-1), source)
    if wanted.name == "fp8e4nv":
        values = values.float().clamp(-E4M3_MAX, E4M3_MAX)
    out = values.to(_DTYPES[wanted.name])
    bits = out.view(torch.uint8).numpy().view(_UINTS[wanted.primitive_bitwidth])
    return bits.reshape(data.shape)


def _as_fp32(handle: Any) -> np.ndarray:
    scalar = handle.dtype.scalar
    if scalar == tl.bfloat16 or scalar.is_fp8():
        return _tensor(handle.data.reshape(-1), scalar).float().numpy().reshape(handle.data.shape)
    return handle.data


def correct() -> None:
    """Patches the interpreter of this process; once is enough, twice does no harm."""
    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "sparkwell", False):
        return
    shipped_binary, shipped_cast = builder.binary_op, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        product = np.matmul(_as_fp32(a), _as_fp32(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16:
            return shipped_binary(self, lhs, rhs, op)
        out = op(_as_fp32(lhs), _as_fp32(rhs))
        if out.dtype == np.bool_:
            return interpreter.TensorHandle(out, tl.int1)
        return interpreter.TensorHandle(_convert(out, tl.float32, tl.bfloat16), tl.bfloat16)

    def cast_impl(self: Any, source: Any, wanted: Any) -> Any:
        pair = {source.dtype.scalar, wanted.scalar}
        if pair <= {tl.bfloat16, tl.float16, tl.float32} and tl.bfloat16 in pair:
            bits = _convert(source.data, source.dtype.scalar, wanted.scalar)
            return interpreter.TensorHandle(
                bits.view(interpreter._get_np_dtype(wanted)), wanted.scalar
            )
        if source.dtype.scalar == tl.bfloat16:  # to an integer or to fp64
            source = interpreter.TensorHandle(_as_fp32(source), tl.float32)
        elif wanted.scalar == tl.bfloat16:  # from an integer or from fp64
            source = shipped_cast(self, source, tl.float32)
            return cast_impl(self, source, wanted)
        return shipped_cast(self, source, wanted)

    shipped_scale = interpreter._dot_scaled_scale_to_f32

    def scale_to_f32(scale: Any, compute_type: Any) -> Any:
        """Scales of a block product: e4m3 ones are no exponents."""
        return _as_fp32(scale) if scale.dtype.is_fp8() else shipped_scale(scale, compute_type)

    interpreter._convert_float = _convert
    interpreter._dot_scaled_scale_to_f32 = scale_to_f32
    builder.create_dot = create_dot
    builder.binary_op = binary_op
    builder.cast_impl = cast_impl
    builder.sparkwell = True
