"""plan -> run of absorbed MLA, over lists of slots and over whole paged contexts."""

import math
from dataclasses import dataclass, field, replace

import torch
import triton

from sparkwell.formats.kv import Record
from sparkwell.formats.paged import PagedCache
from sparkwell.hardware.targets import Feature
from sparkwell.ops.device import Device, device_of
from sparkwell.ops.launch import interpreting, launch
from sparkwell.ops.mla.kernels.dense import run_dense
from sparkwell.ops.mla.kernels.divided import run_divided
from sparkwell.ops.mla.kernels.divided_fp8 import run_divided_fp8
from sparkwell.ops.mla.kernels.exact import exact_kernel
from sparkwell.ops.mla.kernels.finish import merge_kernel
from sparkwell.ops.mla.kernels.gathered import run_gathered
from sparkwell.ops.mla.kernels.grouped import grouped_kernel
from sparkwell.ops.mla.kernels.narrow import run_narrow
from sparkwell.ops.mla.kernels.specialized import run_specialized
from sparkwell.ops.mla.kernels.turned import run_turned
from sparkwell.ops.mla.schedule import EXACT_COLUMNS, GROUP, TABLE, Problem, Schedule, shared
from sparkwell.ops.schedule import EVERY, H200, NO_MMA, Choice, Row, pick

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # out, lse, max_logits
Lists = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, int]
KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KINDS |= {torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True)
class _Merge:
    """Warps of the merge of partial results."""

    num_warps: int = 4
    num_stages: int = 1


_RUNS = {
    "dense": run_dense,
    "divided": run_divided,
    "divided-fp8": run_divided_fp8,
    "gathered": run_gathered,
    "narrow": run_narrow,
    "specialized": run_specialized,
    "turned": run_turned,
}
_MERGE = Row("merge", _Merge(), EVERY, lambda p: True, "everything", NO_MMA, measured_on=H200)


@dataclass(frozen=True)
class MlaPlan:
    """How MLA runs for one shape: the chosen row, the splits, scratch for partial results.

    `run` allocates nothing, waits for nothing and checks nothing.  A plan has one scratch buffer:
    use it on one stream at a time.
    """

    choice: Choice
    problem: Problem
    record: Record
    splits: int
    mode: str
    each: int  # tiles of every request in the dense kernel; 0: found on the device
    scratch: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = field(repr=False)

    def run_sparse(
        self,
        into: Outputs,
        q: torch.Tensor,
        cache: PagedCache,
        slots: torch.Tensor,
        *,
        scale: float,
        topk_length: torch.Tensor | None = None,
        sink: torch.Tensor | None = None,
    ) -> None:
        """`mla_sparse` as planned, into contiguous (out, lse, max_logits)."""
        lists = (slots, topk_length, None, sink, 0)
        self._run(into, q, cache, lists, slots.stride(0), cache.num_slots, scale)

    def run_paged(
        self,
        into: Outputs,
        q: torch.Tensor,
        cache: PagedCache,
        query_start: torch.Tensor,
        context_lens: torch.Tensor,
        block_table: torch.Tensor,
        *,
        scale: float,
    ) -> None:
        """`mla_paged` as planned, into contiguous (out, lse, max_logits)."""
        lists = (block_table, context_lens, query_start, None, len(context_lens))
        self._run(into, q, cache, lists, block_table.stride(0), cache.num_pages, scale)

    def _run(
        self,
        into: Outputs,
        q: torch.Tensor,
        cache: PagedCache,
        lists: Lists,
        stride_lists: int,
        limit: int,
        scale: float,
    ) -> None:
        p, s = self.problem, self.choice.schedule
        if p.keys == 0 or p.rows == 0:
            for tensor, nothing in zip(into, (0.0, math.inf, -math.inf), strict=True):
                tensor.fill_(nothing)
            return
        names, lengths, starts, sink, num_requests = lists
        first = into if self.scratch is None else self.scratch
        run = _RUNS.get(s.algorithm)
        if run is not None:
            run(first, q, cache, lists, stride_lists, scale, plan=self)
            self._merge(into, sink)
            return
        kernel, constants = self._kernel(cache)
        launch(
            kernel, (p.rows, triton.cdiv(p.heads, s.block_h), self.splits), *first, q,
            *self._views(cache), names, lengths, starts, sink if self.scratch is None else None,
            p.heads, p.keys, num_requests, limit, cache.pages.stride(0) // self._word,
            q.stride(0), q.stride(1), stride_lists, scale, choice=self.choice, **constants,
        )  # fmt: skip
        self._merge(into, sink)

    def _merge(self, into: Outputs, sink: torch.Tensor | None) -> None:
        p = self.problem
        if self.scratch is not None:
            # As many columns a block as its registers hold of all parts.
            parts = triton.next_power_of_2(self.splits)
            block = min(512, max(128, 4096 // parts), triton.next_power_of_2(p.d_v))
            launch(
                merge_kernel, (p.rows, p.heads, triton.cdiv(p.d_v, block)), *into, *self.scratch,
                sink, p.heads, p.d_v, p.d_v,
                choice=Choice(self.choice.op, _MERGE, p, self.choice.target),
                SPLITS=self.splits, BLOCK_S=parts, BLOCK_D=block,
            )  # fmt: skip

    @property
    def _word(self) -> int:
        """Bytes that slot offsets count in."""
        if self.problem.record == "fp8":
            return 4
        return self.record.fields[0].dtype.itemsize

    def _views(self, cache: PagedCache) -> tuple[torch.Tensor, ...]:
        """The pages as latents, FP8 scales and rotated keys, each from its first value on."""
        p, pages = self.problem, cache.pages
        if p.record != "fp8":
            values = pages.view(self.record.fields[0].dtype)
            return values, values, values[:, p.rank :]
        latent = pages.view(torch.int16) if self.choice.schedule.algorithm == "grouped" else pages
        scales = pages.view(torch.float32)[:, p.rank // 4 :]
        rope_at = p.rank // 2 + 2 * (p.rank // GROUP)
        return latent, scales, pages.view(torch.bfloat16)[:, rope_at:]

    def _kernel(self, cache: PagedCache) -> tuple[object, dict[str, object]]:
        p, s = self.problem, self.choice.schedule
        fp8, size = p.record == "fp8", self.record.nbytes
        gapless = cache.pages.stride(0) == cache.page_size * size and not p.paged
        constants: dict[str, object] = {
            "PAGED": p.paged, "FP8": fp8, "PAGE": 0 if gapless else cache.page_size,
            "RECORD": size, "RANK": p.rank, "ROPE": p.rope, "SPLITS": self.splits,
            "BLOCK_H": s.block_h, "BLOCK_N": s.block_n, "STAGES": s.stages,
        }  # fmt: skip
        if s.algorithm == "grouped":
            groups = p.rank // GROUP
            part = max(16, triton.next_power_of_2(triton.cdiv(p.rope, groups)))
            # In 2-byte elements: what every record's address is a multiple of.
            align = math.gcd(16, size, cache.pages.stride(0)) // 2
            constants |= {"MODE": self.mode, "G": groups, "ROPE_PART": part, "ALIGN": align}
            return grouped_kernel, constants | {"SPLIT_Q": p.query == "fp16"}
        groups = triton.next_power_of_2(triton.cdiv(p.rank, EXACT_COLUMNS))
        part = max(16, triton.next_power_of_2(triton.cdiv(p.rope, groups)))
        constants |= {"D_V": p.d_v, "G": groups, "ROPE_PART": part}
        return exact_kernel, constants | {"WORD": self._word}


def plan_mla(
    op: str,
    *,
    rows: int,
    heads: int,
    keys: int,
    record: Record,
    query: torch.dtype,
    device: torch.device,
    d_v: int = 512,
    requests: int = 0,
    max_query_len: int | None = None,
    page_size: int = 1,
    aligned: bool = False,
) -> MlaPlan:
    """Choose and size `op` for q [rows, heads, width] of dtype `query` on `device`.

    op: "mla_sparse" (run it by `run_sparse`) or "mla_paged" (`run_paged`).
    keys: of one row at most: top-k, or the longest context.
    requests, max_query_len, page_size: of "mla_paged"; None: a request may have all the rows.
    aligned: every record of the cache starts at a multiple of 16 bytes.
    Raises Unsupported with every row's reason where none serves.
    """
    gpu = device_of(device)
    rank = record.fields[0].count
    kinds = KINDS[record.fields[0].dtype], KINDS[query]
    widths = rank, record.width - rank, d_v
    usual = triton.cdiv(rows, max(1, requests)) if max_query_len is None else max_query_len
    paged = op == "mla_paged"
    problem = Problem(rows, heads, keys, *kinds, *widths, paged, usual * heads, page_size, aligned)
    choice = _interpretable(pick(op, TABLE, problem, gpu.target, shared=shared))
    each = 0
    if max_query_len is not None:
        tiles = triton.cdiv(problem.pairs, choice.schedule.block_h)
        # Where few requests are that long, tiles are better found than planned for all.
        searched = rows * heads // choice.schedule.block_h + requests
        each = tiles if requests * tiles <= searched else 0
    splits = _splits(problem, choice.schedule, gpu, requests)
    scratch = None
    if splits > 1:
        shape = (rows, splits, heads)
        part, part_lse, part_max = (
            torch.empty(size, dtype=torch.float32, device=device)
            for size in ((*shape, d_v), shape, shape)
        )
        scratch = (part, part_lse, part_max)
    return MlaPlan(choice, problem, record, splits, _mode(gpu), each, scratch)


def _splits(p: Problem, s: Schedule, gpu: Device, requests: int) -> int:
    """Blocks that share a query's keys: enough to fill the GPU once, none without a tile."""
    blocks = p.rows * triton.cdiv(p.heads, s.block_h)
    dense = s.algorithm in ("specialized", "narrow", "dense")
    if dense:
        blocks = requests * triton.cdiv(p.pairs, s.block_h)
    room = gpu.sms * s.blocks // max(1, blocks)
    most = 64 if s.algorithm in ("grouped", "exact") else 128
    return max(1, min(room, triton.cdiv(p.keys, s.block_n), most))


def _interpretable(choice: Choice) -> Choice:
    """Triton's interpreter runs each kernel whose warps have roles in a plain form."""
    if not interpreting() or choice.schedule.algorithm not in _RUNS:
        return choice
    if choice.schedule.algorithm in ("specialized", "narrow"):
        schedule = replace(choice.schedule, algorithm="dense")
    else:
        schedule = replace(choice.schedule, algorithm="grouped", block_h=16, block_n=32)
    return replace(choice, row=replace(choice.row, schedule=schedule))


def _mode(gpu: Device) -> str:
    """How e4m3 becomes float16: see `kernels.unpack`."""
    if interpreting():
        return "integers"
    return "shift" if gpu.target.missing(Feature.FP8_CONVERT) else "convert"
