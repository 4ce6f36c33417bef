"""compat.flash_mla: signatures as FlashMLA's, results as its tests define them."""

import inspect
import math

import pytest
import torch

from paged import GARBAGE, brute_force, ints, paged_batch, poisoned_cache, seen, starts
from sparkwell.compat import flash_mla
from sparkwell.errors import BadInput, Unsupported
from sparkwell.formats.kv import latent_record
from sparkwell.ops.attention import attention_prefill
from sparkwell.testing import assert_matches, in_poison

SIGNATURES = {  # of FlashMLA's interface of September 2026, without annotations
    "get_mla_metadata": "(*args, **kwargs)",
    "flash_mla_with_kvcache": "(q, k_cache, block_table, cache_seqlens, head_dim_v, "
    "tile_scheduler_metadata, num_splits=None, softmax_scale=None, causal=False, "
    "is_fp8_kvcache=False, indices=None, attn_sink=None, extra_k_cache=None, "
    "extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None, out=None, "
    "enable_batch_invariant=False)",
    "flash_mla_sparse_fwd": "(q, kv, indices, sm_scale, d_v=512, attn_sink=None, "
    "topk_length=None, out=None)",
    "flash_attn_varlen_func": "(q, k, v, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, "
    "max_seqlen_kv, dropout_p=0.0, softmax_scale=None, causal=False, deterministic=False, "
    "is_varlen=True)",
    "flash_attn_varlen_qkvpacked_func": "(qkv, cu_seqlens, max_seqlen, head_dim_qk, "
    "dropout_p=0.0, softmax_scale=None, causal=False, deterministic=False, is_varlen=True)",
    "flash_attn_varlen_kvpacked_func": "(q, kv, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, "
    "max_seqlen_kv, head_dim_qk, dropout_p=0.0, softmax_scale=None, causal=False, "
    "deterministic=False, is_varlen=True)",
}
INVALID = [-(2**31), -123456, -1, 114514, 2147480000, 2**31 - 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def meta():
    return flash_mla.get_mla_metadata("arguments", of="old callers")[0]


def plain(function):
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    assert plain(getattr(flash_mla, name)) == SIGNATURES[name]


def test_everything_their_package_exports_is_here():
    assert set(SIGNATURES) | {"FlashMLASchedMeta"} == set(flash_mla.__all__)
    assert flash_mla.get_mla_metadata()[1] is None


# ------------------------------------------------------------------------------------ sparse decode


def sparse_cache(dtype, num_pages, page):
    """A cache whose first slots are filled, [num_pages, page, 1, .], and what its slots hold."""
    cache = poisoned_cache(latent_record(dtype, scale="fp32"), num_pages, page)
    filled = torch.randperm(cache.num_slots)[: cache.num_slots // 2]
    cache.write(filled, torch.randn(len(filled), 576))
    values = torch.full((cache.num_slots, 576), math.nan)
    values[filled] = cache.read(filled)
    k_cache = cache.pages.unflatten(1, (page, 1, -1))
    k_cache = k_cache.view(torch.float8_e4m3fn if dtype == "fp8" else torch.bfloat16)
    return k_cache, filled.int(), values[:, None]


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
@pytest.mark.parametrize("page,s_q,heads", [(2, 1, 3), (61, 3, 5), (64, 2, 1)])
@pytest.mark.parametrize("sink,lengths", [(False, False), (True, True)])
def test_sparse_decode(dtype, page, s_q, heads, sink, lengths):
    b, topk = 3, 9
    k_cache, filled, values = sparse_cache(dtype, 122 // page, page)
    q = in_poison(torch.randn(b, s_q, heads, 576).bfloat16())
    indices = filled[torch.randint(len(filled), (b, s_q, topk))]
    indices[0, 0] = torch.tensor(INVALID).int()[torch.randint(6, (topk,))]
    indices[1, -1, ::3] = -1
    topk_length = ints(topk, 4, 0) if lengths else None
    if lengths:
        indices[1, :, 4:] = int((~values[:, 0, 0].isnan()).int().argmin())  # a slot full of NaN
    sinks = torch.tensor([0.5, math.inf, -math.inf, 2.0, -1.0])[:heads] if sink else None
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, k_cache, None, None, 512, meta(), None, 0.05, False, dtype == "fp8",
        in_poison(indices), sinks, topk_length=topk_length,
    )  # fmt: skip
    assert (out.shape, out.dtype) == ((b, s_q, heads, 512), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((b, heads, s_q), torch.float32)
    for i in range(b):
        for j in range(s_q):
            listed = indices[i, j, : topk if topk_length is None else int(topk_length[i])]
            slots = [s for s in listed.tolist() if 0 <= s < len(values)]
            want = brute_force(q[i, j], values, values[..., :512], slots, 0.05, sinks)
            assert_matches(out[i, j], want[0], "attention", "bf16")
            assert_matches(lse[i, :, j], want[1], "lse")


def test_the_caller_s_out_is_written_and_one_metadata_serves_one_shape():
    k_cache, filled, _ = sparse_cache("fp8", 4, 2)
    q, indices = torch.randn(2, 1, 2, 576).bfloat16(), filled[torch.randint(4, (2, 1, 5))]
    sched, out = meta(), torch.full((2, 1, 2, 512), math.nan, dtype=torch.bfloat16)

    def run(q, indices, **kwargs):
        return flash_mla.flash_mla_with_kvcache(
            q, k_cache, None, None, 512, sched, is_fp8_kvcache=True, indices=indices, **kwargs
        )

    fresh, lse = run(q, indices)
    given, same = run(q, indices, out=out)
    assert given is out and torch.equal(out, fresh) and torch.equal(lse, same)
    with pytest.raises(BadInput, match="topk=4.*topk=5"):
        run(q, indices[..., :4])
    with pytest.raises(BadInput, match="call get_mla_metadata"):
        run(q[:1], indices[:1])


# ------------------------------------------------------------------------------------ dense decode


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q,heads", [(1, 3), (3, 2)])
def test_dense_decode(dtype, causal, s_q, heads):
    lengths, page = [70, 0, 2, 64], 64
    record = latent_record(dtype)
    batch = paged_batch(record, [s_q] * 4, lengths, page_size=page)
    k_cache = batch.cache.pages.unflatten(1, (page, 1, -1))
    k_cache = k_cache if dtype == "fp8" else k_cache.view(torch.bfloat16)
    q = in_poison(torch.randn(4, s_q, heads, 576).bfloat16())
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, k_cache, batch.block_table, batch.context_lens, 512, meta(),
        causal=causal, is_fp8_kvcache=dtype == "fp8",
    )  # fmt: skip
    assert (out.shape, lse.shape) == ((4, s_q, heads, 512), (4, heads, s_q))
    for i, length in enumerate(lengths):
        kv = batch.contexts[i][:, None]
        for j in range(s_q):
            visible = seen(length - s_q + j, length, causal)
            want = brute_force(q[i, j], kv, kv[..., :512], visible, 576**-0.5)
            assert_matches(out[i, j], want[0], "attention", "bf16")
            assert_matches(lse[i, :, j], want[1], "lse")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads,h_k", [(4, 2), (3, 3), (6, 2)])
def test_dense_decode_with_several_key_heads(causal, heads, h_k):
    lengths, page, s_q = [5, 0, 9], 4, 2
    k_cache = torch.full((8, page, h_k, 576), math.nan).bfloat16()
    table = torch.full((3, 4), GARBAGE, dtype=torch.int32)
    table[0, :2], table[2, :3] = ints(6, 1), ints(2, 7, 0)
    kv = [torch.randn(n, h_k, 576).bfloat16() for n in lengths]
    for i, length in enumerate(lengths):
        for t in range(length):
            k_cache[table[i, t // page], t % page] = kv[i][t]
    q = in_poison(torch.randn(3, s_q, heads, 576).bfloat16())
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, k_cache, in_poison(table), ints(*lengths), 512, meta(), softmax_scale=0.03, causal=causal
    )
    for i, length in enumerate(lengths):
        for j in range(s_q):
            visible = seen(length - s_q + j, length, causal)
            want = brute_force(q[i, j], kv[i], kv[i][..., :512], visible, 0.03)
            assert_matches(out[i, j], want[0], "attention", "bf16")
            assert_matches(lse[i, :, j], want[1], "lse")


# ------------------------------------------------------------------------------------ prefill


@pytest.mark.parametrize("width,heads", [(512, 2), (576, 5)])
@pytest.mark.parametrize("features", [False, True])
def test_sparse_prefill(width, heads, features):
    s_q, s_kv, topk = 4, 13, 8
    q = in_poison(torch.randn(s_q, heads, width).bfloat16())
    kv = in_poison(torch.randn(s_kv, 1, width).bfloat16())  # rows far apart, NaN between them
    indices = torch.randint(s_kv, (s_q, 1, topk)).int()
    indices[1, 0, 2:] = ints(*INVALID)
    indices[2, 0, :] = s_kv
    lengths = ints(topk, 1, 3, 5) if features else None
    sinks = torch.tensor([-math.inf, 0.5, math.inf, 1.0, -3.0])[:heads] if features else None
    out = torch.full((s_q, heads, 512), math.nan, dtype=torch.bfloat16)
    got, top, lse = flash_mla.flash_mla_sparse_fwd(
        q, kv, in_poison(indices), 0.5, attn_sink=sinks, topk_length=lengths, out=out
    )
    assert got is out
    for t in range(s_q):
        listed = indices[t, 0, : topk if lengths is None else int(lengths[t])].tolist()
        visible = [s for s in listed if 0 <= s < s_kv]
        want = brute_force(q[t], kv, kv[..., :512], visible, 0.5, sinks)
        for have, wanted, kind in zip(
            (got, lse, top), want, ("attention", "lse", "lse"), strict=True
        ):
            assert_matches(have[t], wanted, kind, "bf16" if kind == "attention" else "fp32")


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attention_in_three_packings(causal):
    cu = starts([3, 0, 5])
    q, k, v = torch.randn(8, 2, 12), torch.randn(8, 2, 12), torch.randn(8, 2, 6)
    want = attention_prefill(q, k, v, cu, cu, scale=12**-0.5, causal=causal)
    lengths = (cu, cu, 5, 5)
    packed = torch.cat((q, k, v), -1)
    for got in (
        flash_mla.flash_attn_varlen_func(q, k, v, *lengths, causal=causal),
        flash_mla.flash_attn_varlen_kvpacked_func(q, packed[..., 12:], *lengths, 12, causal=causal),
        flash_mla.flash_attn_varlen_qkvpacked_func(packed, cu, 5, 12, causal=causal),
    ):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    scaled = flash_mla.flash_attn_varlen_func(q, k, v, *lengths, softmax_scale=0.7, causal=causal)
    assert torch.equal(scaled[0], attention_prefill(q, k, v, cu, cu, scale=0.7, causal=causal)[0])


# ------------------------------------------------------------------------------------ refusals


def decode(q_shape=(2, 1, 4, 576), cache=(3, 64, 1, 576), dtype=torch.bfloat16, **kwargs):
    arguments = {"indices": torch.zeros(*q_shape[:2], 4, dtype=torch.int32)} | kwargs
    fp8 = arguments.pop("is_fp8_kvcache", dtype != torch.bfloat16)
    k_cache = torch.zeros(cache, dtype=dtype)
    return flash_mla.flash_mla_with_kvcache(
        torch.zeros(q_shape).bfloat16(), k_cache, arguments.pop("table", None),
        arguments.pop("lens", None), 512, meta(), is_fp8_kvcache=fp8, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    "d,nbytes,layout",
    [(576, 352, "NVFP4"), (512, 584, "V4"), (512, 528, "V4.1"), (512, 288, "FP4"), (576, 7, "unk")],
)
def test_other_models_caches_are_refused_by_name(d, nbytes, layout):
    with pytest.raises(Unsupported, match=f"layout .*{layout}(.|\n)*656 bytes"):
        decode((2, 1, 4, d), (3, 64, 1, nbytes), torch.uint8)


@pytest.mark.parametrize("name", ["extra_k_cache", "extra_indices_in_kvcache", "extra_topk_length"])
def test_a_second_cache_is_refused(name):
    with pytest.raises(Unsupported, match="extra_k_cache"):
        decode(**{name: torch.zeros(1)})


@pytest.mark.parametrize(
    "kwargs,error,text",
    [
        ({"enable_batch_invariant": True}, Unsupported, "enable_batch_invariant"),
        ({"num_splits": torch.zeros(1)}, BadInput, "num_splits"),
        ({"is_fp8_kvcache": True}, BadInput, "is_fp8_kvcache is True, but k_cache is bfloat16"),
        ({"causal": True}, BadInput, "causal is True with indices"),
        ({"indices": None}, BadInput, "want block_table and cache_seqlens"),
        ({"cache": (3, 64, 2, 576)}, BadInput, "2 key heads"),
        ({"indices": torch.zeros(1, 1, 4).int()}, BadInput, r"want \[2, 1, topk\]"),
        ({"q_shape": (2, 1, 4, 500), "cache": (3, 64, 1, 500)}, Unsupported, "bfloat16"),
    ],
)  # fmt: skip
def test_decode_refuses(kwargs, error, text):
    with pytest.raises(error, match=text):
        decode(**kwargs)


def test_dense_decode_refuses():
    dense = {"indices": None, "table": torch.zeros(2, 1).int(), "lens": ints(1, 1)}
    with pytest.raises(BadInput, match="attn_sink and topk_length need indices"):
        decode(attn_sink=torch.zeros(4), **dense)
    with pytest.raises(BadInput, match="4 query heads over 3 key heads"):
        decode(cache=(3, 64, 3, 576), **dense)
    k_cache = torch.zeros(3, 64, 4, 576).bfloat16()
    tables = (torch.zeros(2, 1).int(), ints(1, 1))
    q = torch.zeros(2, 1, 4, 576).bfloat16()
    with pytest.raises(Unsupported, match="contiguous cache only"):
        flash_mla.flash_mla_with_kvcache(q, k_cache[:, :, :2], *tables, 512, meta())
    with pytest.raises(BadInput, match="side by side"):
        flash_mla.flash_mla_with_kvcache(q, k_cache[:, :, :1], *tables, 512, meta())


def test_prefill_refuses():
    q, cu = torch.zeros(2, 1, 576).bfloat16(), starts([2])
    with pytest.raises(BadInput, match="s_kv, 1, d"):
        flash_mla.flash_mla_sparse_fwd(q, torch.zeros(3, 2, 576), torch.zeros(2, 1, 4).int(), 0.5)
    with pytest.raises(BadInput, match="dropout_p is 0.1"):
        flash_mla.flash_attn_varlen_func(q, q, q, cu, cu, 2, 2, 0.1)
    with pytest.raises(Unsupported, match="forward pass only"):
        flash_mla.flash_attn_varlen_func(q.requires_grad_(), q, q, cu, cu, 2, 2)
