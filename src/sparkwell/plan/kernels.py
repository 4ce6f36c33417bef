"""Which kernel serves each kind of layer: asked of the same tables as a launch asks.

Problems are made as the ops make them of tensors: 16-bit activations, rows at multiples of 16
bytes.  A test records what the ops launch and compares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sparkwell.errors import Unsupported
from sparkwell.hardware.gpus import Gpu
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.attention.schedule import (
    PAGED,
    PREFILL,
    PagedProblem,
    PrefillProblem,
    paged_shared,
    prefill_shared,
    split_width,
)
from sparkwell.ops.device import Device
from sparkwell.ops.indexer import schedule as indexer
from sparkwell.ops.linear import schedule as linear
from sparkwell.ops.linear.decision import PLAIN, Decision, Described, choose, rows_read
from sparkwell.ops.mla import schedule as mla
from sparkwell.ops.moe import schedule as moe
from sparkwell.ops.moe.decision import narrow
from sparkwell.ops.schedule import Row, pick
from sparkwell.plan.efficiency import rung
from sparkwell.plan.schemes import BLOCK, Format

PAGE = 64  # tokens
EMITS = {
    "HMMA": "mma.sync, 16-bit", "QMMA": "mma.sync, FP8", "OMMA": "mma.sync, FP4",
    "HGMMA": "wgmma, 16-bit", "QGMMA": "wgmma, FP8", "UTCHMMA": "tcgen05, 16-bit",
    "UTCQMMA": "tcgen05, FP8", "UTCOMMA": "tcgen05, FP4",
}  # fmt: skip
LIBRARY = "torch"


@dataclass(frozen=True)
class Kernel:
    """What serves an op.

    row: of the op's table; LIBRARY: torch's own product; "": nothing.  emits: its matrix
    instruction, in words.  proven: the highest step on this target, None without a record.
    refused: the rows before it, or all of them, each with its reason.
    """

    op: str
    row: str
    emits: str = ""
    proven: str | None = None
    refused: tuple[tuple[str, str], ...] = ()


def device_of(gpu: Gpu) -> Device:
    """What selection asks about, of a product."""
    return Device(gpu.target, int(gpu.sms.value), gpu.device_names[0] if gpu.device_names else "")


def _ask(
    op: str,
    tables: Sequence[Row],
    problem: Any,
    target: Target,
    shared: Callable[[Any, Any, Target], int] | None,
) -> Kernel:
    try:
        choice = pick(op, tables, problem, target, shared=shared)
    except Unsupported as error:
        return Kernel(op, "", refused=tuple(error.refused.items()))
    passed = []
    for row in tables[: list(tables).index(choice.row)]:
        reason = row.refusal(problem, target) or "takes more shared memory than a block can have"
        passed.append((row.name, reason))
    emits = _words(choice.row.emits, target)
    return Kernel(op, choice.row.name, emits, rung(op, target.name), tuple(passed))


def _words(emits: str, target: Target) -> str:
    """The instruction that a row's pattern promises; the target's own of several."""
    names = [part.strip(r"\b.") for part in emits.split("|") if part]
    own = {"mma.sync": ("HMMA", "QMMA", "OMMA"), "wgmma": ("HGMMA", "QGMMA")}
    mine = own.get(str(target.tensor_path), ("UTCHMMA", "UTCQMMA", "UTCOMMA"))
    chosen = [name for name in names if name in mine] or names
    return EMITS.get(chosen[-1], "") if chosen else ""


# ---------------------------------------------------------------- products


def described(kind: Format, n: int, k: int) -> Described:
    """A weight as `ops.linear.decision` sees it."""
    block = BLOCK if kind.kind == "Fp8Block" else 0
    return Described(kind.kind, (n, k), kind.nbytes(n, k), kind.activations, block)


@cache
def linear_kernel(m: int, n: int, k: int, kind: Format, device: Device) -> tuple[Decision, Kernel]:
    """x [m, k] times a weight [n, k]: in which arithmetic, by which kernel."""
    weight = described(kind, n, k)
    decision, target = choose(m, weight, device), device.target
    if weight.kind == PLAIN:
        return decision, Kernel("linear", LIBRARY, "the library's choice")
    group = {"Fp8Block": BLOCK, "Fp8Rows": 0}.get(kind.kind, kind.group)
    if decision.arithmetic == "w4a4":
        problem = linear.Problem(m, n, k, "fp4", "fp4", 16)
        shared: Any = linear.blockscaled_shared
        return decision, _ask("linear", linear.BLOCKSCALED, problem, target, shared)
    if decision.arithmetic == "w4a8":
        problem = linear.Problem(m, n, k, kind.linear, "fp8", group)
        return decision, _ask("linear", linear.EXPANDED, problem, target, linear.expanded_shared)
    if decision.arithmetic == "w8a8":
        problem = linear.Problem(
            m, n, k, "fp8", "fp8", group, sms=device.sms, boxes=k % 16 == 0
        )  # fmt: skip
        return decision, _ask("linear", linear.SCALED, problem, target, linear.scaled_shared)
    few = _few(device)
    zeros = kind.kind == "Int4Group"
    boxes = kind.linear == "nvfp4" and k % 256 == 0
    problem = linear.Problem(
        m, n, k, kind.linear, "bf16", group, zeros, few, sms=device.sms, boxes=boxes
    )  # fmt: skip
    return decision, _ask("linear", linear.TABLE, problem, target, linear.shared)


def _few(device: Device) -> int:
    from sparkwell.ops.linear.decision import product_like

    gpu = product_like(device)
    return linear.few_rows(gpu.peaks["bf16"].value, gpu.bandwidth.value, device.target.tensor_path)


@cache
def experts_kernel(
    tokens: int, topk: int, num_experts: int, hidden: int, width: int, kind: Format, device: Device
) -> tuple[str, Kernel]:
    """Experts of `tokens` rows: in which arithmetic, by which kernel (of the first product)."""
    pairs, target = max(1, tokens * topk), device.target
    factored = kind.group if kind.kind == "Int4Group" else BLOCK * (kind.kind == "Fp8Block")
    lift = moe.Problem(kind.experts, "bf16", moe.SHORT, width, hidden, True, factored, 2)
    drop = moe.Problem(kind.experts, "bf16", moe.SHORT, hidden, width, False, factored, 4)
    lift, drop = moe.sized((lift, drop), pairs, num_experts, target)
    each = pairs / min(pairs, num_experts)
    expert = described(kind, 2 * width, hidden)
    arithmetic = f"w{expert.bits}a16"
    narrowed = narrow(
        (lift, drop), kind.activations, target, "auto", each, lambda: rows_read(expert, device)
    )
    if narrowed:
        arithmetic = {"fp8": "w8a8", "fp4": "w4a4"}[narrowed]
        lift = moe.narrowed(lift, narrowed, target)
    return arithmetic, _ask("experts", moe.TABLE, lift, target, moe.shared)


def router_kernel(scoring: str, num_experts: int, device: Device) -> Kernel:
    """The choice of experts."""
    problem = moe.RouteProblem(num_experts)
    return _ask(f"route_{scoring}", moe.ROUTE, problem, device.target, None)


# ---------------------------------------------------------------- attention


def mla_kernel(
    rows: int,
    heads: int,
    keys: int,
    cache: str,
    widths: tuple[int, int],
    requests: int,
    device: Device,
) -> Kernel:
    """Absorbed attention over whole contexts; requests 0: over lists of `keys` slots.

    widths: of the latent and of the rotated key.
    """
    rank, rope = widths
    paged = requests > 0
    nbytes = {"fp8": rank + 4 * (rank // mla.GROUP) + 2 * rope, "bf16": 2 * (rank + rope)}[cache]
    problem = mla.Problem(
        rows, heads, keys, cache, "bf16", rank, rope, rank, paged,
        pairs=-(-rows // requests) * heads if paged else rows * heads,
        page_size=PAGE if paged else 1, aligned=nbytes % 16 == 0,
    )  # fmt: skip
    op = "mla_paged" if paged else "mla_sparse"
    return _ask(op, mla.TABLE, problem, device.target, mla.shared)


def indexer_kernels(
    rows: int, heads: int, d: int, columns: int, topk: int, device: Device
) -> tuple[Kernel, Kernel]:
    """Scores of `rows` queries of a request over FP8 keys, and the choice among them."""
    score = indexer.Problem(rows, heads, d, "fp8", True, True, copyable=True)
    chosen = indexer.SelectProblem(columns, topk)
    return (
        _ask("index_select", indexer.SCORES, score, device.target, indexer.shared),
        _ask("topk_select", indexer.SELECT, chosen, device.target, indexer.select_shared),
    )


def paged_kernel(queries: int, group: int, head_dim: int, cache: str, device: Device) -> Kernel:
    """Grouped-query attention: `queries` rows of a request, `group` heads on a key head."""
    widths, fp8 = split_width(head_dim), cache == "fp8"
    lacks = bool(device.target.missing(Feature.FP8_CONVERT))
    exact = bool(head_dim % 16)
    problem = PagedProblem(sum(widths), max(widths), queries * group, exact, fp8, fp8 and lacks)
    return _ask("attention_paged", PAGED, problem, device.target, paged_shared)


def prefill_kernel(rows: int, d_qk: int, d_v: int, device: Device) -> Kernel:
    """Attention over expanded heads."""
    keys, values = split_width(d_qk), split_width(d_v)
    copyable = all(sum(split_width(d)) == d >= 64 for d in (d_qk, d_v)) and not values[1]
    problem = PrefillProblem(
        sum(keys), sum(values), max(*keys, *values), rows, False, copyable, False
    )
    return _ask("attention_prefill", PREFILL, problem, device.target, prefill_shared)
