"""DeepGEMM's FP8 and BF16 GEMMs over `grouped_linear`; its June 2026 names.

d[m, n] = sum_k a[m, k] * b[n, k] (+ c[m, n]), operands e4m3 times a scale for each block
Wider than theirs: every GPU target, CPU tensors, either major-ness of both operands, c and d of any
two types.  Arguments that only choose among their kernels (compiled_dims, expected_m) change
nothing.  Refused, with the reason: FP4 operands.
"""

from collections.abc import Sequence

import torch

from sparkwell.compat.deep_gemm.layout import (
    ceil_div,
    get_mk_alignment_for_contiguous_layout,
    granularity,
    unpack_ue8m0_from_int,
)
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.fp8 import Fp8Block
from sparkwell.ops.moe import grouped_linear

Scaled = tuple[torch.Tensor, torch.Tensor]  # values, scales
Sizes = Sequence[int] | None


def fp8_fp4_gemm_nt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """d = a b^T + c.

    a: [m, k] e4m3, scales [m, k / 128].  b: [n, k] e4m3, scales [n / 128, k / 128], or [n, k / 128]
    with recipe (1, 1, 128).  Scales are fp32, or int32 with four exponents each.
    """
    rows, columns = _operands("fp8_fp4_gemm_nt", a, b, recipe, recipe_a, recipe_b)
    weight = columns.changed(lambda _, t: t[None])
    _into(d, rows, weight, None, add=c)


def fp8_fp4_gemm_nn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """`fp8_fp4_gemm_nt` with b and its scales transposed."""
    fp8_fp4_gemm_nt(a, _turned(b), d, c, recipe, recipe_a, recipe_b)


def fp8_fp4_gemm_tn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "mn",
    disable_ue8m0_cast: bool = False,
) -> None:
    """`fp8_fp4_gemm_nt` with both operands and their scales transposed."""
    fp8_fp4_gemm_nt(_turned(a), _turned(b), d, c, recipe, recipe_a, recipe_b)


def fp8_fp4_gemm_tt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "mn",
    disable_ue8m0_cast: bool = False,
) -> None:
    """`fp8_fp4_gemm_nt` with a and its scales transposed."""
    fp8_fp4_gemm_nt(_turned(a), b, d, c, recipe, recipe_a, recipe_b)


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """d[r] = a[r] b[g(r)]^T.  a: [m, k].  b: [g, n, k].

    grouped_layout: int32 [m], each row's group, -1 for padding; use_psum_layout: int32 [g], where
    each group's rows end.  Groups begin at multiples of get_mk_alignment_for_contiguous_layout().
    Padding inside that becomes 0, asked for or not.
    """
    name = "m_grouped_fp8_fp4_gemm_nt_contiguous"
    rows, weight = _operands(name, a, b, recipe, recipe_a, recipe_b)
    layout = "ends" if use_psum_layout else "rows"
    expected = expected_m_for_psum_layout if use_psum_layout else None
    _into(d, rows, weight, grouped_layout, layout=layout, expected=expected)


def m_grouped_fp8_fp4_gemm_nn_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
) -> None:
    """`m_grouped_fp8_fp4_gemm_nt_contiguous` with each b and its scales transposed."""
    options = (recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast, use_psum_layout)
    m_grouped_fp8_fp4_gemm_nt_contiguous(a, _turned(b), d, grouped_layout, *options)


def m_grouped_fp8_fp4_gemm_nt_masked(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Sizes = None,
    recipe_a: Sizes = None,
    recipe_b: Sizes = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """d[g, r] = a[g, r] b[g]^T for r < masked_m[g]; other rows of d stay.  a: [g, m, k]."""
    rows, weight = _operands("m_grouped_fp8_fp4_gemm_nt_masked", a, b, recipe, recipe_a, recipe_b)
    _into(d, rows, weight, masked_m, layout="counted", expected=max(1, expected_m))


def k_grouped_fp8_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    ks_cpu: Sequence[int],
    grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Sequence[int] = (1, 1, 128),
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:
    """d[g] = a_g b_g^T + c[g], k of group g being ks_cpu[g]: a GEMM for each group.

    a: the groups' [m, k_g] one after the other, flat; scales [m, sum of k / 128].  b: likewise.
    """
    if use_psum_layout or not ks_cpu:
        raise BadInput("k_grouped_fp8_gemm_nt_contiguous: want ks_cpu, and no psum layout")
    groups, m, n = d.shape
    start = 0
    for group, k in zip(range(groups), ks_cpu, strict=True):
        parts = [
            (t[start * size : (start + k) * size].view(size, k), _part(sf, start, k, recipe[2]))
            for (t, sf), size in ((a, m), (b, n))
        ]
        added = None if c is None else c[group]
        fp8_fp4_gemm_nt(parts[0], parts[1], d[group], added, recipe)
        start += k


def m_grouped_bf16_gemm_nt_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    compiled_dims: str = "nk",
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """`m_grouped_fp8_fp4_gemm_nt_contiguous` of plain operands."""
    layout = "ends" if use_psum_layout else "rows"
    expected = expected_m_for_psum_layout if use_psum_layout else None
    _into(d, a, b, grouped_layout, layout=layout, expected=expected)


def m_grouped_bf16_gemm_nt_masked(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    compiled_dims: str = "nk",
) -> None:
    """`m_grouped_fp8_fp4_gemm_nt_masked` of plain operands."""
    _into(d, a, b, masked_m, layout="counted", expected=max(1, expected_m))


def cublaslt_gemm_nt(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None
) -> None:
    """d = a b^T + c without scales, by torch, for comparing times."""
    if a.dtype == torch.float8_e4m3fn and a.is_cuda:
        one = a.new_ones((), dtype=torch.float32)
        y = torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=d.dtype)
    else:
        y = a.to(d.dtype) @ b.to(d.dtype).t()
    d.copy_(y if c is None else y + c)


fp8_gemm_nt, fp8_gemm_nn = fp8_fp4_gemm_nt, fp8_fp4_gemm_nn
fp8_gemm_tn, fp8_gemm_tt = fp8_fp4_gemm_tn, fp8_fp4_gemm_tt
m_grouped_fp8_gemm_nt_contiguous = m_grouped_fp8_fp4_gemm_nt_contiguous
m_grouped_fp8_gemm_nn_contiguous = m_grouped_fp8_fp4_gemm_nn_contiguous
m_grouped_fp8_gemm_nt_masked = m_grouped_fp8_fp4_gemm_nt_masked
fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_fp4_gemm_nt_masked
bf16_m_grouped_gemm_nt_masked = m_grouped_bf16_gemm_nt_masked


def _turned(pair: Scaled) -> Scaled:
    return pair[0].mT, pair[1].mT


def _part(sf: torch.Tensor, start: int, k: int, gran_k: int) -> torch.Tensor:
    return sf[:, ceil_div(start, gran_k) : ceil_div(start + k, gran_k)]


def _operands(
    op: str, a: Scaled, b: Scaled, recipe: Sizes, recipe_a: Sizes, recipe_b: Sizes
) -> tuple[Fp8Block, Fp8Block]:
    """Both operands with the blocks their recipe says."""
    if recipe is None and (recipe_a is None or recipe_b is None):
        recipe = (1, 1 if b[1].dtype == torch.int32 else 128, 128)
    if recipe is not None:
        gran_m, gran_n, gran_k = recipe
        blocks = ((gran_m, gran_k), (gran_n, gran_k))
    else:
        assert recipe_a is not None and recipe_b is not None
        first, second = (granularity((x[0], x[1]), None) for x in (recipe_a, recipe_b))
        blocks = (first, second)
    return _block(op, "a", a, blocks[0]), _block(op, "b", b, blocks[1])


def _block(op: str, name: str, pair: Scaled, block: tuple[int, int]) -> Fp8Block:
    values, scales = pair
    if values.dtype != torch.float8_e4m3fn:
        raise Unsupported(
            op,
            f"{name} is {values.dtype} {list(values.shape)}",
            {"w8a8": "multiplies float8_e4m3fn operands only; FP4 is not served"},
            "cast it by per_token_cast_to_fp8",
        )
    if scales.dtype == torch.int32:
        scales = unpack_ue8m0_from_int(scales)[..., : ceil_div(values.shape[-1], block[1])]
    return Fp8Block(values, scales, block)


def _into(
    d: torch.Tensor,
    rows: torch.Tensor | Fp8Block,
    weight: torch.Tensor | Fp8Block,
    groups: torch.Tensor | None,
    *,
    layout: str = "rows",
    add: torch.Tensor | None = None,
    expected: int | None = None,
) -> None:
    """d = what `grouped_linear` makes; c of another layout is brought into d's first."""
    plain = d.is_contiguous()
    y = grouped_linear(
        rows,
        weight,
        groups,
        layout=layout,
        alignment=get_mk_alignment_for_contiguous_layout(),
        add=None if add is None else add.contiguous(),
        expected_rows=expected,
        out=d if plain else None,
        out_dtype=d.dtype,
    )
    if not plain:
        d.copy_(y)
