"""FP8 weights with a scale per block or per row, FP8 activations with a scale per group of a row.

Blocks and groups are the formats of DeepSeek-V3 (arXiv 2412.19437, section 3.3); a scale per row
is compressed-tensors' `float-quantized` and ModelOpt's FP8.  value = e4m3 * fp32 scale in all.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.floats import E4M3_MAX, e4m3_encode, pow2_ceil
from sparkwell.formats.limits import AMAX_FLOOR, AMAX_TINY
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    check_activations,
    check_device,
    check_matrix,
    check_rows,
    check_tensor,
    divided,
    weight_values,
)


@dataclass(frozen=True, eq=False)
class Fp8Block(Quantized):
    """w[n, k] = values[n, k] * scales[n // block[0], k // block[1]].

    values: [..., n, k] float8_e4m3fn; the last block of a row or column may be partial.
    scales: [..., ceil(n / block[0]), ceil(k / block[1])] fp32; "weight_scale_inv" on disk, which
    is multiplied despite its name.
    activations: "fp8-group" where they are quantized per token and block[1] values.
    Raises BadInput where types or shapes disagree.
    """

    values: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int] = (128, 128)
    activations: Activations = "none"

    input_scale: ClassVar[None] = None
    ROWS: ClassVar[tuple[str, ...]] = ("values", "scales")

    def __post_init__(self) -> None:
        values, (bn, bk) = self.values, self.block
        check_matrix("Fp8Block", "values", values, torch.float8_e4m3fn, "[..., n, k]")
        if bn < 1 or bk < 1:
            raise BadInput(f"Fp8Block: block is {self.block}, want two positive sizes")
        *lead, n, k = values.shape
        want = [*lead, -(-n // bn), -(-k // bk)]
        of = f"for values {list(values.shape)} in blocks of {bn} x {bk}"
        check_tensor("Fp8Block", "scales", self.scales, torch.float32, want, of)
        check_activations("Fp8Block", self.activations, None, lead)
        check_device(self)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""
        return self.values.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """values * scales, the product in fp32 and then rounded to `dtype`; [..., n, k]."""
        n, k = self.shape[-2:]
        scales = self.scales.repeat_interleave(self.block[0], -2)[..., :n, :]
        scales = scales.repeat_interleave(self.block[1], -1)[..., :k]
        return (self.values.float() * scales).to(dtype)


@dataclass(frozen=True, eq=False)
class Fp8Rows(Quantized):
    """w[n, k] = values[n, k] * scales[n].

    values: [..., n, k] float8_e4m3fn.
    scales: [..., n] fp32; one scale for a whole tensor stands here once a row, so that tensors of
    different scales can be put one below the other.
    activations: "fp8-token" or "fp8-tensor".
    input_scale: [...] fp32, the checkpoint's amax / 448 of the activations; None: not fixed.
    Raises BadInput where types or shapes disagree.
    """

    values: torch.Tensor
    scales: torch.Tensor
    activations: Activations = "none"
    input_scale: torch.Tensor | None = None

    ROWS: ClassVar[tuple[str, ...]] = ("values", "scales")

    def __post_init__(self) -> None:
        check_matrix("Fp8Rows", "values", self.values, torch.float8_e4m3fn, "[..., n, k]")
        *lead, n, _ = self.values.shape
        of = f"for values {list(self.values.shape)}"
        check_tensor("Fp8Rows", "scales", self.scales, torch.float32, [*lead, n], of)
        check_activations("Fp8Rows", self.activations, self.input_scale, lead)
        check_device(self)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight itself, [..., n, k]."""
        return self.values.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """values * scales, the product in fp32 and then rounded to `dtype`; [..., n, k]."""
        return (self.values.float() * self.scales[..., None]).to(dtype)


def fp8_scales(amax: torch.Tensor, *, floor: float, pow2: bool) -> torch.Tensor:
    """scale = max(amax, floor) / 448, with `pow2` rounded up to a power of two; fp32.

    A NaN or infinite amax gives a NaN or infinite scale.
    """
    scales = divided(amax.clamp(min=floor), E4M3_MAX)
    return pow2_ceil(scales) if pow2 else scales


def quantize_fp8_block(
    w: torch.Tensor, *, pow2: bool = False, block: tuple[int, int] = (128, 128)
) -> Fp8Block:
    """scale = amax(block) / 448, values = e4m3(w / scale); scales are at least 2^-126.

    w: [..., n, k] float, finite.  pow2: scales rounded up to powers of two (DeepSeek-V3.2).
    Raises BadInput for a vector, integers, or non-finite values.
    """
    w = weight_values("quantize_fp8_block", w)
    *lead, n, k = w.shape
    bn, bk = block
    padded = torch.nn.functional.pad(w, (0, -k % bk, 0, -n % bn))
    rows, columns = padded.shape[-2] // bn, padded.shape[-1] // bk
    blocks = padded.reshape(*lead, rows, bn, columns, bk)
    scales = fp8_scales(blocks.abs().amax((-3, -1)), floor=AMAX_TINY, pow2=pow2)
    scaled = (blocks / scales[..., :, None, :, None]).reshape(padded.shape)[..., :n, :k]
    return Fp8Block(e4m3_encode(scaled).view(torch.float8_e4m3fn), scales, block)


def quantize_fp8_channels(w: torch.Tensor) -> Fp8Rows:
    """scale = amax(row) / 448, values = e4m3(w / scale); scales are at least 2^-126.

    w: [..., n, k] float, finite.
    Raises BadInput for a vector, integers, or non-finite values.
    """
    w = weight_values("quantize_fp8_channels", w)
    scales = fp8_scales(_amax(w), floor=AMAX_TINY, pow2=False)
    values = e4m3_encode(w / scales[..., None]).view(torch.float8_e4m3fn)
    return Fp8Rows(values, scales)


def quantize_fp8_tokens(x: torch.Tensor, input_scale: torch.Tensor | None = None) -> Fp8Rows:
    """Activations: values = e4m3(x / scale), one scale per token.

    x: [..., m, k] float; one NaN makes its whole token NaN, and so does an infinity where scales
    are dynamic (it saturates where they are not).
    input_scale: one fp32, the checkpoint's own (ModelOpt's, compressed-tensors' static tensor
    strategy); None: max(amax(token), 1e-4) / 448.
    Returns the quantized rows; `dequantize` gives what the product then sees.
    Raises BadInput for integers, a vector, or a scale that is not one fp32.
    """
    check_rows("quantize_fp8_tokens", x, input_scale)
    x = x.float()
    if input_scale is None:
        scales = fp8_scales(_amax(x), floor=AMAX_FLOOR, pow2=False)
    else:
        scales = input_scale.reshape(()).expand(x.shape[:-1]).contiguous()
    values = e4m3_encode(x / scales[..., None]).view(torch.float8_e4m3fn)
    return Fp8Rows(values, scales)


def _amax(rows: torch.Tensor) -> torch.Tensor:
    """[..., k] -> [...], 0 where k is 0."""
    return rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[:-1])


def quantize_fp8_rows(
    x: torch.Tensor, group: int = 128, pow2: bool = False, *, floor: float = AMAX_FLOOR
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max(amax(group), floor) / 448, values = e4m3(x / scale), per `group` along a row.

    x: [..., k] float; the last group of a row may be partial.  One NaN or infinity makes its whole
    group NaN when dequantized.  pow2: scales rounded up to powers of two.
    Returns values [..., k] float8_e4m3fn, scales [..., ceil(k / group)] fp32.
    Raises BadInput for integers or a group below 1.  Source: DeepSeek-V3, arXiv 2412.19437, 3.3.
    """
    if group < 1 or not x.is_floating_point() or x.ndim < 1:
        raise BadInput(
            f"quantize_fp8_rows: x is {x.dtype} {list(x.shape)} in groups of {group}, want "
            "float [..., k] and a group of at least 1"
        )
    k = x.shape[-1]
    groups = torch.nn.functional.pad(x.float(), (0, -k % group))
    groups = groups.reshape(*x.shape[:-1], -(-k // group), group)
    scales = fp8_scales(groups.abs().amax(-1), floor=floor, pow2=pow2)
    values = (groups / scales[..., None]).flatten(-2)[..., :k]
    return e4m3_encode(values).view(torch.float8_e4m3fn), scales


def dequantize_fp8_rows(
    values: torch.Tensor, scales: torch.Tensor, group: int = 128
) -> torch.Tensor:
    """x[..., k] = values[..., k] * scales[..., k // group], in fp32.

    values: [..., k] float8_e4m3fn; scales: [..., ceil(k / group)] fp32.
    Raises BadInput where the shapes disagree.
    """
    k = values.shape[-1]
    want = [*values.shape[:-1], -(-k // group)]
    if values.dtype != torch.float8_e4m3fn or list(scales.shape) != want:
        raise BadInput(
            f"dequantize_fp8_rows: values {values.dtype} {list(values.shape)}, scales "
            f"{list(scales.shape)}; want float8_e4m3fn and scales {want}"
        )
    return values.float() * scales.float().repeat_interleave(group, -1)[..., :k]
