"""Other packages' kernels, called with our inputs: whom a time stands beside.

They are optional.  Each is imported by its public name, or comes from a file of loaders that the
user names: functions flash_mla(), deep_gemm(), fa3(), vllm_c() that return what is imported,
vllm_moe() that returns vLLM's usual ops and those of experts, and
flashinfer_mla(backend, b, heads, seq_lens, page=, sm_scale=, kv_indices=) that returns a planned
wrapper; VERSIONS, if it is there, maps loaders to version texts.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sparkwell.bench import marlin
from sparkwell.errors import BadInput, SparkwellError
from sparkwell.formats.fp8 import Fp8Block, quantize_fp8_rows
from sparkwell.testing import cosine_gap
from sparkwell.verify.case import Inputs
from sparkwell.verify.cases.speed_products import served

Call = Callable[[], torch.Tensor]
RANK = 512
_PACKAGES = {
    "flash_mla": "flash_mla",
    "deep_gemm": "deep_gemm",
    "fa3": "flash_attn_3",
    "flashinfer_mla": "flashinfer-python",
    "vllm_c": "vllm",
    "vllm_moe": "vllm",
}


class PeerMissing(SparkwellError):
    """A peer that is not installed, or does not load here: why."""


@dataclass(frozen=True)
class Peer:
    """loader: its name in a file of loaders.  prepare: (what it loads, inputs of each call) -> the
    calls, each returning what our first result is to be compared with.  agrees: (inputs, our
    result, theirs)."""

    loader: str
    prepare: Callable[[Any, Sequence[Inputs]], list[Call]]
    agrees: Callable[[Inputs, torch.Tensor, torch.Tensor], bool]
    words: str


class Peers:
    """What can be loaded.  path: the file of loaders; None: the installed packages."""

    def __init__(self, path: Path | None = None) -> None:
        self._module = _from_file(path) if path is not None else None

    def calls(self, name: str, inputs: Sequence[Inputs]) -> list[Call]:
        """The peer's calls with these inputs.  Raises PeerMissing."""
        peer = PEERS[name]
        try:
            return peer.prepare(self._load(peer.loader), inputs)
        except Exception as error:
            raise PeerMissing(f"{name}: {type(error).__name__}: {error}"[:300]) from error

    def version(self, name: str) -> str:
        """Its version, or "unknown"."""
        loader = PEERS[name].loader
        if self._module is not None:
            return str(getattr(self._module, "VERSIONS", {}).get(loader, "unknown"))
        try:
            return importlib.metadata.version(_PACKAGES[loader])
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    def _load(self, loader: str) -> Any:
        if self._module is not None:
            found = getattr(self._module, loader)
            return found if loader == "flashinfer_mla" else found()
        return _PUBLIC[loader]()


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sparkwell_bench_peers", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BadInput(f"peers: {path} is no Python file; want one with loaders")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- installed packages


def _fa3() -> Any:
    function = importlib.import_module("flash_attn_interface").flash_attn_varlen_func

    def call(*args: Any, fa_version: int, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def _flashinfer_mla(
    backend: str,
    b: int,
    heads: int,
    seq_lens: Sequence[int],
    page: int,
    sm_scale: float,
    kv_indices: torch.Tensor,
) -> Any:
    wrapper_type = importlib.import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper
    device = kv_indices.device
    lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
    edges = torch.arange(b + 1, dtype=torch.int32, device=device)
    pages = torch.zeros_like(edges)
    pages[1:] = ((lens + page - 1) // page).cumsum(0)
    room = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper = wrapper_type(room, backend=backend)
    shape = (heads, RANK, 64, page, False, sm_scale, torch.bfloat16, torch.bfloat16)
    wrapper.plan(edges, pages, kv_indices, lens, *shape)
    return wrapper


def _vllm_moe() -> tuple[Any, Any]:
    importlib.import_module("vllm._custom_ops")
    return torch.ops._C, torch.ops._moe_C


_PUBLIC: dict[str, Callable[[], Any]] = {
    "flash_mla": partial(importlib.import_module, "flash_mla"),
    "deep_gemm": partial(importlib.import_module, "deep_gemm"),
    "fa3": _fa3,
    "flashinfer_mla": lambda: importlib.import_module("flashinfer.mla") and _flashinfer_mla,
    "vllm_c": lambda: _vllm_moe()[0],
    "vllm_moe": _vllm_moe,
}

# ---------------------------------------------------------------- calls


def _flash_mla_sparse(flash_mla: Any, inputs: Sequence[Inputs]) -> list[Call]:
    """Heads padded to the 64 that it wants at least."""

    def one(x: Inputs) -> Call:
        rows, heads, width = x["q"].shape
        q = x["q"].new_zeros(rows, 1, max(64, heads), width)
        q[:, 0, :heads] = x["q"]
        cache, plan = x["cache"], flash_mla.get_mla_metadata()[0]
        pages = cache.pages.view(cache.num_pages, cache.page_size, 1, cache.record.nbytes)
        options = {"softmax_scale": x["scale"], "is_fp8_kvcache": True}
        options["indices"] = x["slots"][:, None]
        arguments = (q, pages, None, None, RANK, plan)
        return lambda: flash_mla.flash_mla_with_kvcache(*arguments, **options)[0][:, 0, :heads]

    return [one(x) for x in inputs]


def _flash_mla_prefill(flash_mla: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        kv = x["cache"].pages.view(torch.bfloat16).view(x["cache"].num_slots, 1, -1)
        return lambda: flash_mla.flash_mla_sparse_fwd(x["q"], kv, x["slots"][:, None], x["scale"])[
            0
        ]

    return [one(x) for x in inputs]


def _flash_mla_dense(flash_mla: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        cache, plan = x["cache"], flash_mla.get_mla_metadata()[0]
        pages = cache.pages.view(torch.bfloat16).view(cache.num_pages, cache.page_size, 1, -1)
        options = {"softmax_scale": x["scale"], "causal": True}
        arguments = (x["q"][:, None], pages, x["block_table"], x["context_lens"], RANK, plan)
        return lambda: flash_mla.flash_mla_with_kvcache(*arguments, **options)[0][:, 0]

    return [one(x) for x in inputs]


def _flashinfer(planned: Any, inputs: Sequence[Inputs], backend: str) -> list[Call]:
    """Its caches hold latent and rotated key apart."""

    def one(x: Inputs) -> Call:
        cache, lens = x["cache"], x["context_lens"].tolist()
        used = [-(-n // cache.page_size) for n in lens]
        table = torch.cat([row[:n] for row, n in zip(x["block_table"], used, strict=True)])
        wrapper = planned(
            backend,
            len(lens),
            x["q"].shape[1],
            lens,
            page=cache.page_size,
            sm_scale=x["scale"],
            kv_indices=table,
        )
        pages = cache.pages.view(torch.bfloat16).view(cache.num_pages, cache.page_size, -1)
        tensors = [y.contiguous() for t in (x["q"], pages) for y in (t[..., :RANK], t[..., RANK:])]
        return lambda: wrapper.run(*tensors, return_lse=False)

    return [one(x) for x in inputs]


def _fa3_prefill(attention: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        rows, keys = len(x["q"]), len(x["k"])
        options = {"max_seqlen_q": rows, "max_seqlen_k": keys, "softmax_scale": x["scale"]}
        options |= {"cu_seqlens_q": x["query_start"], "cu_seqlens_k": x["key_start"]}
        call = partial(attention, x["q"], x["k"], x["v"], causal=True, fa_version=3, **options)
        return lambda: _first(call())

    return [one(x) for x in inputs]


def _deep_gemm_prefill(deep_gemm: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        keys = (x["k"], x["key_scales"])
        bounds = {"cu_seq_len_k_start": x["start"], "cu_seq_len_k_end": x["end"]}
        if hasattr(deep_gemm, "fp8_fp4_mqa_logits"):  # 2.8 and later
            call, q = deep_gemm.fp8_fp4_mqa_logits, (x["q"], None)
            bounds["max_seqlen_k"] = len(x["k"])
        else:
            call, q = deep_gemm.fp8_mqa_logits, x["q"]
            bounds["clean_logits"] = False
        return lambda: call(q, keys, x["weights"], **bounds)

    return [one(x) for x in inputs]


def _deep_gemm_decode(deep_gemm: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        cache, lens, q = x["cache"], x["context_lens"], x["q"]
        size = cache.page_size
        pages = cache.pages.view(cache.num_pages, size, 1, cache.record.nbytes)
        plan = deep_gemm.get_paged_mqa_logits_metadata(lens, size, deep_gemm.get_num_sms())
        call, width = getattr(deep_gemm, "fp8_fp4_paged_mqa_logits", None), x["max_context_len"]
        batch = (pages, x["weights"], lens, x["block_table"], plan, width)
        if call is None:
            return lambda: deep_gemm.fp8_paged_mqa_logits(q, *batch)
        return lambda: call((q, None), *batch)

    return [one(x) for x in inputs]


def _deep_gemm_linear(deep_gemm: Any, inputs: Sequence[Inputs]) -> list[Call]:
    """x that comes unquantized is quantized before the time is taken."""

    def one(x: Inputs) -> Call:
        rows, w = x["x"], x["weight"]
        if isinstance(rows, torch.Tensor):
            rows = Fp8Block(*quantize_fp8_rows(rows.float()), (1, 128))
        a = (rows.values, deep_gemm.get_mn_major_tma_aligned_tensor(rows.scales))
        out = w.scales.new_empty(rows.shape[0], w.shape[0], dtype=torch.bfloat16)

        def call() -> torch.Tensor:
            deep_gemm.fp8_gemm_nt(a, (w.values, w.scales), out, disable_ue8m0_cast=True)
            return out

        return call

    return [one(x) for x in inputs]


def _deep_gemm_grouped(deep_gemm: Any, inputs: Sequence[Inputs]) -> list[Call]:
    """ "rows": its contiguous layout, whose groups begin where ours do.  "counted": masked."""

    def one(x: Inputs) -> Call:
        rows, w, groups = x["x"], x["weight"], x["groups"]
        a = (rows.values, deep_gemm.get_mn_major_tma_aligned_tensor(rows.scales))
        b = (w.values, w.scales)
        shape = (*rows.shape[:-1], w.shape[1])
        out = w.scales.new_zeros(shape, dtype=torch.bfloat16)

        def contiguous() -> torch.Tensor:
            product = deep_gemm.m_grouped_fp8_gemm_nt_contiguous
            product(a, b, out, groups, disable_ue8m0_cast=True)
            return out

        def masked() -> torch.Tensor:
            product = deep_gemm.m_grouped_fp8_gemm_nt_masked
            product(a, b, out, groups, x["expected_rows"], disable_ue8m0_cast=True)
            return out

        return contiguous if x["layout"] == "rows" else masked

    return [one(x) for x in inputs]


def _vllm_topk(ops: Any, inputs: Sequence[Inputs]) -> list[Call]:
    def one(x: Inputs) -> Call:
        scores, lens, k = x["scores"], x["visible"], x["topk"]
        rows, out = len(scores), lens.new_empty(len(scores), x["topk"])
        sizes = (rows, *scores.stride(), k)

        def decode() -> torch.Tensor:
            ops.top_k_per_row_decode(scores, 1, lens, out, *sizes)
            return out

        def prefill() -> torch.Tensor:
            ops.top_k_per_row_prefill(scores, first, lens, out, *sizes)
            return out

        first = torch.zeros_like(lens)
        return prefill if rows > 256 else decode

    return [one(x) for x in inputs]


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple | list) else result


def _close(inputs: Inputs, got: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-4) -> bool:
    """Both in BF16 or better, so their directions agree; what neither computes is masked."""
    got, theirs = got.float().flatten(), theirs.float().flatten()
    both = torch.isfinite(got) & torch.isfinite(theirs)
    return bool(both.float().mean() > 0.5) and cosine_gap(got[both], theirs[both]) < limit


def _close_product(inputs: Inputs, got: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Less close where only theirs rounds x to FP8: by 2.6 % of a value, so a gap of 4e-4."""
    return _close(inputs, got, theirs, 1e-3 if isinstance(inputs["x"], torch.Tensor) else 1e-4)


def _close_rows(inputs: Inputs, got: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Rows of no group hold anything."""
    rows = served(inputs)
    return _close(inputs, got[rows], theirs[rows])


def _same_keys(inputs: Inputs, got: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The same keys but for ties, in any order."""
    same = got.sort(-1).values == theirs.to(got.dtype).sort(-1).values
    return bool(same.all(-1).float().mean() > 0.95)


PEERS: dict[str, Peer] = {
    "flash_mla_sparse": Peer("flash_mla", _flash_mla_sparse, _close, "FlashMLA"),
    "flash_mla_prefill": Peer("flash_mla", _flash_mla_prefill, _close, "FlashMLA"),
    "flash_mla_dense": Peer("flash_mla", _flash_mla_dense, _close, "FlashMLA"),
    "flashinfer_fa2": Peer(
        "flashinfer_mla", partial(_flashinfer, backend="fa2"), _close, "FlashInfer fa2"
    ),
    "flashinfer_fa3": Peer(
        "flashinfer_mla", partial(_flashinfer, backend="fa3"), _close, "FlashInfer fa3"
    ),
    "deep_gemm_prefill": Peer("deep_gemm", _deep_gemm_prefill, _close, "DeepGEMM"),
    "deep_gemm_decode": Peer("deep_gemm", _deep_gemm_decode, _close, "DeepGEMM"),
    "deep_gemm_linear": Peer("deep_gemm", _deep_gemm_linear, _close_product, "DeepGEMM"),
    "deep_gemm_grouped": Peer("deep_gemm", _deep_gemm_grouped, _close_rows, "DeepGEMM"),
    "marlin": Peer("vllm_c", marlin.linear_calls, _close, "Marlin"),
    "marlin_experts": Peer("vllm_moe", marlin.experts_calls, _close, "Marlin's experts"),
    "fa3": Peer("fa3", _fa3_prefill, _close, "FlashAttention 3"),
    "vllm_topk": Peer("vllm_c", _vllm_topk, _same_keys, "vLLM top_k_per_row"),
}
