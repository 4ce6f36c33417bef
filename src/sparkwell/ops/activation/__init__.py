"""SwiGLU, and SwiGLU quantized."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.activation.api import swiglu, swiglu_quantized
    from sparkwell.ops.activation.reference import swiglu_quantized_reference, swiglu_reference

__all__ = ["swiglu", "swiglu_quantized", "swiglu_quantized_reference", "swiglu_reference"]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
