"""Quantized activations in fp32 torch, by the quantizers that `formats` defines."""

import torch

from sparkwell.formats.fp8 import Fp8Block, Fp8Rows, quantize_fp8_rows, quantize_fp8_tokens
from sparkwell.formats.nvfp4 import Nvfp4, quantize_nvfp4_tokens


def quantize_activations_reference(
    x: torch.Tensor,
    activations: str,
    *,
    input_scale: torch.Tensor | None = None,
    group: int = 128,
) -> Fp8Rows | Fp8Block | Nvfp4:
    """The meaning of `quantize_activations`."""
    if activations == "fp8-group":
        return Fp8Block(*quantize_fp8_rows(x, group), (1, group))
    if activations == "nvfp4":
        return quantize_nvfp4_tokens(x, input_scale)
    return quantize_fp8_tokens(x, input_scale)
