"""Launch of a grouped product: what a row of the table and a layout make of the operands."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.device import device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.moe.kernels.grouped import grouped_kernel
from sparkwell.ops.moe.kernels.streamed import streamed
from sparkwell.ops.moe.kernels.turned import STREAMED, turn_kernel
from sparkwell.ops.moe.operand import Operand
from sparkwell.ops.moe.schedule import TURN, CombineProblem, Problem, turn_shared
from sparkwell.ops.schedule import Choice, pick

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_OPERAND = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}


@dataclass(frozen=True)
class Layout:
    """Which rows a tile has, and whose; `kernels.places` says what the names mean.

    tiles: their number at most.  ids: of the pairs or rows, ends or counts, by the layout.
    pairs: which pair stands at a position.  table: [3, tiles] int32.
    first, experts: the range of experts whose weights are here.  per_row: pairs of a row of x.
    height: rows of x, "counted": of a group, each of whose `slots` takes every slots-th tile.
    align: of "rows" and "ends".  counts: what the table is made of, held while that may last.
    """

    name: str
    tiles: int
    experts: int
    ids: torch.Tensor | None = None
    pairs: torch.Tensor | None = None
    table: torch.Tensor | None = None
    first: int = 0
    per_row: int = 1
    height: int = 0
    align: int = 1
    slots: int = 1
    counts: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of x: floats; bytes of e4m3 with a scale for each group of columns; or NVFP4, bytes of
    two codes with an e4m3 scale for each 16 columns and a factor for each row."""

    values: torch.Tensor
    scales: torch.Tensor | None = None
    factors: torch.Tensor | None = None

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of the values' rows, the scales' rows and the scales' columns."""
        scales = (0, 0) if self.scales is None else self.scales.stride()
        return self.values.stride(0), scales[0], scales[1]


def product(
    y: torch.Tensor,
    x: Rows,
    weight: Operand,
    layout: Layout,
    choice: Choice,
    problem: Problem,
    *,
    gather: bool = False,
    scatter: bool = False,
    turns: int = 0,
    parts: int = 1,
    add: torch.Tensor | None = None,
) -> None:
    """gather: x by a pair's row.  scatter: y by the pair.  add: to the product, may be y itself.

    Where the schedule is turned, x is (`turned`).  turns: bits of the codes for which y is to be.
    """
    s, p = choice.schedule, problem
    if s.streamed:
        sms = device_of(y.device).sms
        streamed(y, x, weight, layout, choice, p, turns=turns, parts=parts, sms=sms)
        return
    step = s.step(p.group)
    kind, convert = _operand(weight.kind, p.type, choice.target)
    convert = convert and not s.turned  # which takes codes out of words by integer steps
    pointers = weight.pointers
    if x.factors is not None:  # the units take scales by their type
        assert weight.scales is not None
        pointers = (pointers[0], weight.scales.view(torch.float8_e4m3fn), *pointers[2:])
    left = _left(weight.kind, convert, kind, x.scales is not None)
    launch(
        grouped_kernel, (layout.tiles * triton.cdiv(p.n, s.block_n),), y, x.values, x.scales,
        *pointers, layout.pairs, layout.table, layout.ids, add, x.factors, layout.first,
        layout.experts, p.n, p.k, layout.tiles, layout.per_row, layout.height, layout.slots,
        y.stride(0), *x.strides, 0 if add is None else add.stride(0), *weight.strides,
        choice=choice,
        KIND=weight.kind, GROUP=weight.group, BLOCK_ROWS=weight.block_rows, CONVERT=convert,
        ASM=not interpreting(), LEFT=left, TYPE=kind, LAYOUT=layout.name, ALIGN=layout.align,
        GATED=p.gated, GATHER=gather, SCATTER=scatter, BLOCK_N=s.block_n, BLOCK_M=s.block_m,
        BLOCK_K=step, EVEN=p.k % step == 0, STAGES=s.num_stages, X_FACTORS=x.factors is not None,
        TURNED=s.turned, TURNS=turns,
    )  # fmt: skip


def bits(choice: Choice, weight: Operand) -> int:
    """Of the codes for which a schedule wants x turned; 0: it does not."""
    return (
        0
        if not choice.schedule.turned
        else STREAMED.value
        if choice.schedule.streamed
        else 8
        if weight.kind.startswith("fp8")
        else 4
    )


def turned(x: torch.Tensor, bits: int, target: Target, early: bool = False) -> Rows:
    """Columns in the order that `kernels.turned` says; x itself for 0 bits.

    Streams take bfloat16 as float16, with a power of two a row.
    early: the kernel before does not make x and lets the next one start.
    """
    if not bits:
        return Rows(x)
    rows, k = x.shape
    choice, block = (
        pick("experts", TURN, CombineProblem(k), target, shared=turn_shared),
        triton.next_power_of_2(k),
    )
    y, factors = torch.empty((rows, k), dtype=x.dtype, device=x.device), None
    if bits == STREAMED.value and x.dtype == torch.bfloat16:
        y = torch.empty_like(y, dtype=torch.float16)
        factors = torch.empty(rows, dtype=torch.float32, device=x.device)
    launch(
        turn_kernel, (rows,), y, factors, x, k, x.stride(0), choice=choice,
        BITS=bits, BLOCK=block, EARLY=bits == STREAMED.value and not interpreting(),
        launch_pdl=early,
    )  # fmt: skip
    return Rows(y, factors=factors)


def _operand(form: str, kind: str, target: Target) -> tuple[tl.dtype, bool]:
    """Type of the product's operands, and whether e4m3 is converted by instructions for it."""
    if kind == "fp4":
        return tl.uint8, False
    if kind == "fp8":
        native = not target.missing(Feature.FP8_MMA)
        return (tl.float8e4nv if native else tl.float16), native
    # To bfloat16 the conversions of a GPU without FP8 mma.sync are slower than integer steps.
    quick = Feature.FP8_MMA_SYNC if kind == "bf16" else Feature.FP8_CONVERT
    convert = form in ("fp8-block", "fp8-rows") and not target.missing(quick)
    return (tl.bfloat16 if form == "mxfp4" and kind != "fp32" else _OPERAND[kind]), convert


def _left(form: str, convert: bool, kind: tl.dtype, both: bool) -> int:
    """The power of two that tiles lack; both: that x's lack, too."""
    if form == "nvfp4":
        return 1 if kind == tl.uint8 else 128
    if not form.startswith("fp8") or convert or kind == tl.bfloat16:
        return 1
    return 256 * 256 if both else 256
