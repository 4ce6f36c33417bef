"""What `sparkwell plan` says, as data: everything about one model on each of several GPUs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparkwell.errors import BadInput
from sparkwell.hardware.gpus import Gpu
from sparkwell.plan.crossover import Crossover, crossovers
from sparkwell.plan.efficiency import error
from sparkwell.plan.figures import Time, decode_time, prefill_time
from sparkwell.plan.memory import STEP_TOKENS, Memory, cache_dtype, memory
from sparkwell.plan.model import Model
from sparkwell.plan.parts import QUANTIZABLE
from sparkwell.plan.schemes import SCHEMES, Scheme, find
from sparkwell.plan.share import share
from sparkwell.plan.step import Case, Op, Step, operations

FIT = "fit"  # as many GPUs as it takes
MOST_GPUS = 64
MOST_TOKENS = 1 << 30
RANKED = tuple(name for name in SCHEMES if name != "nvfp4-w4a8")  # of which there are checkpoints
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
GRID_LENGTHS = (1024, 8192, 32768, 131072)
CACHES = ("auto", "bf16", "fp8")


@dataclass(frozen=True)
class Asked:
    """What to plan for.  scheme: a name, or None for all.  gpus: None for as many as it takes."""

    context: int = 8192
    batch: int = 1
    input_len: int = 8192
    scheme: str | None = None
    gpus: int | None = 1
    cache: str = "auto"
    experts: str = "auto"
    step_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        for name in ("context", "batch", "input_len", "step_tokens"):
            if not 1 <= getattr(self, name) <= MOST_TOKENS:
                raise BadInput(f"{name} is {getattr(self, name)}, want 1 to {MOST_TOKENS}")
        if self.cache not in CACHES:
            raise BadInput(f"cache is {self.cache!r}, want one of {', '.join(CACHES)}")


@dataclass(frozen=True)
class Row:
    """One scheme on some GPUs.  why: it does not fit, empty where it does."""

    scheme: Scheme
    case: Case
    memory: Memory
    tpot: Time
    ttft: Time
    why: tuple[str, ...]
    asked: Asked

    @property
    def fits(self) -> bool:
        """Whether it can run so."""
        return not self.why

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second of all requests, predicted."""
        return self.asked.batch / self.tpot.predicted


@dataclass(frozen=True)
class OnGpu:
    """A model on `gpus` of one product.  fewest: GPUs that it takes, None: more than MOST_GPUS.

    chosen: the row that details are of: the one asked for, or the best that fits, or the smallest.
    """

    gpu: Gpu
    gpus: int
    rows: tuple[Row, ...]
    chosen: Row
    best: Row | None
    fewest: int | None
    kernels: tuple[Op, ...]
    crossovers: tuple[Crossover, ...]
    layer: tuple[int, int]

    @property
    def fits(self) -> bool:
        """Whether what was asked for fits: the scheme named, or any."""
        return self.chosen.fits


def plan(model: Model, gpu: Gpu, asked: Asked) -> OnGpu:
    """The model on this product.  Raises BadInput for names and numbers that make no sense."""
    most = model.config.max_position
    if asked.context > most:
        raise BadInput(f"context is {asked.context}, but {model.name} was made for {most} tokens")
    schemes = _schemes(model, asked)
    fewest = _fewest(model, gpu, asked, schemes)
    gpus = asked.gpus or fewest or MOST_GPUS
    rows = tuple(_row(model, gpu, asked, scheme, gpus) for scheme in schemes)
    best = _best(rows)
    chosen = best or min(rows, key=lambda row: row.memory.weights)
    layer = _largest(chosen)
    step = Step(asked.batch, asked.batch, asked.context, asked.batch)
    return OnGpu(
        gpu, gpus, rows, chosen, best, fewest, _each_once(operations(chosen.case, step)),
        tuple(crossovers(gpu, *layer)), layer,
    )  # fmt: skip


def _schemes(model: Model, asked: Asked) -> list[Scheme]:
    """Those to compare: the model's own, where it is quantized; the one asked for; or all."""
    if model.stored is not None:
        if asked.scheme is not None:
            raise BadInput(
                f"scheme is {asked.scheme!r}, but {model.name} is quantized already "
                f"({model.stored.words}); leave the scheme out"
            )
        return [model.stored]
    if asked.scheme is not None:
        return [find(asked.scheme)]
    if model.config.moe is None:
        return [SCHEMES[name] for name in RANKED if name != "nvfp4-experts"]
    return [SCHEMES[name] for name in RANKED]


def _case(model: Model, gpu: Gpu, asked: Asked, scheme: Scheme, gpus: int) -> Case:
    shared = share(model.config, model.parts, scheme, gpus, asked.experts)
    return Case(model, scheme, gpu, shared, cache_dtype(model.config, asked.cache))


def _why(case: Case, held: Memory) -> tuple[str, ...]:
    """Why it cannot run so."""
    if case.share.refused:
        return case.share.refused
    if held.missing:
        return (f"lacks {held.missing / 1e9:.1f} GB a GPU",)
    return ()


def _memory(case: Case, asked: Asked) -> Memory:
    step = max(asked.step_tokens, asked.batch)
    return memory(
        case.model, case.scheme, case.gpu, case.share, case.cache, asked.context, asked.batch, step
    )


def _row(model: Model, gpu: Gpu, asked: Asked, scheme: Scheme, gpus: int) -> Row:
    case = _case(model, gpu, asked, scheme, gpus)
    held = _memory(case, asked)
    tpot = decode_time(case, asked.batch, asked.context)
    ttft = prefill_time(case, 1, asked.input_len, asked.step_tokens)
    return Row(scheme, case, held, tpot, ttft, _why(case, held), asked)


def _fewest(model: Model, gpu: Gpu, asked: Asked, schemes: Iterable[Scheme]) -> int | None:
    """GPUs that at least one of the schemes needs, of the numbers that divide the model."""
    several = list(schemes)
    for gpus in range(1, MOST_GPUS + 1):
        for scheme in several:
            case = _case(model, gpu, asked, scheme, gpus)
            if not case.share.refused and not _memory(case, asked).missing:
                return gpus
    return None


def _best(rows: Sequence[Row]) -> Row | None:
    """The fastest to decode of those that fit; of equal ones the fastest to read prompts, then the
    one that keeps more of the weights."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return None
    alike = 1 + error()[0]  # predictions cannot tell less apart
    least = min(row.tpot.predicted for row in fitting)
    quick = [row for row in fitting if row.tpot.predicted <= alike * least]
    first = min(row.ttft.predicted for row in quick)
    return next(row for row in quick if row.ttft.predicted <= alike * first)


def _largest(row: Row) -> tuple[int, int]:
    """n, k of the largest linear layer that one GPU multiplies, experts aside."""
    shared = row.case.share
    mine = [
        shared.part_of(part)
        for part in row.case.model.parts
        if part.group in QUANTIZABLE - {"experts"}
    ]
    part = max(mine, key=lambda one: one.n * one.k)
    return part.n, part.k


def _each_once(ops: Iterable[Op]) -> tuple[Op, ...]:
    """Ops with a kernel or a product, one of each kind of layer."""
    found = {
        (op.layer, op.kernel.op, op.kernel.row, op.arithmetic): op for op in ops if op.kernel.op
    }
    return tuple(found.values())


# ---------------------------------------------------------------- reading what was asked


def number(text: str, what: str) -> int:
    """ "128k" -> 131072; k is 1024, m 1024 k.  Raises BadInput for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([km]?)", text.strip().lower())
    value = float(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2]] if match else 0
    if not 1 <= value <= MOST_TOKENS or value != int(value):
        raise BadInput(f"{what} is {text!r}, want a number of tokens such as 8192, 128k or 1m")
    return int(value)


# ---------------------------------------------------------------- as JSON


def as_json(model: Model, plans: Sequence[OnGpu], asked: Asked) -> Any:
    """The JSON object; docs/plan.md says what each key means."""
    config = model.config
    return {
        "model": {
            "name": model.name,
            "source": model.source,
            "architecture": config.model_type,
            "parameters": model.parameters,
            "layers": config.num_layers,
            "max_context": config.max_position,
            "notes": list(model.notes),
        },
        "asked": {
            "context": asked.context,
            "batch": asked.batch,
            "input": asked.input_len,
            "step_tokens": asked.step_tokens,
            "cache": cache_dtype(config, asked.cache),
        },  # fmt: skip
        "figures": "predictions",
        "error": {"typical": error()[0], "worst": error()[1]},
        "plans": [_plan_json(one) for one in plans],
    }


def _plan_json(one: OnGpu) -> dict[str, Any]:
    return {
        "gpu": one.gpu.name,
        "target": one.gpu.target.name,
        "gpus": one.gpus,
        "fits": one.fits,
        "fewest": one.fewest,
        "scheme": one.chosen.scheme.name,
        "best": one.best.scheme.name if one.best else None,
        "schemes": [_row_json(row) for row in one.rows],
        "kernels": [_op_json(op) for op in one.kernels],
        "crossovers": {
            "layer": list(one.layer),
            "arithmetics": [
                {
                    "arithmetic": x.arithmetic, "ridge": x.ridge,
                    "fastest": list(x.fastest) if x.fastest else None, "lacks": x.lacks,
                }
                for x in one.crossovers
            ],
        },
        "over_batch": over_batch(one.chosen),
        "over_input": over_input(one.chosen),
        "grid": grid(one.chosen),
    }  # fmt: skip


def _row_json(row: Row) -> dict[str, Any]:
    held, shared = row.memory, row.case.share
    return {
        "scheme": row.scheme.name,
        "words": row.scheme.words,
        "made_by_engine": row.scheme.loads,
        "fits": row.fits,
        "why": list(row.why),
        "experts": shared.experts or None,
        "notes": list(shared.notes),
        "weights_bytes": held.weights,
        "model_bytes": sum(row.scheme.nbytes(part) for part in row.case.model.parts),
        "usable_bytes": held.usable,
        "step_bytes": held.step,
        "token_bytes": held.token,
        "index_token_bytes": held.index_token,
        "tokens": held.tokens,
        "max_context": max_context(row),
        "concurrency": concurrency(row),
        "tpot": _time_json(row.tpot),
        "ttft": _time_json(row.ttft),
        "tokens_per_s": round(row.tokens_per_s, 3),
        "binds": row.tpot.binds,
    }


def max_context(row: Row) -> int:
    """Tokens that each request of the batch can have."""
    return min(row.case.model.config.max_position, row.memory.tokens // row.asked.batch)


def concurrency(row: Row) -> int:
    """Requests of the asked context that the caches hold at a time."""
    return row.memory.tokens // row.asked.context


def _time_json(time: Time) -> dict[str, Any]:
    total = max(time.predicted, 1e-30)
    return {
        "bandwidth_s": _short(time.memory),
        "compute_s": _short(time.math),
        "bound_s": _short(time.bound),
        "predicted_s": _short(time.predicted),
        "shares": {key: round(value / total, 3) for key, value in sorted(time.shares.items())},
    }


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _op_json(op: Op) -> dict[str, Any]:
    return {
        "layer": op.layer,
        "op": op.kernel.op,
        "arithmetic": op.arithmetic or None,
        "kernel": op.kernel.row or None,
        "instruction": op.kernel.emits or None,
        "proven": op.kernel.proven,
        "calls": op.count,
        "refused": dict(op.kernel.refused),
    }


def over_batch(row: Row) -> list[dict[str, Any]]:
    """Decoding at the asked context, for each batch whose caches fit."""
    context = row.asked.context
    found = []
    for batch in BATCHES:
        time = decode_time(row.case, batch, context)
        found.append(
            {
                "batch": batch, "context": context, "fits": batch * context <= row.memory.tokens,
                "tpot_bound_s": _short(time.bound), "tpot_s": _short(time.predicted),
                "tokens_per_s": round(batch / time.predicted, 2), "binds": time.binds,
            }
        )  # fmt: skip
    return found


def over_input(row: Row) -> list[dict[str, Any]]:
    """One prompt of each length the model was made for."""
    most = row.case.model.config.max_position
    found = []
    for length in LENGTHS:
        if length > most:
            break
        time = prefill_time(row.case, 1, length, row.asked.step_tokens)
        found.append(
            {
                "input": length, "ttft_bound_s": _short(time.bound),
                "ttft_s": _short(time.predicted),
                "tokens_per_s": round(length / time.predicted, 1), "binds": time.binds,
            }
        )  # fmt: skip
    return found


def grid(row: Row) -> list[dict[str, Any]]:
    """Batches of prompts, each read and then continued: every batch at a few lengths."""
    most = row.case.model.config.max_position
    found = []
    for length in GRID_LENGTHS:
        for batch in BATCHES if length <= most else ():
            ttft = prefill_time(row.case, batch, length, row.asked.step_tokens)
            tpot = decode_time(row.case, batch, length)
            found.append(
                {
                    "input": length,
                    "batch": batch,
                    "fits": batch * length <= row.memory.tokens,
                    "ttft_bound_s": _short(ttft.bound),
                    "ttft_s": _short(ttft.predicted),
                    "tpot_bound_s": _short(tpot.bound),
                    "tpot_s": _short(tpot.predicted),
                    "tokens_per_s": round(batch / tpot.predicted, 2),
                }
            )
    return found
