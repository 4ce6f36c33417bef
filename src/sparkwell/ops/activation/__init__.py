"""SwiGLU."""

from sparkwell.ops.activation.api import swiglu
from sparkwell.ops.activation.reference import swiglu_reference

__all__ = ["swiglu", "swiglu_reference"]
