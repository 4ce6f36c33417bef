"""What DeepGEMM's callers and tests import from `deep_gemm.utils`: sizes, FP8 and FP4 casts.

value = e4m3(x * (1 / scale)), scale = max(amax, 1e-4) / 448; bit for bit theirs.
FP4 rounds ties to even, as in their 2.8.1; no op here reads FP4 operands yet.
"""

import torch

from sparkwell.compat.deep_gemm.layout import (
    align,
    ceil_div,
    get_k_alignment_for_contiguous_layout,
    get_m_alignment_for_contiguous_layout,
    get_mk_alignment_for_contiguous_layout,
    get_mn_major_tma_aligned_packed_ue8m0_tensor,
    get_mn_major_tma_aligned_tensor,
    get_theoretical_mk_alignment_for_contiguous_layout,
    get_tma_aligned_size,
    pack_ue8m0_to_int,
    set_mk_alignment_for_contiguous_layout,
    unpack_ue8m0_from_int,
)
from sparkwell.formats.floats import (
    E2M1_MAX,
    e2m1_decode,
    e2m1_encode,
    e2m1_pack,
    e2m1_unpack,
    e4m3_encode,
    pow2_ceil,
)
from sparkwell.formats.fp8 import AMAX_FLOOR, fp8_scales


def ceil_to_ue8m0(x: torch.Tensor) -> torch.Tensor:
    """|x| rounded up to a power of two, fp32."""
    return pow2_ceil(x.abs())


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale per `gran_k` values of a row: e4m3 [m, n], scales [m, ceil(n / gran_k)]."""
    m, n = x.shape
    values, scales = _cast_to_fp8(_padded(x, 1, gran_k).unflatten(1, (-1, gran_k)), (2,), use_ue8m0)
    scales = scales[..., 0]
    return values.flatten(1)[:, :n].contiguous(), _packed(scales) if use_packed_ue8m0 else scales


def per_channel_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale per `gran_k` values of a column: e4m3 [m, n], scales [m / gran_k, n]."""
    values, scales = _cast_to_fp8(x.unflatten(0, (-1, gran_k)), (1,), use_ue8m0)
    return values.flatten(0, 1), scales[:, 0]


def per_block_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale per square block: e4m3 [m, n], scales [ceil(m / gran_k), ceil(n / gran_k)]."""
    m, n = x.shape
    blocks = _padded(_padded(x, 0, gran_k), 1, gran_k).unflatten(1, (-1, gran_k))
    values, scales = _cast_to_fp8(blocks.unflatten(0, (-1, gran_k)), (1, 3), use_ue8m0)
    return values.flatten(2).flatten(0, 1)[:m, :n].contiguous(), scales[:, 0, :, 0]


def per_custom_dims_cast_to_fp8(
    x: torch.Tensor, dims: tuple, use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for each index along `dims`: e4m3 of x's shape, scales without dimensions of 1."""
    others = tuple(i for i in range(x.ndim) if i not in dims)
    values, scales = _cast_to_fp8(x, others, use_ue8m0)
    return values, scales.squeeze()


def per_token_cast_to_fp4(
    x: torch.Tensor, use_ue8m0: bool, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """e2m1 pairs [m, n / 2] int8, the even value in the low bits, and a scale per `gran_k`."""
    n = x.shape[1]
    groups = _padded(x, 1, gran_k).unflatten(1, (-1, gran_k)).float()
    scales = groups.abs().amax(2).clamp(min=AMAX_FLOOR) / E2M1_MAX
    scales = pow2_ceil(scales) if use_ue8m0 else scales
    codes = e2m1_encode(groups * (1.0 / scales[..., None])).flatten(1)[:, :n]
    codes = torch.where(codes == 8, 0, codes)  # they have no negative zero
    return e2m1_pack(codes).view(torch.int8), _packed(scales) if use_packed_ue8m0 else scales


def cast_back_from_fp4(
    packed: torch.Tensor, sf: torch.Tensor, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> torch.Tensor:
    """Inverse of `per_token_cast_to_fp4`, fp32 [m, n]."""
    scales = unpack_ue8m0_from_int(sf) if use_packed_ue8m0 else sf
    values = e2m1_decode(e2m1_unpack(packed.view(torch.uint8)))
    group = torch.arange(values.shape[1], device=values.device) // gran_k
    return values * scales[:, group]


def transpose_packed_fp4(a: torch.Tensor) -> torch.Tensor:
    """The transpose of an FP4 matrix, int8 [m, n / 2] -> [n, m / 2]."""
    codes = e2m1_unpack(a.view(torch.uint8)).T
    return e2m1_pack(codes).contiguous().view(torch.int8)


def _cast_to_fp8(
    x: torch.Tensor, dims: tuple[int, ...], use_ue8m0: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for all values along `dims`, which stay as dimensions of 1."""
    x = x.float()
    scales = fp8_scales(x.abs().amax(dims, keepdim=True), floor=AMAX_FLOOR, pow2=use_ue8m0)
    return e4m3_encode(x * (1.0 / scales)).view(torch.float8_e4m3fn), scales


def _padded(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """Zeros after a matrix's rows or columns up to a multiple."""
    missing = -x.shape[dim] % multiple
    return torch.nn.functional.pad(x, (0, 0, 0, missing) if dim == 0 else (0, missing))


def _packed(scales: torch.Tensor) -> torch.Tensor:
    """Exponent bytes, four an int32; a row whose count 4 does not divide ends with scales of 1."""
    missing = -scales.shape[-1] % 4
    return pack_ue8m0_to_int(torch.nn.functional.pad(scales, (0, missing), value=1.0))


__all__ = [
    "align",
    "cast_back_from_fp4",
    "ceil_div",
    "ceil_to_ue8m0",
    "get_k_alignment_for_contiguous_layout",
    "get_m_alignment_for_contiguous_layout",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp4",
    "per_token_cast_to_fp8",
    "set_mk_alignment_for_contiguous_layout",
    "transpose_packed_fp4",
    "unpack_ue8m0_from_int",
]
