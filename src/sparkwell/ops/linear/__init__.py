"""Linear layers on plain and block-quantized weights."""

from sparkwell.ops.linear.api import linear
from sparkwell.ops.linear.reference import fp8_block_gemm_reference, linear_reference

__all__ = ["fp8_block_gemm_reference", "linear", "linear_reference"]
