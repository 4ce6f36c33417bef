"""compat.deep_gemm: GEMMs as DeepGEMM's tests ask for them, layouts of scales, refusals."""

import inspect

import pytest
import torch

from sparkwell.compat import deep_gemm
from sparkwell.compat.deep_gemm import gemm, layout, utils
from sparkwell.errors import BadInput, Unsupported
from sparkwell.testing import in_poison

LIMIT = 1e-3  # of calc_diff, as in their tests
_NT = "(a, b, d, c=None, recipe=None, recipe_a=None, recipe_b=None, compiled_dims='nk', "
_TN = _NT.replace("nk", "mn")
_CAST = "disable_ue8m0_cast=False)"
_GROUPED = "(a, b, d, grouped_layout, recipe=None, recipe_a=None, recipe_b=None, "
_PSUM = "compiled_dims='nk', disable_ue8m0_cast=False, use_psum_layout=False, ensure_zero_padding="
SIGNATURES = {  # the interface of June 2026, from its C++ bindings
    "fp8_fp4_gemm_nt": _NT + _CAST,
    "fp8_fp4_gemm_nn": _NT + _CAST,
    "fp8_fp4_gemm_tn": _TN + _CAST,
    "fp8_fp4_gemm_tt": _TN + _CAST,
    "fp8_gemm_nt": _NT + _CAST,
    "fp8_gemm_tn": _TN + _CAST,
    "m_grouped_fp8_fp4_gemm_nt_contiguous": _GROUPED
    + _PSUM
    + "True, expected_m_for_psum_layout=None)",
    "m_grouped_fp8_gemm_nn_contiguous": _GROUPED + _PSUM + "True)",
    "m_grouped_fp8_gemm_nt_masked": "(a, b, d, masked_m, expected_m, recipe=None, recipe_a=None, "
    "recipe_b=None, compiled_dims='nk', disable_ue8m0_cast=False)",
    "k_grouped_fp8_gemm_nt_contiguous": "(a, b, d, ks_cpu, grouped_layout, c=None, "
    "recipe=(1, 1, 128), compiled_dims='mn', use_psum_layout=False)",
    "m_grouped_bf16_gemm_nt_masked": "(a, b, d, masked_m, expected_m, compiled_dims='nk')",
    "transform_sf_into_required_layout": "(sf, mn, k, recipe, num_groups=None, is_sfa=None, "
    "disable_ue8m0_cast=False, psum_layout=None)",
    "get_theoretical_mk_alignment_for_contiguous_layout": "(expected_m=None)",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    before = deep_gemm.get_mk_alignment_for_contiguous_layout()
    yield
    deep_gemm.set_mk_alignment_for_contiguous_layout(before)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(deep_gemm, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


LATER = {  # 2.8.1, from its Python layer
    "fp8_fp4_gemm_nt": _NT + "disable_ue8m0_cast=False, alpha=None, epilogue=None)",
    "fp8_gemm_tn": _TN + "disable_ue8m0_cast=False, alpha=None, epilogue=None)",
    "m_grouped_fp8_fp4_gemm_nt_contiguous": _GROUPED
    + _PSUM
    + "True, expected_m_for_psum_layout=None, epilogue=None)",
    "m_grouped_fp8_gemm_nt_masked": "(a, b, d, masked_m, expected_m, recipe=None, recipe_a=None, "
    "recipe_b=None, compiled_dims='nk', disable_ue8m0_cast=False, epilogue=None)",
    "k_grouped_fp8_gemm_nt_contiguous": "(a, b, d, ks_cpu, grouped_layout, c=None, "
    "recipe=(1, 1, 128), compiled_dims='mn', use_psum_layout=False, epilogue=None)",
}


@pytest.mark.parametrize("name", LATER)
def test_later_signature(name):
    parameters = inspect.signature(getattr(deep_gemm.v2_8, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == LATER[name]


def test_later_arguments_are_refused_where_given():
    x, w = torch.randn(3, 128), torch.randn(5, 128)
    d, want = torch.empty(3, 5), torch.empty(3, 5)
    deep_gemm.v2_8.fp8_gemm_nt(rows(x), blocks(w), d, alpha=None)
    deep_gemm.fp8_gemm_nt(rows(x), blocks(w), want)
    assert torch.equal(d, want)
    with pytest.raises(Unsupported, match=r"fp8_fp4_gemm_nt: (.|\n)*has no alpha"):
        deep_gemm.v2_8.fp8_gemm_nt(rows(x), blocks(w), d, alpha=2.0)


def close(got, want):
    diff = deep_gemm.testing.calc_diff(got, want)
    assert diff < LIMIT, diff


def rows(x):
    return utils.per_token_cast_to_fp8(x, use_ue8m0=False)


def blocks(x):
    return utils.per_block_cast_to_fp8(x, use_ue8m0=False)


@pytest.mark.parametrize("m,n,k", [(1, 130, 256), (70, 64, 320), (128, 256, 128)])
@pytest.mark.parametrize("major", ["nt", "nn", "tn", "tt"])
def test_gemm(m, n, k, major):
    x, w = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
    a, b = rows(x), blocks(w)
    a = a if major[0] == "n" else tuple(t.T.contiguous() for t in a)
    b = b if major[1] == "t" else tuple(t.T.contiguous() for t in b)
    d = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
    getattr(deep_gemm, f"fp8_gemm_{major}")(a, b, d)
    close(d, x.float() @ w.float().T)


def test_a_sum_goes_on_in_place_and_elsewhere():
    x, w = torch.randn(20, 256), torch.randn(24, 256)
    a, b = rows(x), utils.per_token_cast_to_fp8(w, use_ue8m0=False)
    c = torch.randn(20, 24) * 32
    d, want = c.clone(), x @ w.T + c
    deep_gemm.fp8_gemm_nt(a, b, d, c=d, recipe=(1, 1, 128))
    close(d, want)
    other = torch.empty(24, 20).T  # rows do not follow each other
    deep_gemm.fp8_gemm_nt(a, b, other, c=c, recipe_a=(1, 128), recipe_b=(1, 128))
    assert torch.equal(other, d)


def test_scales_of_any_stride_and_packed_ones():
    x, w = torch.randn(20, 640), torch.randn(256, 640)
    a, b = utils.per_token_cast_to_fp8(x, True), utils.per_token_cast_to_fp8(w, True)
    plain = torch.empty(20, 256)
    deep_gemm.fp8_gemm_nt(a, b, plain, recipe=(1, 1, 128))
    for turn in (
        deep_gemm.get_mn_major_tma_aligned_tensor,
        deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor,
        in_poison,
    ):
        d = torch.empty(20, 256)
        recipe = (1, 1, 128)
        deep_gemm.fp8_gemm_nt((a[0], turn(a[1])), (b[0], turn(b[1])), d, recipe=recipe)
        assert torch.equal(d, plain)
    packed = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor
    deep_gemm.fp8_gemm_nt((a[0], packed(a[1])), (b[0], packed(b[1])), d.fill_(7.0))
    assert torch.equal(d, plain)  # packed scales: one a row, unless a recipe says otherwise


def groups(ms, k, align):
    padded = [utils.align(m, align) for m in ms]
    x = torch.zeros(sum(padded), k)
    named = torch.full((sum(padded),), -1, dtype=torch.int32)
    ends, start = [], 0
    for i, (m, p) in enumerate(zip(ms, padded, strict=True)):
        x[start : start + m] = torch.randn(m, k)
        named[start : start + m] = i
        ends.append(start + m)
        start += p
    return x, named, torch.tensor(ends, dtype=torch.int32)


@pytest.mark.parametrize("psum", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_grouped_contiguous(psum, turned):
    deep_gemm.set_mk_alignment_for_contiguous_layout(32)
    x, named, ends = groups((5, 40, 0, 32), 256, 32)
    w = torch.randn(4, 96, 256)
    casts = [blocks(one) for one in w]
    b = tuple(torch.stack(part) for part in zip(*casts, strict=True))
    call = deep_gemm.m_grouped_fp8_gemm_nt_contiguous
    if turned:
        b, call = (b[0].mT, b[1].mT), deep_gemm.m_grouped_fp8_gemm_nn_contiguous
    d = torch.full((len(x), 96), float("nan"), dtype=torch.bfloat16)
    call(rows(x), b, d, ends if psum else named, use_psum_layout=psum)
    want = torch.zeros(len(x), 96)
    for i in range(4):
        want[named == i] = x[named == i] @ w[i].T
    close(d, want)  # padding included
    if not turned:
        y = torch.full((len(x), 96), float("nan"))
        layout_of = ends if psum else named
        deep_gemm.m_grouped_bf16_gemm_nt_contiguous(x, w, y, layout_of, use_psum_layout=psum)
        assert torch.allclose(y, want, atol=1e-3)


def test_grouped_masked_leaves_other_rows():
    x, w = torch.randn(3, 20, 256), torch.randn(3, 64, 256)
    a = tuple(torch.stack(part) for part in zip(*map(rows, x), strict=True))
    b = tuple(torch.stack(part) for part in zip(*map(blocks, w), strict=True))
    counts = torch.tensor([4, 0, 20], dtype=torch.int32)
    for call, operands in (
        (deep_gemm.m_grouped_fp8_gemm_nt_masked, (a, b)),
        (deep_gemm.m_grouped_bf16_gemm_nt_masked, (x, w)),
    ):
        d = torch.zeros(3, 20, 64)
        call(*operands, d, counts, 8)
        for g, count in enumerate(counts.tolist()):
            if count:
                close(d[g, :count], x[g, :count] @ w[g].T)


def test_k_grouped():
    ks, m, n = [128, 0, 256], 20, 24
    x, w, c = torch.randn(sum(ks), m), torch.randn(sum(ks), n), torch.randn(3, m, n)
    casts = [utils.per_channel_cast_to_fp8(t, use_ue8m0=False) for t in (x, w)]
    flat, start, want = ([], []), 0, c.clone()
    for g, k in enumerate(ks):
        for i in (0, 1):
            flat[i].append(casts[i][0][start : start + k].T.flatten())
        want[g] += x[start : start + k].T @ w[start : start + k]
        start += k
    a, b = ((torch.cat(flat[i]), casts[i][1].T) for i in (0, 1))
    d = c.clone()
    named = torch.tensor(ks, dtype=torch.int32)
    deep_gemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, ks, named, d)
    close(d, want)
    assert torch.equal(d[1], c[1])
    with pytest.raises(BadInput, match="want ks_cpu, and no psum layout"):
        deep_gemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, [], named, d)


def test_empty_products():
    a, b = rows(torch.randn(3, 128)), blocks(torch.randn(5, 128))
    none = (a[0][:, :0], a[1][:, :0])
    d = torch.full((3, 5), float("nan"))
    deep_gemm.fp8_gemm_nt(none, (b[0][:, :0], b[1][:, :0]), d)
    assert torch.equal(d, torch.zeros(3, 5))
    deep_gemm.fp8_gemm_nt((a[0][:0], a[1][:0]), b, d[:0])
    deep_gemm.fp8_gemm_nt(a, (b[0][:0], b[1][:0]), d[:, :0])


def test_plain_product_for_comparison():
    x, w = torch.randn(3, 16), torch.randn(5, 16)
    d, c = torch.empty(3, 5), torch.ones(3, 5)
    deep_gemm.cublaslt_gemm_nt(x, w, d)
    assert torch.allclose(d, x @ w.T)
    deep_gemm.cublaslt_gemm_nt(x, w, d, c=c)
    assert torch.allclose(d, x @ w.T + 1)


# ------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("shape", [(5, 3), (8, 2), (2, 5, 7)])
def test_scales_run_along_rows(shape):
    sf = torch.randn(shape)
    out = deep_gemm.get_mn_major_tma_aligned_tensor(sf)
    aligned = deep_gemm.get_tma_aligned_size(shape[-2], 4)
    assert aligned == {5: 8, 8: 8}[shape[-2]]
    assert torch.equal(out, sf)
    assert out.stride()[-2:] == (1, aligned)
    assert deep_gemm.get_mn_major_tma_aligned_tensor(out) is out


def test_packed_scales():
    sf = torch.exp2(torch.randint(-20, 20, (5, 6)).float())
    packed = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(sf)
    assert packed.dtype == torch.int32 and packed.shape == (5, 2) and packed.stride() == (1, 8)
    assert torch.equal(utils.unpack_ue8m0_from_int(packed)[:, :6], sf)
    assert not (packed[:, 1] >> 16).any()  # two scales are missing in the last word


def test_required_layout():
    sf = torch.randn(5, 2)
    call = deep_gemm.transform_sf_into_required_layout
    assert call(sf, 5, 256, (1, 128, 128), is_sfa=True).stride() == (1, 8)
    assert call(sf, 640, 256, (1, 128, 128), is_sfa=False) is sf
    assert call(sf[None], 640, 256, (128, 128), num_groups=1).shape == (1, 5, 2)
    assert call(torch.ones(5, 1, dtype=torch.int32), 5, 300, (1, 128)).stride() == (1, 8)
    with pytest.raises(BadInput, match=r"sf is torch.float32 \[5, 2\], want float32 .* \[6, 2\]"):
        call(sf, 6, 256, (1, 128))
    with pytest.raises(BadInput, match="is both operands', and is_sfa is None"):
        call(sf, 5, 256, (1, 128, 128))
    with pytest.raises(BadInput, match="is one operand's, and is_sfa is True"):
        call(sf, 5, 256, (1, 128), is_sfa=True)


def test_alignment():
    assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(3) == 128
    assert deep_gemm.get_m_alignment_for_contiguous_layout() == 128
    deep_gemm.set_mk_alignment_for_contiguous_layout(64)
    assert utils.get_mk_alignment_for_contiguous_layout() == 64
    assert utils.get_tma_aligned_size is layout.get_tma_aligned_size


def test_fp4_is_refused():
    a = utils.per_token_cast_to_fp4(torch.randn(3, 128), use_ue8m0=True)
    b = blocks(torch.randn(5, 128))
    with pytest.raises(Unsupported, match=r"a is torch.int8 \[3, 64\](.|\n)*FP4 is not served"):
        gemm.fp8_fp4_gemm_nt(a, b, torch.empty(3, 5))
