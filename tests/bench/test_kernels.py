"""The gate, the peers and the record of a timed line, without a GPU."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.fakes import FakeClock, bench, reference_as_kernel
from sparkwell.bench.cases import LINES, Line
from sparkwell.bench.kernels import OURS, _entry, run_line, run_lines, shown
from sparkwell.bench.peers import PeerMissing, Peers
from sparkwell.bench.protocol import Sample
from sparkwell.errors import BadInput
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import speed

CPU = torch.device("cpu")

LOADERS = '''
import torch
from sparkwell.formats.kv import index_key_record, latent_record
from sparkwell.formats.paged import PagedCache
from sparkwell.ops.indexer import index_logits_paged_reference, index_logits_reference
from sparkwell.ops.attention.reference import attention_prefill_reference
from sparkwell.ops.mla.reference import mla_paged_reference, mla_sparse_reference

VERSIONS = {"flash_mla": "1.2.3"}
OFF = 0.0


class flash_mla:
    """FlashMLA's calls as the references understand them."""

    @staticmethod
    def get_mla_metadata():
        return object(), None

    @staticmethod
    def flash_mla_with_kvcache(q, pages, table, lens, d_v, plan, softmax_scale=None, causal=False,
                               is_fp8_kvcache=False, indices=None):
        n, size, one, _ = pages.shape
        assert one == 1 and d_v == 512
        flat = pages.view(torch.uint8).reshape(n, -1)
        if indices is not None:
            assert is_fp8_kvcache and q.shape[2] >= 64 and indices.shape[:2] == q.shape[:2]
            cache = PagedCache(latent_record("fp8"), size, flat)
            out, lse, _ = mla_sparse_reference(q[:, 0], cache, indices[:, 0], scale=softmax_scale)
        else:
            assert causal
            cache = PagedCache(latent_record("bf16"), size, flat)
            starts = torch.arange(len(q) + 1, dtype=torch.int32)
            out, lse = mla_paged_reference(q[:, 0], cache, starts, lens, table, scale=softmax_scale)
        return out[:, None] + OFF, lse

    @staticmethod
    def flash_mla_sparse_fwd(q, kv, indices, scale):
        cache = PagedCache(latent_record("bf16"), 1, kv.view(torch.uint8).reshape(len(kv), -1))
        out, lse, top = mla_sparse_reference(q, cache, indices[:, 0], scale=scale)
        return out, top, lse

    def __new__(cls):
        return cls


def fa3():
    def call(q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k, softmax_scale, causal,
             fa_version):
        assert fa_version == 3 and max_seqlen_q == len(q) and max_seqlen_k == len(k)
        starts = (cu_seqlens_q, cu_seqlens_k)
        return attention_prefill_reference(q, k, v, *starts, scale=softmax_scale, causal=causal)[0]
    return call


def flashinfer_mla(backend, b, heads, seq_lens, page, sm_scale, kv_indices):
    class Wrapper:
        def run(self, q_nope, q_pe, ckv, kpe, return_lse):
            assert all(x.is_contiguous() for x in (q_nope, q_pe, ckv, kpe)) and not return_lse
            flat = torch.cat([ckv, kpe], -1).view(torch.uint8).flatten(1)
            cache = PagedCache(latent_record("bf16"), page, flat)
            starts = torch.arange(b + 1, dtype=torch.int32)
            lens = torch.tensor(seq_lens, dtype=torch.int32)
            q = torch.cat([q_nope, q_pe], -1)
            table = kv_indices.view(b, -1)
            return mla_paged_reference(q, cache, starts, lens, table, scale=sm_scale)[0]
    return Wrapper()


class deep_gemm:
    """The same for DeepGEMM's."""

    get_num_sms = staticmethod(lambda: 132)

    @staticmethod
    def get_paged_mqa_logits_metadata(lens, size, sms):
        assert lens.ndim == 2 and size == 64 and sms == 132
        return "plan"

    @staticmethod
    def fp8_fp4_mqa_logits(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k):
        bounds = (cu_seq_len_k_start, cu_seq_len_k_end)
        assert q[1] is None
        return index_logits_reference(
            q[0], kv[0], weights, *bounds, key_scales=kv[1], width=max_seqlen_k
        )

    @staticmethod
    def fp8_fp4_paged_mqa_logits(q, pages, weights, lens, table, plan, width):
        assert plan == "plan" and q[1] is None and pages.shape[2:] == (1, 132)
        cache = PagedCache(index_key_record("fp8"), pages.shape[1], pages.reshape(len(pages), -1))
        return index_logits_paged_reference(
            q[0], weights, cache, lens, table, max_context_len=width
        )

    def __new__(cls):
        return cls


class vllm_c:
    @staticmethod
    def top_k_per_row_decode(scores, next_n, lens, out, rows, stride0, stride1, k):
        assert next_n == 1 and (rows, stride0, stride1) == (len(scores), *scores.stride())
        out.copy_(scores.topk(k).indices)

    def __new__(cls):
        return cls
'''


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    path = tmp_path / "peers.py"
    path.write_text(LOADERS)
    return path


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "call", reference_as_kernel)


def small(op: str) -> Case:
    """A line of the table, its sizes cut down."""
    if op == "prefill":
        return speed._sparse_case("prefill-h8", 3, 8, 64, 256, "bf16")
    if op == "mla_sparse":
        return speed._sparse_case("decode-h8", 3, 8, 64, 256, "fp8")
    if op == "mla_paged":
        return speed._dense_case(2, 8, 128)
    if op == "attention_prefill":
        return speed._prefill_case(48, 4, 2, 16)
    if op.startswith("index"):
        return speed._logits_case(op, 3, 4, 128)
    make = partial(speed._topk, rows=3, keys=4096)
    return Case(
        "topk_select", "small", make, check=speed._same_keys, timing=speed.Timing(0, 4 * 3 * 6144)
    )


CASES = {
    "flash_mla_sparse": "mla_sparse",
    "flash_mla_prefill": "prefill",
    "flash_mla_dense": "mla_paged",
    "flashinfer_fa2": "mla_paged",
    "flashinfer_fa3": "mla_paged",
    "deep_gemm_prefill": "index_logits",
    "deep_gemm_decode": "index_logits_paged",
    "fa3": "attention_prefill",
    "vllm_topk": "topk_select",
}


@pytest.mark.parametrize("peer", CASES)
def test_a_peer_is_called_with_what_our_op_gets(peer: str, loaders: Path) -> None:
    line = Line(small(CASES[peer]), (peer,), 1.0)
    entry = run_line(line, bench(Peers(loaders)))
    assert entry["missing"] == {} and set(entry["peers"]) == {peer}
    assert entry["ratio"] == pytest.approx(1.0)


def test_the_record_says_all(loaders: Path, tmp_path: Path) -> None:
    line = Line(small("mla_sparse"), ("flash_mla_sparse", "fa3"), 1.7)
    out = tmp_path / "records" / "kernels.jsonl"
    entries, failures = run_lines([line, line], bench(Peers(loaders)), lambda text: None, out)
    assert not failures and [json.loads(x) for x in out.read_text().splitlines()] == entries
    entry = entries[0]
    assert entry["peers"]["flash_mla_sparse"]["version"] == "1.2.3"
    assert "fa3" in entry["missing"]  # it cannot take these inputs, and says so
    assert entry["us"] == pytest.approx(1000, rel=0.1) and entry["want"] == 1.7
    assert entry["gbs"] == pytest.approx(line.case.timing.nbytes / 1e-3 / 1e9, abs=0.06)  # type: ignore[union-attr]
    assert entry["gpu"] == "none" and entry["ceilings"]["copy_gbs"] == 1000
    assert "want 1.7: missed" in shown(entry)


def test_the_ratio_is_the_fastest_peers_time_over_ours(loaders: Path) -> None:
    line = Line(small("mla_paged"), ("flash_mla_dense", "flashinfer_fa3"), 0.95)
    peers = {"flash_mla_dense": Sample(3.0, 3.0, 3.0), "flashinfer_fa3": Sample(2.0, 2.0, 2.0)}
    samples = {OURS: Sample(4.0, 4.0, 4.0), **peers}
    entry = _entry(line, bench(Peers(loaders)), samples, {}, [], 2)
    assert entry["ratio"] == 0.5
    nbytes = 2 * (128 * 1152 + 8 * (1088 * 2 + 4))
    assert entry["floor_us"] == pytest.approx(nbytes / 1000e9 * 1e6, abs=0.01)


def test_a_share_of_the_floor_may_be_wanted(loaders: Path) -> None:
    line = Line(small("mla_paged"), ("flash_mla_dense",), 1.2, of_floor=0.6)
    floor = line.case.timing.nbytes / 1e6  # type: ignore[union-attr]
    for us, verdict in ((floor / 0.61, "met"), (floor / 0.59, "missed")):
        samples = {OURS: Sample(us, us, us), "flash_mla_dense": Sample(2 * us, us, us)}
        entry = _entry(line, bench(Peers(loaders)), samples, {}, [], 2)
        assert entry["want_of_floor"] == 0.6
        assert f"2.00x (want 1.2, 60 % of the floor: {verdict})" in shown(entry)


def test_a_wrong_kernel_is_not_timed(
    loaders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Case, inputs: dict[str, Any], backend: str) -> Any:
        out, *rest = reference_as_kernel(self, inputs, backend)
        return (out + (0.1 if backend == "kernel" else 0.0), *rest)

    monkeypatch.setattr(Case, "call", wrong)
    clock, said = FakeClock(), []
    line, out = Line(small("mla_sparse"), ("flash_mla_sparse",), 1.7), tmp_path / "records.jsonl"
    entries, failures = run_lines([line], bench(Peers(loaders), clock), said.append, out)
    assert not entries and not clock.log and not out.exists()
    assert "over tolerance" in failures[0] and said[0].startswith("NOT TIMED")


def test_a_peer_that_computes_something_else_is_not_timed(loaders: Path) -> None:
    loaders.write_text(LOADERS.replace("OFF = 0.0", "OFF = 0.1"))
    entry = run_line(Line(small("mla_sparse"), ("flash_mla_sparse",), 1.7), bench(Peers(loaders)))
    assert "its result is not ours" in entry["missing"]["flash_mla_sparse"]
    assert entry["ratio"] is None and entry["peers"] == {}
    assert "no peer" in shown(entry)


def test_a_peer_that_is_not_installed_says_so() -> None:
    inputs = small("attention_prefill").make(Maker(CPU))
    for name in ("flash_mla_dense", "fa3", "vllm_topk", "flashinfer_fa2"):
        with pytest.raises(PeerMissing, match=f"{name}: ModuleNotFoundError"):
            Peers().calls(name, [inputs])
        assert Peers().version(name) == "unknown"


def test_a_file_of_loaders_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no Python file"):
        Peers(tmp_path / "nothing.py")


def test_inputs_rotate_and_the_pool_stays() -> None:
    line = Line(small("mla_sparse"), (), None)
    from sparkwell.bench.kernels import _input_sets

    sets = _input_sets(line, bench(Peers()), 3)
    assert sets[0]["cache"] is sets[2]["cache"]
    assert not sets[0]["slots"].equal(sets[1]["slots"])
    dense = _input_sets(Line(small("mla_paged"), (), None), bench(Peers()), 2)
    assert not dense[0]["cache"].pages.equal(dense[1]["cache"].pages)


def test_the_table_has_lines_for_other_targets() -> None:
    assert {line.target for line in LINES} == {None, "sm_121"}
