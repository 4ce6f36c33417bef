"""Activations in FP8 and NVFP4."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.quantize.api import quantize_activations
    from sparkwell.ops.quantize.reference import quantize_activations_reference

__all__ = ["quantize_activations", "quantize_activations_reference"]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
