"""INT4: codes 0..15 with a scale, and perhaps a zero point, per group of a row.

The canonical form of AWQ, GPTQ and compressed-tensors' `pack-quantized`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.floats import e2m1_pack as nibbles_pack
from sparkwell.formats.floats import e2m1_unpack as nibbles_unpack
from sparkwell.formats.limits import INT4_MIDDLE as MIDDLE
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    by_groups,
    check_device,
    check_groups,
    check_matrix,
    check_tensor,
    divided,
    weight_values,
)


@dataclass(frozen=True, eq=False)
class Int4Group(Quantized):
    """w[n, order[j]] = (code[n, j] - zeros[n, j // group]) * scales[n, j // group].

    codes: [..., n, k/2] uint8; the even column j in the low nibble.
    scales: [..., n, k/group] bf16, fp16 or fp32.
    zeros: [..., n, k/group] uint8, any value; None: 8.
    group: values of one scale; k is a multiple of it.
    order: [k] int32, a permutation: stored column j multiplies x[order[j]] (GPTQ's act-order, for
    all of a stack); None: x[j].
    Raises BadInput where types or shapes disagree, and on a CPU where order is no permutation.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group: int
    order: torch.Tensor | None = None

    activations: ClassVar[Activations] = "none"
    input_scale: ClassVar[None] = None
    ROWS: ClassVar[tuple[str, ...]] = ("codes", "scales", "zeros")

    def __post_init__(self) -> None:
        check_matrix("Int4Group", "codes", self.codes, torch.uint8, "[..., n, k/2]")
        *lead, n, k = self.shape
        check_groups("Int4Group", k, self.group)
        want, of = [*lead, n, k // self.group], f"for a weight {list(self.shape)}"
        floats = (torch.bfloat16, torch.float16, torch.float32)
        check_tensor("Int4Group", "scales", self.scales, floats, want, of)
        if self.zeros is not None:
            check_tensor("Int4Group", "zeros", self.zeros, torch.uint8, want, of)
        if self.order is not None:
            check_tensor("Int4Group", "order", self.order, torch.int32, [k], of)
            # Elsewhere reading it would be a wait.
            if self.order.is_cpu and not _is_permutation(self.order):
                raise BadInput(
                    f"Int4Group: order is no permutation of 0 to {k - 1}; some columns of x would "
                    "be multiplied twice or not at all"
                )
        check_device(self)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""
        return torch.Size((*self.codes.shape[:-1], 2 * self.codes.shape[-1]))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(code - zero) * scale in fp32, then rounded to `dtype`; [..., n, k].

        Its columns stand in the order of x: `order` is undone.
        """
        codes = nibbles_unpack(self.codes).to(torch.int16)
        if self.zeros is None:
            values = codes - MIDDLE
        else:
            zeros = self.zeros.to(torch.int16)
            values = codes - zeros.repeat_interleave(self.group, -1)
        w = by_groups(values.float(), self.scales.float()).to(dtype)
        if self.order is None:
            return w
        return torch.empty_like(w).index_copy_(-1, self.order.long(), w)


def _is_permutation(order: torch.Tensor) -> bool:
    expected = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return torch.equal(order.sort().values, expected)


def quantize_int4(
    w: torch.Tensor,
    *,
    group: int = 128,
    zero_points: bool = False,
    scale_dtype: torch.dtype = torch.float32,
) -> Int4Group:
    """code = clamp(round(w / scale + zero), 0, 15), scales by the largest values of each group.

    Without zero points scale = amax / 7.5 and zero = 8; with them scale = (max - min) / 15, where
    max and min reach at least 0, and zero = round(-min / scale).  Ties go to even; scales that
    would be zero are 2^-23.  On fp32 weights bit for bit compressed-tensors' codes and scales.

    w: [..., n, k] float, finite; k a multiple of group.
    scale_dtype: the scales are rounded to it first; codes are by the rounded ones.
    Raises BadInput for a vector, integers, non-finite values, or k inside a group.
    """
    w = weight_values("quantize_int4", w)
    check_groups("quantize_int4", w.shape[-1], group)
    groups = w.unflatten(-1, (-1, group))
    high, low = groups.amax(-1).clamp(min=0), groups.amin(-1).clamp(max=0)
    wanted = divided(high - low, 15) if zero_points else divided(torch.maximum(high, -low), 7.5)
    scales = wanted.to(scale_dtype)
    scales = torch.where(scales == 0, torch.finfo(torch.float32).eps, scales).to(scale_dtype)
    factor, zeros = scales.float()[..., None], None
    scaled = groups / factor
    if zero_points:
        # Like that library: -8 stands for 0 while the zero points are rounded.
        middle = (-MIDDLE - low / factor[..., 0]).clamp(-MIDDLE, 7).round()
        zeros = (middle + MIDDLE).to(torch.uint8)
        scaled = scaled + middle[..., None]
    codes = (scaled.clamp(-MIDDLE, 7).round() + MIDDLE).to(torch.uint8)
    return Int4Group(nibbles_pack(codes.flatten(-2)), scales, zeros, group)
