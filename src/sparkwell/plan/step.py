"""One step of a model as a list of operations: bytes that each reads, operations it makes, kernel.

A step is `rows` new tokens of `requests` requests whose contexts are `context` tokens long, this
step's included.  All is of one GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sparkwell.checkpoints.architectures import DeepseekConfig, LlamaConfig
from sparkwell.formats.kv import latent_record
from sparkwell.hardware.gpus import Gpu
from sparkwell.ops.device import Device
from sparkwell.plan import kernels
from sparkwell.plan.efficiency import experts_size, linear_size
from sparkwell.plan.kernels import LIBRARY, Kernel
from sparkwell.plan.links import link
from sparkwell.plan.memory import token_bytes
from sparkwell.plan.model import Model
from sparkwell.plan.parts import Part
from sparkwell.plan.schemes import BF16, Format, Scheme
from sparkwell.plan.share import Share

PROMPT = 64  # new tokens of a request above which index scores are timed as a prompt's
PEAKS = {"w16a16": "bf16", "w8a16": "bf16", "w4a16": "bf16", "w8a8": "fp8", "w4a8": "fp8"}
PEAKS |= {"w4a4": "fp4"}


@dataclass(frozen=True)
class Op:
    """`count` calls: each reads and writes nbytes, makes flops at the peak named `peak`.

    of: the kind of op, for its efficiency.  arithmetic: of products.  wait: seconds of a link.
    quantized: values of x that launches in front quantize, `launches` of them; no part of bounds.
    """

    layer: str
    of: str
    count: int
    nbytes: float
    flops: float = 0.0
    peak: str = "bf16"
    kernel: Kernel = Kernel("", LIBRARY)
    arithmetic: str = ""
    wait: float = 0.0
    quantized: float = 0.0
    launches: int = 0


@dataclass(frozen=True, eq=False)
class Case:
    """What runs where: everything about a step but its size; equal only to itself."""

    model: Model
    scheme: Scheme
    gpu: Gpu
    share: Share
    cache: str

    @property
    def device(self) -> Device:
        """What selection asks about."""
        return kernels.device_of(self.gpu)


@dataclass(frozen=True)
class Step:
    """rows: new tokens of all requests.  logits: rows that get logits."""

    rows: int
    requests: int
    context: int
    logits: int

    @property
    def each(self) -> int:
        """New tokens of a request."""
        return max(1, self.rows // self.requests)


def operations(case: Case, step: Step) -> list[Op]:
    """Everything one GPU does in the step."""
    found = [*_products(case, step), *_attention(case, step), *_small(case, step)]
    return [*found, *_sums(case, step)]


# ---------------------------------------------------------------- products


def _products(case: Case, step: Step) -> Iterator[Op]:
    for group in _joined(case.model.parts):
        mine = [case.share.part_of(part) for part in group]
        first = mine[0]
        if first.group in ("embedding", "vectors", "absorbed") or not first.k:
            continue
        kind = case.scheme.format(group[0])
        if first.group == "experts":
            if group[0].name.endswith("gate_proj.weight"):
                yield _experts(case, step, first, kind)
        else:
            rows = step.logits if first.group == "head" else step.rows
            yield _linear(case, rows, mine, kind)
    if case.model.config.tie_word_embeddings:
        embed = case.share.part_of(case.model.parts[0])
        yield _linear(case, step.logits, [embed], BF16)


def _joined(parts: tuple[Part, ...]) -> list[list[Part]]:
    """Neighbours that share their input are one product, as the model joins them."""
    found: list[list[Part]] = []
    for part in parts:
        if part.group == "vectors":
            continue
        last = found[-1][-1] if found else None
        if last is not None and _same_input(last, part):
            found[-1].append(part)
        else:
            found.append([part])
    return _latents(found)


def _same_input(a: Part, b: Part) -> bool:
    same = (a.group, a.k, a.layers, a.experts, a.split) == (
        b.group, b.k, b.layers, b.experts, b.split,
    )  # fmt: skip
    return same and a.split == "rows" and a.group not in ("embedding", "head")


def _latents(groups: list[list[Part]]) -> list[list[Part]]:
    """q_a and kv_a, which do not stand side by side."""
    found: list[list[Part]] = []
    for group in groups:
        name = group[0].name
        if name.endswith("kv_a_proj_with_mqa.weight"):
            before = next((g for g in found if g[0].name.endswith("q_a_proj.weight")), None)
            if before is not None:
                before.extend(group)
                continue
        found.append(list(group))
    return found


def _linear(case: Case, rows: int, parts: list[Part], kind: Format) -> Op:
    n, k = sum(part.n for part in parts), parts[0].k
    first = parts[0]
    decision, kernel = kernels.linear_kernel(rows, n, k, kind, case.device)
    names = {part.name.removesuffix(".weight").rpartition(".")[2] for part in parts}
    layer = " + ".join(sorted(name.removesuffix("_proj") for name in names))
    if first.group in ("dense", "shared"):
        layer = f"{first.group} {layer}"
    named = {"head": "lm_head", "embedding": "lm_head", "router": "router"}
    layer = named.get(first.group, "weights_proj" if first.group == "weights_proj" else layer)
    nbytes = sum(kind.nbytes(part.n, k) for part in parts) + 2 * rows * (n + k)
    if decision.arithmetic == "w16a16":
        nbytes = 2 * n * k + 2 * rows * (n + k)
    of = f"linear {decision.arithmetic} {linear_size(rows)}"
    narrow = not decision.arithmetic.endswith("a16") and not _made_narrow(case, first, names)
    return Op(
        layer, of, first.count, nbytes, 2.0 * rows * n * k,
        _peak(case.gpu, decision.arithmetic), kernel, decision.arithmetic,
        quantized=narrow * rows * k, launches=int(narrow),
    )  # fmt: skip


def _made_narrow(case: Case, first: Part, names: set[str]) -> bool:
    """Whether what makes x quantizes it: SwiGLU, and norms whose rows nothing else reads."""
    llama = isinstance(case.model.config, LlamaConfig)
    normed = "gate_proj" in names and first.group == "dense" or "q_proj" in names and llama
    return normed or "down_proj" in names


def _experts(case: Case, step: Step, part: Part, kind: Format) -> Op:
    """All experts of a layer: those that some token names are read once."""
    moe = case.model.config.moe
    assert moe is not None
    width, hidden, here = part.n, part.k, part.experts
    share = here / moe.num_experts  # of the pairs, with whole experts on several GPUs
    pairs = step.rows * moe.topk * share
    # Of the experts here, those that at least one of the rows names, drawn evenly.
    read = here * (1 - (1 - moe.topk / moe.num_experts) ** step.rows)
    arithmetic, kernel = kernels.experts_kernel(
        step.rows, moe.topk, moe.num_experts, hidden, width, kind, case.device
    )
    each = 2 * kind.nbytes(width, hidden) + kind.nbytes(hidden, width)
    traffic = pairs * (2 * hidden + 4 * width + 8 * hidden)
    of = f"experts {arithmetic} {experts_size(step.rows)}"
    narrow = not arithmetic.endswith("a16")
    return Op(
        "experts", of, len(part.layers), read * each + traffic,
        6.0 * pairs * width * hidden, _peak(case.gpu, arithmetic), kernel, arithmetic,
        quantized=narrow * (step.rows * hidden + pairs * width), launches=2 * int(narrow),
    )  # fmt: skip


def _peak(gpu: Gpu, arithmetic: str) -> str:
    """The type whose peak bounds the products; 16-bit where the GPU has no faster unit."""
    wanted = PEAKS[arithmetic]
    return wanted if wanted in gpu.peaks else "bf16"


# ---------------------------------------------------------------- attention


def _attention(case: Case, step: Step) -> Iterator[Op]:
    config = case.model.config
    if isinstance(config, LlamaConfig):
        yield _grouped(case, step, config)
        return
    heads = config.num_heads // case.share.gpus
    index = config.indexer
    if index is not None and step.context > index.topk:
        yield _absorb(config, step, heads)
        yield from _indexer(case, step, config)
        yield _sparse(case, step, config, heads)
    elif step.each >= max(2, expand_from(config)):
        yield from _expanded(case, step, config, heads)
    else:
        yield _absorb(config, step, heads)
        yield _paged(case, step, config, heads)


def expand_from(c: DeepseekConfig) -> int:
    """New tokens of a request from which on its heads are expanded: `models.deepseek`'s rule."""
    gain = 2 * c.kv_lora_rank - c.qk_nope_head_dim - c.v_head_dim
    cost = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
    return cost // gain + 1 if gain > 0 else 1 << 62


def _seen(step: Step) -> float:
    """Keys that a new token sees, on average."""
    return max(1.0, step.context - (step.each - 1) / 2)


def _absorb(c: DeepseekConfig, step: Step, heads: int) -> Op:
    """Queries into the latent and results out of it, by kv_b's two halves."""
    n = heads * (c.qk_nope_head_dim + c.v_head_dim)
    flops = 2.0 * step.rows * n * c.kv_lora_rank
    nbytes = 2 * n * c.kv_lora_rank + 4 * step.rows * heads * c.kv_lora_rank
    of = f"linear w16a16 {linear_size(step.rows)}"
    kernel = Kernel("bmm", LIBRARY, "the library's choice")
    return Op("absorb", of, c.num_layers, nbytes, flops, "bf16", kernel, "w16a16")


def _latent_bytes(c: DeepseekConfig, cache: str) -> int:
    return latent_record(cache, kv_lora_rank=c.kv_lora_rank, rope_dim=c.qk_rope_head_dim).nbytes


def _scored(c: DeepseekConfig) -> float:
    """Operations of a query, key and head over the latent."""
    return 2.0 * (2 * c.kv_lora_rank + c.qk_rope_head_dim)


def _sparse(case: Case, step: Step, c: DeepseekConfig, heads: int) -> Op:
    assert c.indexer is not None
    topk, widths = c.indexer.topk, (c.kv_lora_rank, c.qk_rope_head_dim)
    kernel = kernels.mla_kernel(step.rows, heads, topk, case.cache, widths, 0, case.device)
    nbytes = step.rows * topk * (_latent_bytes(c, case.cache) + 4)
    flops = step.rows * topk * heads * _scored(c)
    of = "mla_sparse " + ("prefill" if step.rows > 1024 else "decode")
    return Op("attention", of, c.num_layers, nbytes, flops, "bf16", kernel)


def _paged(case: Case, step: Step, c: DeepseekConfig, heads: int) -> Op:
    widths = (c.kv_lora_rank, c.qk_rope_head_dim)
    kernel = kernels.mla_kernel(
        step.rows, heads, step.context, case.cache, widths, step.requests, case.device
    )
    nbytes = step.requests * step.context * _latent_bytes(c, case.cache)
    flops = step.rows * _seen(step) * heads * _scored(c)
    return Op("attention", "mla_paged", c.num_layers, nbytes, flops, "bf16", kernel)


def _expanded(case: Case, step: Step, c: DeepseekConfig, heads: int) -> Iterator[Op]:
    """Keys and values of every head, made of the whole context's latents, then attention."""
    keys, n = step.requests * step.context, heads * (c.qk_nope_head_dim + c.v_head_dim)
    flops = 2.0 * keys * n * c.kv_lora_rank
    nbytes = 2 * n * c.kv_lora_rank + keys * (2 * n + 2 * c.kv_lora_rank)
    made = Kernel("einsum", LIBRARY, "the library's choice")
    yield Op("expand", "linear w16a16 many", c.num_layers, nbytes, flops, "bf16", made, "w16a16")
    wide = c.qk_nope_head_dim + c.qk_rope_head_dim
    kernel = kernels.prefill_kernel(step.each, wide, c.v_head_dim, case.device)
    flops = 2.0 * step.rows * _seen(step) * heads * (wide + c.v_head_dim)
    nbytes = 2 * (step.rows + keys) * heads * (wide + c.v_head_dim)
    yield Op("attention", "attention_prefill", c.num_layers, nbytes, flops, "bf16", kernel)


def _indexer(case: Case, step: Step, c: DeepseekConfig) -> Iterator[Op]:
    index = c.indexer
    assert index is not None
    layers, seen = sum(index.full_layers), _seen(step)
    score, chosen = kernels.indexer_kernels(
        step.each, index.num_heads, index.head_dim, step.context, index.topk, case.device
    )
    width = index.head_dim + 4
    nbytes = step.requests * step.context * width + step.rows * (seen * 4 + index.num_heads * width)
    flops = 2.0 * step.rows * seen * index.num_heads * index.head_dim
    of = "index_logits" if step.each > PROMPT else "index_logits_paged"
    peak = "fp8" if "fp8" in case.gpu.peaks else "bf16"
    yield Op("indexer scores", of, layers, nbytes, flops, peak, score)
    nbytes = step.rows * 4 * (seen + index.topk)
    yield Op("indexer top-k", "topk_select", layers, nbytes, 0.0, "bf16", chosen)


def _grouped(case: Case, step: Step, c: LlamaConfig) -> Op:
    heads, kv = max(1, c.num_heads // case.share.gpus), max(1, c.num_kv_heads // case.share.gpus)
    kernel = kernels.paged_kernel(step.each, heads // kv, c.head_dim, case.cache, case.device)
    token, _ = token_bytes(c, case.cache, case.share)
    windows = [window or step.context for window in c.windows]
    keys = sum(min(step.context, window) for window in windows) / c.num_layers
    nbytes = step.requests * keys * token / c.num_layers
    flops = 4.0 * step.rows * min(_seen(step), keys) * heads * c.head_dim
    return Op("attention", "attention_paged", c.num_layers, nbytes, flops, "bf16", kernel)


# ---------------------------------------------------------------- the rest


def _small(case: Case, step: Step) -> Iterator[Op]:
    """Norms, rotations, cache writes, activations, routing: a pass over the rows each."""
    c = case.model.config
    yield Op("norms", "small", 2 * c.num_layers + 1, 8.0 * step.rows * c.hidden_size)
    per_layer = 4 if isinstance(c, DeepseekConfig) else 3
    wide = c.intermediate_size // case.share.gpus
    yield Op("rope, cache, swiglu", "small", per_layer * c.num_layers, 4.0 * step.rows * wide)
    if c.moe:
        layers = sum(c.moe.sparse_layers)
        kernel = kernels.router_kernel(c.moe.scoring, c.moe.num_experts, case.device)
        nbytes = 4.0 * step.rows * c.moe.num_experts
        yield Op("routing", "small", layers, nbytes, kernel=kernel)
    vocab = c.vocab_size // case.share.gpus
    yield Op("sampling", "small", 2, 4.0 * step.logits * vocab)


def _sums(case: Case, step: Step) -> Iterator[Op]:
    """Two sums over the GPUs in each layer."""
    if case.share.gpus > 1:
        c = case.model.config
        wait = link(case.gpu).seconds(2.0 * step.rows * c.hidden_size, case.share.gpus)
        yield Op("sums over GPUs", "link", 2 * c.num_layers, 0.0, wait=wait)


def prefill_steps(length: int, batch: int, chunk: int, most: int = 12) -> list[tuple[Step, float]]:
    """The steps that read `batch` prompts; of a long one's chunks at most so many.

    Each with how many steps it stands for.
    """
    if length < chunk:
        together = min(batch, chunk // length)
        step = Step(together * length, together, length, together)
        return [(step, batch / together)]
    count = math.ceil(length / chunk)
    last = min(count, most) - 1
    picked = [round(i * (count - 1) / max(1, last)) for i in range(last + 1)]
    found = []
    for i in picked:
        rows = min(chunk, length - i * chunk)
        found.append((Step(rows, 1, i * chunk + rows, 1), batch * count / len(picked)))
    return found
