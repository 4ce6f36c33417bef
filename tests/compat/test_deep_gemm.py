"""compat.deep_gemm: signatures as DeepGEMM's, logits as its tests define them."""

import inspect
import math

import pytest
import torch

from paged import GARBAGE, ints
from sparkwell.compat import deep_gemm
from sparkwell.compat.deep_gemm import logits, v2_8
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import index_key_record
from sparkwell.formats.paged import PagedCache
from sparkwell.testing import assert_matches, cosine_gap, in_poison

JUNE = {  # the interface of June 2026, from its C++ bindings
    "fp8_fp4_mqa_logits": "(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, "
    "clean_logits=True, max_seqlen_k=0, logits_dtype=torch.float32)",
    "fp8_mqa_logits": "(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits=True, "
    "max_seqlen_k=0)",
    "fp8_fp4_paged_mqa_logits": "(q, kv_cache, weights, context_lens, block_table, schedule_meta, "
    "max_context_len, clean_logits=False, logits_dtype=torch.float32, indices=None)",
    "fp8_paged_mqa_logits": "(q, kv_cache, weights, context_lens, block_table, schedule_meta, "
    "max_context_len, clean_logits=False, indices=None)",
    "get_paged_mqa_logits_metadata": "(context_lens, block_kv, num_sms, indices=None)",
    "get_num_sms": "()",
}
LATER = {  # 2.8.1, from its Python layer and the schemas of its operators
    "fp8_fp4_mqa_logits": "(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k, "
    "schedule_meta=None)",
    "fp8_fp4_paged_mqa_logits": "(q, kv_cache, weights, context_lens, block_table, schedule_meta, "
    "max_context_len, indices=None)",
    "get_mqa_logits_metadata": "(cu_seq_len_k_start, cu_seq_len_k_end, num_kv_tokens, num_heads)",
    "get_paged_mqa_logits_metadata": "(context_lens, block_kv, num_sms, indices=None)",
    "get_num_sms": "()",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "where,name,want",
    [(deep_gemm, *row) for row in JUNE.items()] + [(v2_8, *row) for row in LATER.items()],
)
def test_signature(where, name, want):
    parameters = inspect.signature(getattr(where, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == want


def scores(q, k, weights):
    """[H, D], [n, D], [H] -> [n], as the formula reads, in fp64."""
    return (weights.double()[:, None] * (q.double() @ k.double().T).clamp(min=0)).sum(0).float()


# ------------------------------------------------------------------------------------ prefill


def prefill(num_rows=5, num_keys=70, heads=3, dim=32):
    q = torch.randn(num_rows, heads, dim).to(torch.float8_e4m3fn)
    values, scales = deep_gemm.utils.per_custom_dims_cast_to_fp8(
        torch.randn(num_keys, dim), (0,), False
    )
    weights = in_poison(torch.randn(num_rows, heads))
    first, last = ints(0, 10, 69, 33, 4), ints(70, 26, 70, 33, 5)
    want = torch.full((num_rows, num_keys), -math.inf)
    k = values.float() * scales[:, None]
    for m, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        want[m, start:stop] = scores(q[m].float(), k[start:stop], weights[m])
    return (q, None), (values, scales), weights, first, last, want


@pytest.mark.parametrize("heads,dim", [(1, 32), (32, 64), (3, 128)])
def test_prefill_logits_are_minus_infinity_outside(heads, dim):
    q, kv, weights, first, last, want = prefill(heads=heads, dim=dim)
    got = deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, first, last)
    assert_matches(got, want, "indexer")
    assert torch.equal(got, deep_gemm.fp8_mqa_logits(q[0], kv, weights, first, last))
    rounded = deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, first, last, logits_dtype=torch.bfloat16)
    assert torch.equal(rounded, got.bfloat16())


def test_prefill_logits_from_each_row_s_first_key():
    q, kv, weights, first, last, want = prefill()
    width = int((last - first).max())
    bounds = (weights, first, last)
    for got in (
        deep_gemm.fp8_mqa_logits(q[0], kv, *bounds, clean_logits=False, max_seqlen_k=width),
        v2_8.fp8_fp4_mqa_logits(q, kv, *bounds, width),
    ):
        assert (got.shape, got.dtype) == ((5, width), torch.float32)
        for m, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            assert_matches(got[m, : stop - start], want[m, start:stop], "indexer")
    low = v2_8.fp8_fp4_mqa_logits(q, kv, weights.bfloat16(), first, last, width)
    assert low.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------ paged decode


@pytest.mark.parametrize("page,next_n,heads", [(64, 2, 3), (3, 1, 32)])
def test_paged_logits(page, next_n, heads):
    record = index_key_record("fp8", scale="fp32")
    need = [-(-n // page) for n in (70, 1, 130)]
    num_blocks = sum(need) + 2
    blocks = torch.full((num_blocks, record.page_nbytes(page) + 8), 255, dtype=torch.uint8)
    cache = PagedCache(record, page, blocks[:, :-8])
    order = torch.randperm(num_blocks)
    table = torch.full((3, max(need) + 1), GARBAGE, dtype=torch.int32)
    contexts = []
    for i, length in enumerate((70, 1, 130)):
        pages, order = order[: need[i]], order[need[i] :]
        table[i, : need[i]] = pages
        slots = pages[torch.arange(length) // page] * page + torch.arange(length) % page
        cache.write(slots, torch.randn(length, 128))
        contexts.append(cache.read(slots))
    lens = ints(*([0, 70, 1, 0, 65, 130] if next_n == 2 else [70, 1, 130])).view(3, next_n)
    q = torch.randn(3, next_n, heads, 128).to(torch.float8_e4m3fn)
    weights = torch.randn(3 * next_n, heads)
    kv_cache = cache.pages.unflatten(1, (page, 1, 132))
    meta = deep_gemm.get_paged_mqa_logits_metadata(lens, page, deep_gemm.get_num_sms())
    assert meta.shape == (deep_gemm.get_num_sms() + 1, 2) and meta.dtype == torch.int32
    arguments = (kv_cache, weights, lens, in_poison(table), meta, 140)
    got = deep_gemm.fp8_fp4_paged_mqa_logits((q, None), *arguments)
    assert (got.shape, got.dtype) == ((3 * next_n, 140), torch.float32)
    same = deep_gemm.fp8_paged_mqa_logits(q, *arguments)
    later = v2_8.fp8_fp4_paged_mqa_logits((q, None), *arguments)
    low = deep_gemm.fp8_fp4_paged_mqa_logits((q, None), *arguments, logits_dtype=torch.bfloat16)
    narrow = (kv_cache, weights.bfloat16(), *arguments[2:])
    assert v2_8.fp8_fp4_paged_mqa_logits((q, None), *narrow).dtype == torch.bfloat16
    for row in range(3 * next_n):
        i, j = divmod(row, next_n)
        seen = int(lens[i, j])
        want = scores(q[i, j].float(), contexts[i][:seen], weights[row])
        assert_matches(got[row, :seen], want, "indexer")
        assert torch.equal(got[row, :seen], same[row, :seen])
        assert torch.equal(got[row, :seen], later[row, :seen])
        assert torch.equal(got[row, :seen].bfloat16(), low[row, :seen])


# ------------------------------------------------------------------------------------ refusals


def test_what_is_refused():
    q, kv, weights, first, last, _ = prefill()
    fp4 = (torch.zeros(5, 3, 16, dtype=torch.int8), torch.zeros(5, 3, dtype=torch.int32))
    with pytest.raises(Unsupported, match="FP4"):
        deep_gemm.fp8_fp4_mqa_logits(fp4, kv, weights, first, last)
    with pytest.raises(BadInput, match="clean_logits with max_seqlen_k"):
        deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, first, last, max_seqlen_k=70)
    q = torch.zeros(2, 1, 3, 128).to(torch.float8_e4m3fn)
    kv_cache, lens = torch.zeros(2, 64, 1, 132, dtype=torch.uint8), ints(1, 1).view(2, 1)
    rest = (torch.zeros(2, 3), lens, torch.zeros(2, 1).int(), torch.zeros(133, 2).int(), 64)
    with pytest.raises(BadInput, match="clean_logits with"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q, None), kv_cache, *rest, clean_logits=True)
    with pytest.raises(BadInput, match=r"\[num_blocks, page, 1, 132\]"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q, None), kv_cache[..., :68], *rest)
    with pytest.raises(BadInput, match="whole blocks"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q, None), kv_cache[:, ::2], *rest)
    with pytest.raises(BadInput, match=r"want \[B, next_n, H, D\]"):
        deep_gemm.fp8_fp4_paged_mqa_logits((q[:1], None), kv_cache, *rest)


def test_the_metadata_of_either_version_is_opaque():
    assert v2_8.get_mqa_logits_metadata(ints(0), ints(1), 1, 32).numel() == 0
    assert deep_gemm.utils is not None and logits.get_num_sms() > 0


# ------------------------------------------------------------------------------------ helpers


def cast(x, scale):
    return (x.float() * (1.0 / scale)).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("ue8m0", [False, True])
def test_fp8_casts_are_theirs_bit_for_bit(ue8m0):
    utils = deep_gemm.utils
    x = torch.randn(70, 200).bfloat16() * torch.logspace(-7, 3, 200)
    x[3] = 0

    def scale_of(block):
        scale = block.float().abs().max().clamp(1e-4) / 448.0
        return 2.0 ** scale.log2().ceil() if ue8m0 else scale

    values, scales = utils.per_token_cast_to_fp8(x, ue8m0, gran_k=128)
    assert (values.shape, scales.shape) == ((70, 200), (70, 2))
    blocks, block_scales = utils.per_block_cast_to_fp8(x, ue8m0, gran_k=64)
    assert (blocks.shape, block_scales.shape) == ((70, 200), (2, 4))
    columns, column_scales = utils.per_channel_cast_to_fp8(x, ue8m0, gran_k=35)
    assert (columns.shape, column_scales.shape) == ((70, 200), (2, 200))
    rows, row_scales = utils.per_custom_dims_cast_to_fp8(x, (0,), ue8m0)
    assert (rows.shape, row_scales.shape) == ((70, 200), (70,))
    ties = 7.0 * torch.tensor([448, *range(17, 32, 2)])  # by 1 / 7 some round otherwise than over 7
    halves, its_scale = utils.per_custom_dims_cast_to_fp8(ties[None], (0,), ue8m0)
    assert torch.equal(halves.view(torch.uint8), cast(ties[None], its_scale).view(torch.uint8))
    for cut, got, scale in (
        (x[5, 128:], values[5, 128:], scales[5, 1]),
        (x[3, :128], values[3, :128], scales[3, 0]),
        (x[64:, 192:], blocks[64:, 192:], block_scales[1, 3]),
        (x[35:, 7], columns[35:, 7], column_scales[1, 7]),
        (x[69], rows[69], row_scales[69]),
    ):
        assert scale == scale_of(cut)
        assert torch.equal(got.view(torch.uint8), cast(cut, scale).view(torch.uint8))


def test_packed_scales_and_fp4():
    utils = deep_gemm.utils
    x = torch.randn(6, 96)
    values, packed = utils.per_token_cast_to_fp8(x, True, gran_k=32, use_packed_ue8m0=True)
    _, plain = utils.per_token_cast_to_fp8(x, True, gran_k=32)
    assert packed.dtype == torch.int32 and packed.shape == (6, 1)
    assert torch.equal(utils.unpack_ue8m0_from_int(packed)[:, :3], plain)
    for ue8m0, pack in ((False, False), (True, False), (True, True)):
        pairs, scales = utils.per_token_cast_to_fp4(x, ue8m0, 32, pack)
        assert (pairs.dtype, pairs.shape) == (torch.int8, (6, 48))
        back = utils.cast_back_from_fp4(pairs, scales, 32, pack)
        assert cosine_gap(back, x) < 0.02
        again = utils.per_token_cast_to_fp4(back, ue8m0, 32, pack)
        assert torch.equal(utils.cast_back_from_fp4(*again, 32, pack), back)
    tiny, _ = utils.per_token_cast_to_fp4(torch.tensor([[-1e-9, 6.0]]), False, 2)
    assert int(tiny) == 0x70  # no negative zero
    turned = utils.transpose_packed_fp4(pairs)
    assert turned.shape == (96, 3) and torch.equal(utils.transpose_packed_fp4(turned), pairs)
    assert (int(turned[1, 0]) & 15) == (int(pairs[0, 0]) >> 4 & 15)


def test_sizes():
    utils = deep_gemm.utils
    assert (utils.ceil_div(7, 3), utils.align(7, 3), utils.align(6, 3)) == (3, 9, 6)
    assert utils.get_mk_alignment_for_contiguous_layout() == 128
    utils.set_mk_alignment_for_contiguous_layout(64)
    assert utils.get_m_alignment_for_contiguous_layout() == 64
    utils.set_mk_alignment_for_contiguous_layout(128)


def test_comparisons(capsys):
    testing = deep_gemm.testing
    x = torch.randn(3, 4)
    assert testing.calc_diff(x, x) == 0 and testing.calc_diff(x * 0, x * 0) == 0
    assert testing.calc_diff(x, -x) == pytest.approx(2)
    assert testing.count_bytes(x, None, (x.half(), [x.byte()])) == 48 + 24 + 12
    testing.assert_bitwise_equal(x, x.clone())
    testing.assert_bitwise_equal(torch.tensor([math.nan]), torch.tensor([math.nan]))
    y = x.clone()
    y[1, 2] = -y[1, 2]
    with pytest.raises(AssertionError, match=r"name: 1 of 12 .*first at \(1, 2\)"):
        testing.assert_bitwise_equal(x, y, "name")
    with pytest.raises(AssertionError):
        testing.assert_bitwise_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    with pytest.raises(BadInput, match="trace_path"):
        testing.bench_kineto(lambda: None, "name", trace_path="here")
    called = []
    testing.test_filter(lambda: False)(called.append)(1)
    assert not called and "left out" in capsys.readouterr().out
    testing.test_filter(lambda: True)(called.append)(2)
    testing.ignore_env("NAME", lambda: True)(called.append)(3)
    assert called == [2, 3] and testing.get_arch_major() == 9
