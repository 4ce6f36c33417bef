"""SwiGLU, and SwiGLU quantized."""

from sparkwell.ops.activation.api import swiglu, swiglu_quantized
from sparkwell.ops.activation.reference import swiglu_quantized_reference, swiglu_reference

__all__ = ["swiglu", "swiglu_quantized", "swiglu_quantized_reference", "swiglu_reference"]
