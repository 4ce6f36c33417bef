"""RMSNorm and LayerNorm over the last dimension, and RMSNorm quantized."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.norm.api import (
        add_rms_norm,
        add_rms_norm_quantized,
        layer_norm,
        rms_norm,
        rms_norm_quantized,
    )
    from sparkwell.ops.norm.reference import (
        add_rms_norm_quantized_reference,
        add_rms_norm_reference,
        layer_norm_reference,
        rms_norm_quantized_reference,
        rms_norm_reference,
    )

__all__ = [
    "add_rms_norm",
    "add_rms_norm_quantized",
    "add_rms_norm_quantized_reference",
    "add_rms_norm_reference",
    "layer_norm",
    "layer_norm_reference",
    "rms_norm",
    "rms_norm_quantized",
    "rms_norm_quantized_reference",
    "rms_norm_reference",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "reference")
