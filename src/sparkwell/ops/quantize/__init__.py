"""Activations in FP8 and NVFP4."""

from sparkwell.ops.quantize.api import quantize_activations
from sparkwell.ops.quantize.reference import quantize_activations_reference

__all__ = ["quantize_activations", "quantize_activations_reference"]
