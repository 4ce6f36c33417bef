"""DeepGEMM's sizes and layouts of scales: rows side by side, padded for copies of 16 bytes.

Nothing here needs them: the GEMMs take scales in any strides, packed exponents too.
"""

import torch

from sparkwell.errors import BadInput

Recipe = tuple[int, int, int] | tuple[int, int]
_THEORETICAL = 128
_mk_alignment = 128  # rows a group of a grouped GEMM starts at a multiple of


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def align(x: int, y: int) -> int:
    """The smallest multiple of y that is not below x."""
    return ceil_div(x, y) * y


def get_mk_alignment_for_contiguous_layout() -> int:
    """The alignment last set, 128 before."""
    return _mk_alignment


def set_mk_alignment_for_contiguous_layout(value: int) -> None:
    """Keeps the value for the getter; the ops here read nothing of it."""
    global _mk_alignment
    _mk_alignment = value


get_m_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout
get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout


def pack_ue8m0_to_int(x: torch.Tensor) -> torch.Tensor:
    """Powers of two, fp32 [..., 4n], to their exponent bytes, four in an int32 [..., n]."""
    return (x.view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)


def unpack_ue8m0_from_int(packed_sf: torch.Tensor) -> torch.Tensor:
    """Inverse of `pack_ue8m0_to_int`."""
    return (packed_sf.contiguous().view(torch.uint8).int() << 23).view(torch.float32)


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """The smallest number of elements from x on that fills whole 16 bytes."""
    return align(x, 16 // element_size)


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    """128, as on Hopper, whatever is expected."""
    return _THEORETICAL


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """The same values, [mn, k] or [g, mn, k], with mn running fastest, padded to 16 bytes."""
    lead, (mn, k) = sf.shape[:-2], sf.shape[-2:]
    stride = get_tma_aligned_size(mn, sf.element_size())
    strides = (*([stride * k] * len(lead)), 1, stride)
    if sf.stride() == strides:
        return sf
    out = torch.empty_strided(sf.shape, strides, dtype=sf.dtype, device=sf.device)
    return out.copy_(sf)


def get_mn_major_tma_aligned_packed_ue8m0_tensor(
    sf: torch.Tensor, psum_layout: torch.Tensor | None = None
) -> torch.Tensor:
    """Powers of two as exponent bytes, four of a row an int32, with mn running fastest.

    psum_layout: changes nothing; rows of no group are packed, too.
    """
    padded = torch.nn.functional.pad(sf, (0, -sf.shape[-1] % 4))
    return get_mn_major_tma_aligned_tensor(pack_ue8m0_to_int(padded.contiguous()))


def transform_sf_into_required_layout(
    sf: torch.Tensor,
    mn: int,
    k: int,
    recipe: Recipe,
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    psum_layout: torch.Tensor | None = None,
) -> torch.Tensor:
    """What Hopper's GEMMs want: a scale per row with mn running fastest, one per block as it is.

    recipe: (gran_m, gran_n, gran_k), with is_sfa, or (gran_mn, gran_k).
    Raises BadInput where the shape is not the recipe's.
    """
    gran_mn, gran_k = granularity(recipe, is_sfa)
    packed = 4 if sf.dtype == torch.int32 else 1
    want = [ceil_div(mn, gran_mn), ceil_div(k, gran_k * packed)]
    if num_groups is not None:
        want = [num_groups, *want]
    if list(sf.shape) != want or sf.dtype not in (torch.float32, torch.int32):
        raise BadInput(
            f"transform_sf_into_required_layout: sf is {sf.dtype} {list(sf.shape)}, want float32 "
            f"(or packed int32) {want} for mn {mn}, k {k} in blocks of {gran_mn} x {gran_k}"
        )
    return get_mn_major_tma_aligned_tensor(sf) if gran_mn == 1 else sf


def granularity(recipe: Recipe, is_sfa: bool | None) -> tuple[int, int]:
    """Rows and columns of a scale."""
    if len(recipe) == 2:
        if is_sfa is not None:
            raise BadInput(f"recipe {recipe} is one operand's, and is_sfa is {is_sfa}; want None")
        return recipe
    if is_sfa is None:
        raise BadInput(f"recipe {recipe} is both operands', and is_sfa is None; want a bool")
    return recipe[0 if is_sfa else 1], recipe[2]
