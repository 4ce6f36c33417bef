"""ModelRunner: a step plan becomes a batch, the batch logits, the logits drawn tokens."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from sparkwell.engine.device import choose_device
from sparkwell.engine.graphs import CudaRecorder, DecodeGraphs, Recorder
from sparkwell.engine.request import Request, Sampled
from sparkwell.engine.scheduler import StepPlan
from sparkwell.errors import BadInput
from sparkwell.models.batch import Batch, Span
from sparkwell.models.load import Model, load_model
from sparkwell.models.products import products
from sparkwell.ops.sampling import (
    NOTHING,
    SamplingRow,
    cannot_be_sampled,
    logprobs,
    sample,
    uniform,
)

CACHE_DTYPES = ("fp32", "bf16", "fp8")
CPU_CACHE_BYTES = 1 << 30  # what the caches take on a CPU where the caller names no size
GPU_CACHE_SHARE = 0.8  # of the memory that the weights leave free; the rest is for activations
GREEDY = SamplingRow(temperature=0.0)


class ModelRunner:
    """Runs step plans on one model; owns its paged caches.

    page_size: tokens in a page; num_pages: pages in each layer's cache.
    cache_dtype: "fp32", "bf16" or "fp8" (models/*.cache_records says which records that means).
    eos_ids: suppressed until a request has its `min_tokens`.
    arithmetic: of the products, as `models.products.products` has it.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int,
        cache_dtype: str,
        eos_ids: frozenset[int],
        device: str | torch.device = "cpu",
        arithmetic: str = "auto",
    ) -> None:
        self.arithmetic = arithmetic
        self.model, self.page_size, self.num_pages = model, page_size, num_pages
        self.cache_dtype, self.eos_ids, self.device = cache_dtype, eos_ids, torch.device(device)
        self.caches = model.allocate(
            num_pages, page_size=page_size, dtype=cache_dtype, device=device
        )
        self.graphs: DecodeGraphs | None = None

    def record(
        self,
        recorder: Recorder,
        *,
        max_requests: int,
        max_context: int,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Record decode steps of so many requests and tokens of a request; `run` replays them."""
        self.graphs = DecodeGraphs(
            self.model,
            self.caches,
            page_size=self.page_size,
            max_requests=max_requests,
            max_context=min(max_context, self.num_pages * self.page_size),
            device=self.device,
            recorder=recorder,
            say=say,
        )
        self.graphs.record()

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> dict[int, Sampled]:
        """Compute every token of `plan`; draw one for each request that has reached its end."""
        drawing = [work.request for work in plan.work if work.samples]
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            done = self.graphs.run(plan.work) if self.graphs is not None else None
            logits, greedy = (self._forward(plan), None) if done is None else done
            return self._draw(logits, greedy, drawing) if drawing else {}

    def _forward(self, plan: StepPlan) -> torch.Tensor:
        spans = [
            Span(
                token_ids=work.request.all_ids[work.start : work.start + work.count],
                start=work.start,
                pages=work.request.pages,
                logits="last" if work.samples else "none",
            )
            for work in plan.work
        ]
        batch = Batch.build(spans, page_size=self.page_size, device=self.device)
        with products(self.arithmetic):
            return self.model.forward(batch, self.caches)  # type: ignore[arg-type]

    def _draw(
        self, logits: torch.Tensor, greedy: torch.Tensor | None, requests: list[Request]
    ) -> dict[int, Sampled]:
        """One token a request, and one wait for the device.

        greedy: the ids of the largest logits where a recorded step has found them already.
        """
        rows = [self._row(request) for request in requests]
        draws = [uniform(request.seed, len(request.output_ids)) for request in requests]
        ids = greedy
        if self.graphs is not None and greedy is not None and any(row != GREEDY for row in rows):
            ids = self.graphs.draw(rows, draws)
        if ids is None:
            histories = [(request.prompt_ids, request.output_ids) for request in requests]
            ids = sample(logits, rows, histories, torch.tensor(draws, dtype=torch.float64))
        most = [r.params.logprobs for r in requests if r.params.logprobs is not None]
        drawn: list[Drawn]
        if not most:
            drawn = [(token, 0.0, [], []) for token in ids.tolist()]
        else:
            drawn = _with_logprobs(logits, ids, min(max(most), logits.shape[-1]))
        out = {}
        for request, (token, logprob, others, theirs) in zip(requests, drawn, strict=True):
            if token == NOTHING:
                raise cannot_be_sampled("the largest logit is NaN or infinite")
            if (n := request.params.logprobs) is None:
                out[request.id] = Sampled(token)
            else:
                top = tuple(zip(others[:n], theirs[:n], strict=True))
                out[request.id] = Sampled(token, logprob, top)
        return out

    def _row(self, request: Request) -> SamplingRow:
        p = request.params
        early = len(request.output_ids) < p.min_tokens
        return SamplingRow(
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=p.min_p,
            repetition_penalty=p.repetition_penalty,
            presence_penalty=p.presence_penalty,
            frequency_penalty=p.frequency_penalty,
            logit_bias=p.logit_bias,
            suppressed=self.eos_ids | frozenset(p.stop_token_ids) if early else frozenset(),
        )


Drawn = tuple[int, float, list[int], list[float]]  # id, its logprob, the likeliest and theirs


def _with_logprobs(logits: torch.Tensor, ids: torch.Tensor, top: int) -> list[Drawn]:
    """Tokens with their log-probabilities, in one copy: fp64 holds ids and fp32 alike."""
    chosen, others, theirs = logprobs(logits, ids, top=top)
    columns = (ids[:, None], chosen[:, None], others, theirs)
    table = torch.cat([column.double() for column in columns], 1).tolist()
    return [
        (int(row[0]), row[1], [int(x) for x in row[2 : 2 + top]], row[2 + top :]) for row in table
    ]


def build_runner(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    page_size: int = 64,
    num_pages: int | None = None,
    eos_ids: frozenset[int] = frozenset(),
    max_requests: int = 64,
    max_context: int = 1 << 20,
    enforce_eager: bool = False,
    scheme: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> ModelRunner:
    """Load `folder` and give it caches.

    device: "cpu", "cuda", "cuda:N", or "auto": a GPU that the kernels serve, else the CPU.
    kv_cache_dtype: "fp32", "bf16", "fp8", or "auto": as wide as the model computes.
    num_pages: None takes 1 GiB for all layers' caches on the CPU, and most of a GPU's free memory.
    max_requests, max_context: of a step and of a request.  On a GPU decode steps up to these are
        recorded as CUDA graphs, unless enforce_eager; say: called with lines about it.
    scheme: what plain weights are quantized into while they are loaded.  On a CPU, where nothing is
        gained by it, activations are quantized only where a scheme asked for here says so.
    """
    place = choose_device(device)
    if page_size < 1:
        raise BadInput(f"page size is {page_size}; want at least 1 token")
    model = load_model(folder, dtype=dtype, device=place, scheme=scheme, progress=progress)
    cache_dtype = _cache_dtype(kv_cache_dtype, model)
    if num_pages is None:
        num_pages = _default_pages(model, cache_dtype, page_size, place)
    if num_pages < 1:
        raise BadInput(f"number of cache pages is {num_pages}; want at least 1")
    runner = ModelRunner(
        model,
        num_pages=num_pages,
        page_size=page_size,
        cache_dtype=cache_dtype,
        eos_ids=eos_ids,
        device=place,
        arithmetic="scheme" if place.type == "cpu" and scheme is not None else "auto",
    )
    if place.type == "cuda" and not enforce_eager:
        limits = {"max_requests": max_requests, "max_context": max_context}
        runner.record(CudaRecorder(place), **limits, say=say)
    return runner


def page_bytes(model: Model, cache_dtype: str, page_size: int) -> int:
    """Bytes one page takes over all layers' caches."""
    records = [record for pair in model.cache_records(cache_dtype) for record in pair]
    return sum(record.page_nbytes(page_size) for record in records if record is not None)


def _default_pages(model: Model, cache_dtype: str, page_size: int, device: torch.device) -> int:
    affordable = CPU_CACHE_BYTES
    if device.type == "cuda":
        affordable = int(torch.cuda.mem_get_info(device)[0] * GPU_CACHE_SHARE)
    return max(1, affordable // page_bytes(model, cache_dtype, page_size))


def _cache_dtype(name: str, model: Model) -> str:
    if name in CACHE_DTYPES:
        return name
    if name != "auto":
        raise BadInput(f"kv cache dtype is {name!r}; want one of auto, {', '.join(CACHE_DTYPES)}")
    return "fp32" if model.embed.dtype == torch.float32 else "bf16"
