"""Linear layers on weights of every format."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.linear.api import linear, linear_decision, linear_in_words, linear_quantizer
    from sparkwell.ops.linear.arithmetic import ARITHMETICS, Decision, Quantizer
    from sparkwell.ops.linear.reference import (
        activations_reference,
        fp8_block_gemm_reference,
        linear_reference,
        quantized_gemm_reference,
        quantized_linear_reference,
    )

__all__ = [
    "ARITHMETICS",
    "Decision",
    "Quantizer",
    "activations_reference",
    "fp8_block_gemm_reference",
    "linear",
    "linear_decision",
    "linear_in_words",
    "linear_quantizer",
    "linear_reference",
    "quantized_gemm_reference",
    "quantized_linear_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "arithmetic", "reference")
