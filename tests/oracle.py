"""Transformers as outside oracle: its logits, and the choices it made on the way.

Two correct implementations may keep different keys where two index scores differ in the last bit,
and everything after that differs visibly.  So logits are compared with the oracle's choices
injected, and the choices themselves by their scores.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode

from families import checkpoint
from sparkwell.formats.kv import index_key_record
from sparkwell.formats.paged import PagedCache
from sparkwell.models.batch import Batch, Span
from sparkwell.models.deepseek import DeepseekModel
from sparkwell.models.layers import Moe
from sparkwell.models.load import Model, load_model
from sparkwell.ops.indexer import index_scores_reference


class _TopkInputs(TorchFunctionMode):
    """Keeps what `topk` is called on: inside the indexer, that is the matrix of index scores."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.topk:
            self.scores.append(args[0].clone())
        return func(*args, **(kwargs or {}))


@dataclass
class Trace:
    """One forward of the oracle: logits [T, vocab]; the rest by layer.

    inputs: what the indexer was given, x [T, hidden] and c_q [T, q_lora_rank]; scores: [T, S];
    indices: [T, k]; routes: weights and expert ids, [T, k] each.
    """

    logits: torch.Tensor
    inputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    indices: dict[int, torch.Tensor] = field(default_factory=dict)
    routes: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def load_oracle(name: str) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(name), attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def load_ours(name: str, **options: Any) -> Model:
    # Transformers builds GLM's latent norms with eps 1e-6, whatever rms_norm_eps says.
    return load_model(checkpoint(name), latent_norm_eps=1e-6, **options)


@torch.no_grad()
def trace_oracle(model: Any, ids: list[int]) -> Trace:
    trace, handles = Trace(torch.empty(0)), []
    for i, layer in enumerate(model.model.layers):
        indexer = getattr(layer.self_attn, "indexer", None)
        if indexer is not None:
            mode = _TopkInputs()

            def enter(module: Any, args: Any, mode: _TopkInputs = mode) -> None:
                mode.__enter__()

            def leave(
                module: Any, args: Any, out: torch.Tensor, mode: _TopkInputs = mode, i: int = i
            ) -> None:
                mode.__exit__(None, None, None)
                trace.inputs[i] = (args[0][0], args[1][0])
                trace.scores[i], trace.indices[i] = mode.scores[-1][0], out[0].long()

            handles.append(indexer.register_forward_pre_hook(enter))
            handles.append(indexer.register_forward_hook(leave))
        if hasattr(layer.mlp, "gate"):

            def routed(module: Any, args: Any, out: Any, i: int = i) -> None:
                trace.routes[i] = (out[1].float(), out[2].long())

            handles.append(layer.mlp.gate.register_forward_hook(routed))
    trace.logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return trace


@contextmanager
def injected(model: Model, trace: Trace, *, rows: slice = slice(None)) -> Iterator[dict[str, dict]]:
    """`model` follows the oracle's indices and routes on these rows of its one request.

    Yields what it would have chosen itself: indices and routes by layer.
    """
    own: dict[str, dict] = {"indices": {}, "routes": {}}
    for i, layer in enumerate(model.layers):
        if isinstance(layer.mlp, Moe):

            def route(x: torch.Tensor, moe: Moe = layer.mlp, i: int = i) -> Any:
                own["routes"][i] = Moe.route(moe, x)
                return tuple(t[rows] for t in trace.routes[i])

            layer.mlp.route = route  # type: ignore[method-assign]
        indexer = layer.attention.indexer if isinstance(model, DeepseekModel) else None
        if indexer is not None:

            def select(
                x: torch.Tensor,
                c_q: torch.Tensor,
                batch: Batch,
                cache: Any,
                it: Any = indexer,
                i: int = i,
            ) -> torch.Tensor:
                own["indices"][i] = type(it).select(it, x, c_q, batch, cache)
                return _visible(trace.indices[i][rows], batch.positions)

            indexer.select = select
    yield own
    for layer in model.layers:
        layer.mlp.__dict__.pop("route", None)
        if isinstance(model, DeepseekModel) and layer.attention.indexer is not None:
            layer.attention.indexer.__dict__.pop("select", None)


def own_scores(model: Model, trace: Trace, layer: int) -> torch.Tensor:
    """[T, S]: our indexer's scores for the very inputs the oracle's indexer had."""
    indexer = model.layers[layer].attention.indexer  # type: ignore[union-attr]
    assert indexer is not None
    x, c_q = trace.inputs[layer]
    positions = torch.arange(len(x))
    q, w = indexer.queries(x, c_q, positions)
    record = index_key_record("fp32", head_dim=q.shape[-1])
    cache = PagedCache.allocate(record, 1, len(x), "cpu")
    step: Any = SimpleNamespace(slots=positions, positions=positions)
    indexer.write_keys(x, step, cache)
    return index_scores_reference(q, cache.read(positions), w)


def _visible(indices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The oracle's rows with its masked future positions turned into -1, at the end."""
    kept = indices.sort(-1).values
    kept = torch.where(kept <= positions[:, None], kept, -1)
    order = (kept < 0).to(torch.int8).argsort(dim=-1, stable=True)
    return kept.gather(-1, order).to(torch.int32)


def holds_for_two_prompts_in_three(check: Callable[[int], None]) -> None:
    """Run `check(seed)`: once where it passes, else it must pass for two other seeds.

    The order of summation differs with the shape of a step and with the processor. Where two scores
    agree but for the last bit it decides which key or expert is kept, and one prompt then goes
    another way. A mistake goes wrong for every prompt.
    """
    try:
        check(11)
    except AssertionError as first:
        for seed in (12, 13):
            try:
                check(seed)
            except AssertionError:
                raise first from None


class Feeder:
    """One model, its caches, and the pages of any number of requests."""

    def __init__(self, model: Model, *, dtype: str = "fp32", page_size: int = 16, pages: int = 160):
        self.model, self.page_size, self.device = model, page_size, model.embed.device
        self.caches = model.allocate(pages, page_size=page_size, dtype=dtype, device=self.device)
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(7))
        self.free = order.tolist()  # scattered pages: a contiguous table would hide mistakes
        self.pages: dict[str, list[int]] = {}

    def span(self, request: str, ids: list[int], start: int, logits: str = "all") -> Span:
        pages = self.pages.setdefault(request, [])
        while len(pages) * self.page_size < start + len(ids):
            pages.append(self.free.pop())
        return Span(ids, start, pages, logits)

    @torch.inference_mode()
    def run(self, *spans: Span) -> torch.Tensor:
        batch = Batch.build(spans, page_size=self.page_size, device=self.device)
        return self.model.forward(batch, self.caches)  # type: ignore[arg-type]

    def prefill(self, ids: list[int], request: str = "a") -> torch.Tensor:
        return self.run(self.span(request, ids, 0))
