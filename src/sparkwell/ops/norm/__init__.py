"""RMSNorm and LayerNorm over the last dimension."""

from sparkwell.ops.norm.api import layer_norm, rms_norm
from sparkwell.ops.norm.reference import layer_norm_reference, rms_norm_reference

__all__ = ["layer_norm", "layer_norm_reference", "rms_norm", "rms_norm_reference"]
