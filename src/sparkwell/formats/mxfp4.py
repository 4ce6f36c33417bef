"""MXFP4: e2m1 codes and a power-of-two scale per 32 of a row (OCP microscaling specification)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.floats import (
    E2M1_MAX,
    e2m1_encode,
    e2m1_pack,
    e2m1_values,
    ue8m0_decode,
    ue8m0_encode,
)
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    by_groups,
    check_activations,
    check_device,
    check_groups,
    check_matrix,
    check_tensor,
    divided,
    weight_values,
)

GROUP = 32  # values of one scale
Rule = Literal["nearest", "floor", "ceil"]


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

    input_scale: ClassVar[None] = None
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
        return by_groups(e2m1_values(self.codes), ue8m0_decode(self.scales)).to(dtype)


def quantize_mxfp4(w: torch.Tensor, *, rule: Rule = "nearest") -> Mxfp4:
    """code = e2m1(w / 2^e), e by the largest value of each block:

    "floor": floor(log2 amax) - 2, the OCP specification's: values from 6 up to 8 saturate.
    "nearest": one more where amax is at least 1.75 times a power of two: only values up to 7
    saturate.  compressed-tensors' rule, bit for bit on fp32 weights.
    "ceil": ceil(log2(amax / 6)): nothing saturates.
    e lies in -127 to 127; blocks of zeros have -127.

    w: [..., n, k] float, finite; k a multiple of 32.
    Raises BadInput for a vector, integers, non-finite values, k inside a block, another rule.
    """
    w = weight_values("quantize_mxfp4", w)
    check_groups("quantize_mxfp4", w.shape[-1], GROUP)
    if rule not in get_args(Rule):
        raise BadInput(f"quantize_mxfp4: rule is {rule!r}, want one of {', '.join(get_args(Rule))}")
    blocks = w.unflatten(-1, (-1, GROUP))
    largest = blocks.abs().amax(-1)
    if rule == "ceil":
        scales = ue8m0_encode(divided(largest, E2M1_MAX))
    else:
        bits = largest.view(torch.int32) + (1 << 21 if rule == "nearest" else 0)
        scales = ((bits >> 23) - 2).clamp(0, 254).to(torch.uint8)
    # Adding zero makes a zero of -0, as that library's sign() does.
    codes = e2m1_encode(blocks / ue8m0_decode(scales)[..., None] + 0.0)
    return Mxfp4(e2m1_pack(codes.flatten(-2)), scales)
