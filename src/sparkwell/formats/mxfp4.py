"""MXFP4: e2m1 codes and a power-of-two scale per 32 of a row (OCP microscaling specification)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparkwell.formats.floats import e2m1_decode, e2m1_unpack, ue8m0_decode
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    check_activations,
    check_device,
    check_groups,
    check_matrix,
    check_tensor,
)

GROUP = 32  # values of one scale


@dataclass(frozen=True, eq=False)
class Mxfp4(Quantized):
    """w[n, k] = e2m1(code[n, k]) * 2^(scales[n, k // 32] - 127).

    codes: [..., n, k/2] uint8; the even column in the low nibble.  k is a multiple of 32.
    scales: [..., n, k/32] uint8, E8M0; 255 is NaN.
    activations: "mxfp4", or an FP8 kind, where the checkpoint asks for them.
    Raises BadInput where types or shapes disagree.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    activations: Activations = "none"

    ROWS: ClassVar[tuple[str, ...]] = ("codes", "scales")

    def __post_init__(self) -> None:
        check_matrix("Mxfp4", "codes", self.codes, torch.uint8, "[..., n, k/2]")
        *lead, n, k = self.shape
        check_groups("Mxfp4", k, GROUP)
        of = f"for a weight {list(self.shape)}"
        check_tensor("Mxfp4", "scales", self.scales, torch.uint8, [*lead, n, k // GROUP], of)
        check_activations("Mxfp4", self.activations, None, lead)
        check_device(self)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """e2m1 * 2^(scale - 127) in fp32, where it is exact, then rounded; [..., n, k].

        Beyond fp32 (6 * 2^127) it is infinite.
        """
        values = e2m1_decode(e2m1_unpack(self.codes))
        return (values * ue8m0_decode(self.scales).repeat_interleave(GROUP, -1)).to(dtype)
