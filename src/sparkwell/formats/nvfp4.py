"""NVFP4: e2m1 codes, an e4m3 scale per 16 of a row, an fp32 factor per row.

NVIDIA's format of compressed-tensors (`nvfp4-pack-quantized`) and ModelOpt (`NVFP4`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.floats import (
    E2M1_MAX,
    E4M3_MAX,
    e2m1_decode,
    e2m1_encode,
    e2m1_pack,
    e2m1_values,
    e4m3_encode,
)
from sparkwell.formats.quantized import (
    Activations,
    Quantized,
    by_groups,
    check_activations,
    check_device,
    check_groups,
    check_matrix,
    check_rows,
    check_tensor,
    divided,
    weight_values,
)

GROUP = 16  # values of one scale
RANGE = E2M1_MAX * E4M3_MAX  # largest value before the factor of the row: 2688
ZERO_BLOCK = 0.125  # compressed-tensors' scale of blocks whose own rounds to zero
SMALLEST_SCALE = 2.0**-9  # of e4m3
SEARCHED = range(-3, 8)  # e4m3 codes, from that of a block's largest value; others never win
# Smallest dynamic factor of a token; beneath, factor * scale could be a subnormal, which GPUs
# read as zero.
FACTOR_FLOOR = 2.0**-100


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
        exact = by_groups(e2m1_values(self.codes), self.scales.float())
        return (exact * self.row_scales[..., None]).to(dtype)


def quantize_nvfp4(
    w: torch.Tensor, *, amax: torch.Tensor | None = None, search: bool = False
) -> Nvfp4:
    """code = e2m1(w / (s / g)), s = e4m3(amax(block) / 6 * g), g = 2688 / amax, row_scales = 1 / g.

    Scales by the largest value, bit for bit those of compressed-tensors on fp32 weights, its rules
    for nothing included: a block whose scale rounds to zero gets 0.125 and codes of zero, a weight
    of zeros g = 1.

    w: [..., n, k] float, finite; k a multiple of 16.
    amax: [...] fp32 to share one g between shards that other software fuses; None: w's own.
    search: each block takes the scale of least squared error among the e4m3 values from three below
    to seven above that of its largest value; 27 % less of it on normal weights.
    Raises BadInput for a vector, integers, non-finite values, or k inside a block.
    """
    w = weight_values("quantize_nvfp4", w)
    check_groups("quantize_nvfp4", w.shape[-1], GROUP)
    if amax is None:
        amax = w.abs().flatten(-2).amax(-1) if w.numel() else w.new_zeros(w.shape[:-2])
    elif amax.dtype != torch.float32 or amax.shape != w.shape[:-2]:
        raise BadInput(
            f"quantize_nvfp4: amax is {amax.dtype} {list(amax.shape)}, want float32 "
            f"{list(w.shape[:-2])}, one value a weight"
        )
    # Rounded twice as that library's (a number by a tensor is a product with its inverse there).
    g = amax.clamp(min=torch.finfo(torch.float32).tiny).reciprocal() * RANGE
    g = torch.where(torch.isfinite(g), g, 1.0)[..., None, None]
    blocks = w.unflatten(-1, (-1, GROUP))
    wanted = divided(blocks.abs().amax(-1), E2M1_MAX) * g
    scales = e4m3_encode(wanted).view(torch.float8_e4m3fn).float()
    scales = torch.where(scales == 0, ZERO_BLOCK, scales)
    if search:
        scales = _searched(blocks, scales, g)
    # Adding zero makes a zero of -0, as that library's sign() does.
    codes = e2m1_encode(blocks / (scales / g)[..., None] + 0.0)
    rows = g.reciprocal()[..., 0].expand(w.shape[:-1]).contiguous()
    return Nvfp4(e2m1_pack(codes.flatten(-2)), scales.to(torch.float8_e4m3fn), rows)


def _searched(blocks: torch.Tensor, scales: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The scales of least squared error near the given ones, which win where others are equal."""
    codes = scales.to(torch.float8_e4m3fn).view(torch.uint8).int()
    best, least = scales, torch.full_like(scales, torch.inf)
    for step in sorted(SEARCHED, key=abs):
        near = (codes + step).clamp(1, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn).float()
        size = (near / g)[..., None]
        error = (e2m1_decode(e2m1_encode(blocks / size)) * size - blocks).square().sum(-1)
        best, least = torch.where(error < least, near, best), torch.minimum(error, least)
    return best


def quantize_nvfp4_tokens(x: torch.Tensor, input_scale: torch.Tensor | None = None) -> Nvfp4:
    """Activations: s = e4m3(clamp(amax(block) / (6 f), 2^-9, 448)), code = e2m1(x / (s f)).

    x: [..., m, k] float; k a multiple of 16.  One NaN makes its block NaN (its token where f is
    the token's); an infinity its token, or saturates where f is static.
    input_scale: f, one fp32, the checkpoint's own: what lies beyond 2688 f saturates.  None: per
    token, f = max(amax(token) / 2688, 2^-100).
    Returns the rows with f in `row_scales`; `dequantize` gives what the product then sees.
    Raises BadInput for integers, a vector, k inside a block, or a scale that is not one fp32.
    """
    check_rows("quantize_nvfp4_tokens", x, input_scale)
    check_groups("quantize_nvfp4_tokens", x.shape[-1], GROUP)
    blocks = x.float().unflatten(-1, (-1, GROUP))
    largest = blocks.abs().amax(-1)
    if input_scale is not None:
        factor = input_scale.reshape(()).expand(x.shape[:-1]).contiguous()
    elif x.shape[-1]:
        factor = divided(largest.amax(-1), RANGE).clamp(min=FACTOR_FLOOR)
    else:
        factor = largest.new_full(x.shape[:-1], FACTOR_FLOOR)
    wanted = largest / (factor * E2M1_MAX)[..., None]
    scales = e4m3_encode(wanted.clamp(SMALLEST_SCALE, E4M3_MAX)).view(torch.float8_e4m3fn)
    codes = e2m1_encode(blocks / (scales.float() * factor[..., None])[..., None])
    return Nvfp4(e2m1_pack(codes.flatten(-2)), scales, factor)


def swizzle_128x4(scales: torch.Tensor) -> torch.Tensor:
    """Scales in the order tensor cores of SM100 and CUTLASS read: tiles of 128 rows by 4 scales.

    Scale (r, c) lies at ((r // 128) * ceil(C / 4) + c // 4) * 512
    + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4.
    scales: [..., n, C] of one-byte elements; missing rows and scales of the last tiles are zeros.
    Returns [..., ceil(n / 128) * ceil(C / 4) * 512] of the same type.
    """
    *_, n, columns = scales.shape
    padded = torch.nn.functional.pad(_bytes(scales), (0, -columns % 4, 0, -n % 128))
    tiles = padded.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4, 32))  # [..., R, 4, 32, C/4, 4]
    order = (-5, -2, -3, -4, -1)
    lead = list(range(tiles.ndim - 5))
    return tiles.permute(*lead, *(tiles.ndim + i for i in order)).flatten(-5).view(scales.dtype)


def unswizzle_128x4(swizzled: torch.Tensor, n: int, columns: int) -> torch.Tensor:
    """Inverse of `swizzle_128x4`.  [..., bytes] -> [..., n, columns]; the padding is dropped."""
    rows, groups = -(-n // 128), -(-columns // 4)
    if swizzled.shape[-1] != rows * groups * 512:
        raise BadInput(
            f"unswizzle_128x4: {swizzled.shape[-1]} scales, want {rows * groups * 512} for "
            f"{n} rows of {columns}"
        )
    tiles = _bytes(swizzled).unflatten(-1, (rows, groups, 32, 4, 4))
    order = (-5, -2, -3, -4, -1)
    lead = list(range(tiles.ndim - 5))
    padded = tiles.permute(*lead, *(tiles.ndim + i for i in order)).flatten(-2).flatten(-4, -2)
    return padded[..., :n, :columns].contiguous().view(swizzled.dtype)


def _bytes(scales: torch.Tensor) -> torch.Tensor:
    if scales.dtype.itemsize != 1:
        raise BadInput(f"swizzle_128x4: scales are {scales.dtype}, want a type of one byte")
    return scales.contiguous().view(torch.uint8)
