"""Linear layers on plain and block-quantized weights."""

from sparkwell.ops.linear.api import linear
from sparkwell.ops.linear.reference import (
    activations_reference,
    fp8_block_gemm_reference,
    linear_reference,
    quantized_gemm_reference,
    quantized_linear_reference,
)

__all__ = [
    "activations_reference",
    "fp8_block_gemm_reference",
    "linear",
    "linear_reference",
    "quantized_gemm_reference",
    "quantized_linear_reference",
]
