"""How several GPUs share a model: what each holds, and why some numbers of GPUs do not work.

Tensor parallelism (TP) cuts every product; latent caches, the indexer and everything small are
replicated.  Expert parallelism (EP) gives each GPU whole experts and cuts the rest as TP does.
"""

from dataclasses import dataclass

from sparkwell.checkpoints.architectures import LlamaConfig
from sparkwell.errors import BadInput
from sparkwell.ops.linear.decision import PLAIN
from sparkwell.plan.parts import Config, Part
from sparkwell.plan.schemes import BLOCK, Scheme

EXPERTS = ("auto", "tp", "ep")
ENGINE = "several GPUs want an engine with tensor parallelism, such as vLLM; ours runs on one"


@dataclass(frozen=True)
class Share:
    """gpus: that share one model.  experts: "tp", "ep", or "" where there are none or one GPU.

    refused: why they cannot; empty: they can.  notes: what is replicated, what was chosen.
    """

    gpus: int
    experts: str
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def part_of(self, part: Part) -> Part:
        """What one GPU holds of it, the largest share."""
        if self.gpus == 1:
            return part
        n, k, experts = part.n, part.k, part.experts
        if part.group == "experts" and self.experts == "ep":
            experts = -(-experts // self.gpus)
        elif part.split == "rows":
            n = -(-n // self.gpus)
        elif part.split == "columns":
            k = -(-k // self.gpus)
        return Part(part.name, part.group, n, k, part.layers, experts, part.split, part.nbytes)

    def nbytes(self, part: Part, scheme: Scheme) -> int:
        """Bytes one GPU holds of this part."""
        whole, mine = scheme.nbytes(part), self.part_of(part)
        return round(whole * mine.parameters / max(1, part.parameters))


def share(
    config: Config, parts: tuple[Part, ...], scheme: Scheme, gpus: int, experts: str = "auto"
) -> Share:
    """How `gpus` GPUs hold the model in this scheme.

    experts: "tp" or "ep"; "auto": TP where it divides, else EP.
    Raises BadInput for another name or fewer than one GPU.
    """
    if experts not in EXPERTS:
        raise BadInput(f"experts is {experts!r}, want one of {', '.join(EXPERTS)}")
    if gpus < 1:
        raise BadInput(f"gpus is {gpus}, want at least 1")
    if gpus == 1:
        return Share(1, "")
    common = _heads(config, gpus) + _cuts(parts, scheme, gpus, routed=False)
    notes = [ENGINE, *_replicated(config)]
    if config.moe is None:
        return Share(gpus, "", tuple(common), tuple(notes))
    by_width = _cuts(parts, scheme, gpus, routed=True)
    by_expert = []
    if config.moe.num_experts % gpus:
        by_expert = [f"{config.moe.num_experts} experts do not divide by {gpus}"]
    chosen = experts
    if experts == "auto":
        chosen = "tp" if not by_width else "ep"
        if by_width and not by_expert:
            notes.append(f"experts by EP, since {by_width[0]}")
    refused = common + (by_width if chosen == "tp" else by_expert)
    if experts == "auto" and by_width and by_expert:
        refused = common + by_width + by_expert
    return Share(gpus, chosen, tuple(refused), tuple(notes))


def divisors(
    config: Config, parts: tuple[Part, ...], scheme: Scheme, most: int = 64
) -> tuple[int, ...]:
    """Numbers of GPUs that can share the model."""
    found = range(1, most + 1)
    return tuple(n for n in found if not share(config, parts, scheme, n).refused)


def _heads(config: Config, gpus: int) -> list[str]:
    refused = []
    if config.num_heads % gpus:
        refused.append(f"{config.num_heads} heads do not divide by {gpus}")
    if isinstance(config, LlamaConfig):
        kv = config.num_kv_heads
        if kv % gpus and gpus % kv:
            refused.append(f"{kv} key heads neither divide by {gpus} nor divide it")
    return refused


def _cuts(parts: tuple[Part, ...], scheme: Scheme, gpus: int, *, routed: bool) -> list[str]:
    """Quantized weights that a cut would hit inside a block or a group."""
    refused = []
    for part in parts:
        size, kind = part.n if part.split == "rows" else part.k, scheme.format(part)
        if part.split == "none" or (part.group == "experts") != routed or kind.kind == PLAIN:
            continue
        step = BLOCK if kind.kind == "Fp8Block" else kind.group if part.split == "columns" else 1
        if size % (gpus * step):
            each = f" of {step}" if step > 1 else ""
            name = part.name.rpartition(".weight")[0].rpartition(".")[2]
            why = f"{name}'s {size} {part.split} do not divide into {gpus} x blocks{each}"
            refused.append(f"{why} ({size / gpus:g} a GPU, {kind.kind})")
    return list(dict.fromkeys(refused))


def _replicated(config: Config) -> list[str]:
    if isinstance(config, LlamaConfig):
        return []
    caches = "latent cache and indexer" if config.indexer else "latent cache"
    return [f"each GPU holds the whole {caches}: more GPUs hold no more context"]
