"""NVFP4: e2m1 codes, an e4m3 scale per 16 of a row, an fp32 factor per row.

NVIDIA's format of compressed-tensors (`nvfp4-pack-quantized`) and ModelOpt (`NVFP4`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparkwell.formats.floats import e2m1_decode, e2m1_unpack
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    check_activations,
    check_device,
    check_groups,
    check_matrix,
    check_tensor,
)

GROUP = 16  # values of one scale


@dataclass(frozen=True, eq=False)
class Nvfp4(Quantized):
    """w[n, k] = e2m1(code[n, k]) * scales[n, k // 16] * row_scales[n].

    codes: [..., n, k/2] uint8; the even column in the low nibble.  k is a multiple of 16.
    scales: [..., n, k/16] float8_e4m3fn, row-major.
    row_scales: [..., n] fp32, a multiplier: ModelOpt's weight_scale_2, 1 / compressed-tensors'
    weight_global_scale.  One for a whole tensor stands here once a row, so that tensors of
    different scales can be put one below the other.
    activations: "nvfp4", "fp8-token" or "fp8-tensor", where the checkpoint asks for them.
    input_scale: [...] fp32, the multiplier of the activations (amax / 2688 for NVFP4, amax / 448
    for FP8); None: not fixed.
    Raises BadInput where types or shapes disagree.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    row_scales: torch.Tensor
    activations: Activations = "none"
    input_scale: torch.Tensor | None = None

    ROWS: ClassVar[tuple[str, ...]] = ("codes", "scales", "row_scales")

    def __post_init__(self) -> None:
        check_matrix("Nvfp4", "codes", self.codes, torch.uint8, "[..., n, k/2]")
        *lead, n, k = self.shape
        check_groups("Nvfp4", k, GROUP)
        of = f"for a weight {list(self.shape)}"
        want = [*lead, n, k // GROUP]
        check_tensor("Nvfp4", "scales", self.scales, torch.float8_e4m3fn, want, of)
        check_tensor("Nvfp4", "row_scales", self.row_scales, torch.float32, [*lead, n], of)
        check_activations("Nvfp4", self.activations, self.input_scale, lead)
        check_device(self)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(e2m1 * scales) * row_scales in fp32, then rounded to `dtype`; [..., n, k].

        The first product is exact; a NaN scale gives 16 NaNs, a negative one their negatives.
        """
        values = e2m1_decode(e2m1_unpack(self.codes))
        exact = values * self.scales.float().repeat_interleave(GROUP, -1)
        return (exact * self.row_scales[..., None]).to(dtype)
