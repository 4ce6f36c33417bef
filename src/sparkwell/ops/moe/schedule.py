"""Rows of the mixture of experts.

Products: a tile of one expert's positions by a block of its outputs.  Sorting: a chunk of pairs a
block.  Routers: a row of logits a block.  Combining: a tile of one token's columns a block.
"""

import math
from dataclasses import dataclass, replace

from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.linear.schedule import roles_shared
from sparkwell.ops.schedule import (
    EVERY,
    H200,
    HGMMA,
    HMMA,
    NO_MMA,
    QGMMA,
    QMMA,
    UTCHMMA,
    UTCQMMA,
    Row,
)

STEP = 32  # columns at a time where a row of the table does not say
WHOLE = 64  # what k and groups are multiples of where a row says
GROUP = 128  # columns of FP8 operands that share a scale
FP4_STEP = 256  # columns at a time where both operands are NVFP4
STREAM = 256  # columns at a time where one warp copies
SHORT = 16  # the least height of a tile but of streams
FEW = 4  # rows of an expert for which streams have tiles of half that


@dataclass(frozen=True)
class Problem:
    """A grouped product.  kind: of the weight's format: "float", "fp8-block", "nvfp4", ...

    type: of the operands, "bf16", "fp16", "fp32", "fp8" or "fp4".  height: positions of a tile (`height`).
    n, k: outputs and columns of one expert's weight; gated: of each half of it.
    group: columns whose sums share a factor; 0: the operand has its scales in it.
    result: bytes of a value of the result.
    aligned: rows of every operand start at multiples of 16 bytes.
    stacked: rows of all experts, scales' too, have one distance, a multiple of 16 bytes.
    boxes: the copy engine reads both operands, rows of a block of 128 share a scale, and nothing
        but the rows' own group decides where they lie.
    """

    kind: str
    type: str
    height: int
    n: int
    k: int
    gated: bool
    group: int = 0
    result: int = 4
    aligned: bool = True
    stacked: bool = True
    boxes: bool = False

    @property
    def form(self) -> str:
        """Formats of both operands: one row serves several, by code of its own for each."""
        return f"{self.kind} by {self.type}"


@dataclass(frozen=True)
class Schedule:
    """A block makes block_n outputs of block_m positions, block_k columns at a time.

    block_k 0: as many as a group allows, 32 at most.
    turned: columns of x come in the order in which threads hold a weight's codes.
    streamed: warps have roles and so many blocks stay on a multiprocessor; 0: not so.
    roles: some warps copy, the others multiply (`kernels.fp8_products`).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    turned: bool = False
    streamed: int = 0
    roles: bool = False

    def step(self, group: int) -> int:
        """Columns at a time, for groups of `group` columns."""
        return self.block_k or math.gcd(group, STEP) or STEP


@dataclass(frozen=True)
class RouteProblem:
    """num_experts: logits of a row."""

    num_experts: int


@dataclass(frozen=True)
class CombineProblem:
    """width: of a token's result."""

    width: int


@dataclass(frozen=True)
class SortProblem:
    """pairs of a token and an expert."""

    pairs: int


@dataclass(frozen=True)
class Warps:
    """Warps of a block, and the columns (or pairs) it takes."""

    num_warps: int
    block: int = 0
    num_stages: int = 1


def height(pairs: int, num_experts: int, split: bool = False) -> int:
    """Positions of a tile: few where an expert has few, since those of a tile cost all alike.

    split: x becomes two tiles (float16 by MXFP4): registers hold no more than short ones.
    """
    each = pairs / max(1, min(pairs, num_experts))
    return SHORT if split or each <= SHORT else 64 if each <= 64 else 128


def streams(p: Problem) -> bool:
    """Whether a weight can be copied by tiles, and its products take parts of the columns."""
    whole = p.k % STREAM == 0 and (p.gated or p.n % 64 == 0)
    return p.kind == "nvfp4" and p.type in ("bf16", "fp16") and p.stacked and p.aligned and whole


def sized(
    pair: tuple[Problem, Problem], pairs: int, num_experts: int, target: Target
) -> tuple[Problem, Problem]:
    """Both products in tiles of one height, since one table of tiles serves both."""
    if not all(map(regular, pair)):
        tall = SHORT
    elif (
        pairs <= FEW * min(pairs, num_experts)
        and not target.missing(Feature.WGMMA)
        and all(map(streams, pair))
    ):
        tall = SHORT // 2
    else:
        tall = height(pairs, num_experts, any(p.kind == "mxfp4" and p.type == "fp16" for p in pair))
    return replace(pair[0], height=tall), replace(pair[1], height=tall)


def narrowed(p: Problem, kind: str, target: Target) -> Problem:
    """The same product of FP8 or NVFP4 operands.

    Block-scaled tcgen05 takes 128 outputs at least; two halves of as many positions do not fit.
    """
    short = kind == "fp4" and not target.missing(Feature.TCGEN05)
    return replace(p, type=kind, height=min(p.height, 64) if short else p.height)


def regular(p: Problem) -> bool:
    """Whether operands can be copied 16 bytes at a time, in whole steps; others get short tiles."""
    return p.aligned and p.type != "fp32" and p.k % WHOLE == 0 and p.group % WHOLE == 0


def shared(p: Problem, s: Schedule, target: Target) -> int:
    """Bytes of shared memory a block takes: stages of both operands, or the result's turning.

    wgmma and tcgen05 read buffers while others fill: they keep one more of what they read there,
    which a weight that is converted on the way is not.  Neither turns the result in one piece.
    """
    if s.roles:
        return roles_shared(s.block_n, s.num_stages, True, p.result > 2)
    step, halves = s.step(p.group), 2 if p.gated else 1
    if s.streamed:
        rows = halves * s.block_n
        ring = s.num_stages * step * (rows // 2 + rows // 16 + 2 * s.block_m)
        return ring + (4 * s.block_n * s.block_m if p.gated else 0)
    if p.type == "fp32":  # one operand pair at a time
        return 4 * step * (s.block_m + s.block_n)
    if s.num_stages == 1:
        return p.result * s.block_m * s.block_n
    rows = halves * s.block_n
    if p.type == "fp4":  # codes, and a scale for each 16 of them
        buffers = (s.num_stages - 1) * (halves * s.block_n + s.block_m) * (step // 2 + step // 16)
        return (
            buffers
            if not target.missing(Feature.TCGEN05)
            else max(buffers, p.result * s.block_m * s.block_n)
        )
    eight = p.type == "fp8"
    x = (1 if eight else 2) * s.block_m * step
    weight = int(rows * step * _BYTES[p.kind])
    scales = {"nvfp4": rows * step // 16, "fp8-block": 4 * rows}.get(p.kind, 0)
    few = p.kind == "nvfp4" and scales < 4 * 32 * s.num_warps * halves
    # Less than the 4 bytes a thread that can be copied are loaded, and change hands once.
    buffers = (s.num_stages - 1) * (x + weight) + scales * (1 if few else s.num_stages - 1)
    if eight:
        buffers += (s.num_stages - 1) * 4 * s.block_m
    late = target.missing(Feature.WGMMA) and target.missing(Feature.TCGEN05)
    if late:
        padding = 16 * s.block_n if p.result < 4 else 0
        return max(buffers, p.result * s.block_m * s.block_n + padding)
    if p.group and not eight and target.missing(Feature.WGMMA):  # each sum is waited for
        return buffers
    split = p.kind == "mxfp4" and p.type == "fp16"  # x as two bfloat16 tiles
    return buffers + (2 * x if split else x) + (weight if p.kind == "float" else 0)


def turn_shared(p: CombineProblem, s: Warps, _: Target) -> int:
    """Bytes of shared memory a block takes: a row between two orders, some of it at a time."""
    return min(2 * p.width, 1024 * s.num_warps)


_BYTES = {"float": 2.0, "fp8-block": 1.0, "fp8-rows": 1.0, "nvfp4": 0.5, "mxfp4": 0.5, "int4": 0.5}
_FLOAT, _FP8, _FP4 = ("float",), ("fp8-block", "fp8-rows"), ("nvfp4", "mxfp4", "int4")
_SYNC = ("", EVERY - {90, 100, 103}, HMMA)
_LATER = (("-wgmma", frozenset({90}), HGMMA), ("-tcgen05", frozenset({100, 103}), UTCHMMA))
_UNITS = (_SYNC, *_LATER)
_EIGHT = (
    ("", frozenset({80, 86}), HMMA),
    ("-qmma", frozenset({89, 120, 121}), QMMA),
    ("-wgmma", frozenset({90}), QGMMA),
    ("-tcgen05", frozenset({100, 103}), UTCQMMA),
)
_FOUR = (
    ("", frozenset({120, 121}), r"\bOMMA\b"),
    ("-tcgen05", frozenset({100, 103}), r"\bUTCOMMA\b"),
)
_Units = tuple[tuple[str, frozenset[int], str], ...]


def _rows(
    name: str,
    s: Schedule,
    kinds: tuple[str, ...],
    gated: bool | None = None,
    units: _Units = _UNITS,
    *,
    narrow: str = "",
    timed: frozenset[int] = frozenset(),
) -> list[Row]:
    """A row for each kind of tensor core: operands copied 16 bytes at a time, in whole steps.

    narrow: type of both operands where that is "fp8" or "fp4".  timed: targets of
    the row that was timed on an H200.
    """

    def when(p: Problem) -> bool:
        whole = p.k % s.block_k == 0 and p.group % s.block_k == 0
        fits = p.kind in kinds and p.height == s.block_m and gated in (None, p.gated)
        return (
            regular(p) and whole and fits and (p.type if p.type in ("fp8", "fp4") else "") == narrow
        )

    of = "" if gated is None else ", gated" if gated else ", not gated"
    serves = (
        f"{', '.join(kinds)}; {narrow.upper() or '16-bit'} operands at multiples of 16 bytes, k and groups of "
        f"{s.block_k} n, tiles of {s.block_m}{of}"
    )
    return [
        Row(
            name + unit,
            s,
            targets,
            when,
            serves,
            emits,
            measured_on=H200 if targets == timed else None,
        )
        for unit, targets, emits in units
    ]


def _streams(name: str, s: Schedule, gated: bool, measured_on: str | None = None) -> list[Row]:
    """A Hopper row of NVFP4 by few rows."""

    def when(p: Problem) -> bool:
        return streams(p) and p.height == s.block_m and p.gated == gated

    serves = (
        f"nvfp4; 16-bit x, k of {STREAM} n, experts side by side, tiles of {s.block_m}, "
        f"{'' if gated else 'not '}gated"
    )
    return [Row(name, s, frozenset({90}), when, serves, HMMA, measured_on=measured_on)]


def _odd(name: str, s: Schedule, units: _Units, *, exact: bool = False) -> list[Row]:
    def when(p: Problem) -> bool:
        fits = p.height == s.block_m and p.group % 16 == 0
        return fits and p.type in (("fp32",) if exact else ("bf16", "fp16"))

    serves = f"{'fp32' if exact else '16-bit'} operands, groups of 16 n, tiles of {s.block_m}"
    return [Row(name + unit, s, targets, when, serves, emits) for unit, targets, emits in units]


def _boxed(p: Problem) -> bool:
    return p.type == "fp8" and p.height == 128 and p.boxes and p.group % GROUP == 0


# fmt: off
TABLE: tuple[Row, ...] = (
    Row("w8a8-roles",      Schedule(128, 256, 128, 4, 4, roles=True), frozenset({90}), _boxed, "FP8 rows that the copy engine reads, in tiles of 128, half-precision results", QGMMA, measured_on=H200),
    Row("w8a8-roles-wide", Schedule(128, 256, 128, 4, 3, roles=True), frozenset({90}), _boxed, "FP8 rows that the copy engine reads, in tiles of 128", QGMMA),
    #       name           positions, outputs, columns, warps, stages
    *_rows("float-16",     Schedule(16, 64, 64, 4, 4),   _FLOAT),
    *_rows("float-64",     Schedule(64, 64, 64, 4, 3),   _FLOAT),
    *_rows("float-128",    Schedule(128, 64, 64, 8, 3),  _FLOAT, True),
    *_rows("float-wide",   Schedule(128, 128, 64, 8, 3), _FLOAT, False),
    *_rows("fp8-turned",   Schedule(16, 64, 128, 4, 3, True), _FP8, units=_LATER[:1]),
    *_rows("fp8-16",       Schedule(16, 64, 128, 4, 3),  _FP8, units=(_SYNC, _LATER[1])),
    *_rows("fp8-64",       Schedule(64, 64, 64, 4, 3),   _FP8),
    *_rows("fp8-128",      Schedule(128, 64, 64, 8, 3),  _FP8, True),
    *_rows("fp8-wide",     Schedule(128, 128, 64, 8, 3), _FP8, False),
    *_streams("fp4-streamed-8",  Schedule(8, 64, 256, 4, 3, True, 3),   True, H200),
    *_streams("fp4-streamed-8",  Schedule(8, 128, 256, 4, 3, True, 3),  False, H200),
    *_streams("fp4-streamed-16", Schedule(16, 64, 256, 4, 2, True, 3),  True),
    *_streams("fp4-streamed-16", Schedule(16, 128, 256, 4, 2, True, 3), False),
    *_rows("fp4-turned",   Schedule(16, 64, 128, 4, 4, True), _FP4[:2], units=_LATER[:1]),
    *_rows("fp4-16",       Schedule(16, 64, 128, 4, 4),  _FP4, units=_LATER),
    *_rows("mxfp4-16",     Schedule(16, 64, 64, 8, 5),   _FP4[1:2], units=(_SYNC,)),
    *_rows("bytes-16",     Schedule(16, 64, 64, 4, 5),   _FP8 + _FP4),
    *_rows("fp4-64",       Schedule(64, 64, 64, 4, 3),   _FP4),
    *_rows("fp4-128",      Schedule(128, 64, 64, 8, 3),  _FP4, True, _LATER),
    *_rows("fp4-128",      Schedule(128, 64, 32, 8, 4),  _FP4, True, (_SYNC,)),
    *_rows("fp4-wide",     Schedule(128, 128, 64, 8, 3), _FP4, False, _LATER),
    *_rows("fp4-wide",     Schedule(128, 128, 32, 8, 4), _FP4, False, (_SYNC,)),
    *_rows("w8a8-16",      Schedule(16, 64, 64, 4, 4),   _FP8, None, _EIGHT[:1], narrow="fp8"),
    *_rows("w8a8-16",      Schedule(16, 64, 128, 4, 4),  _FP8, None, _EIGHT[1:], narrow="fp8", timed=frozenset({90})),
    *_rows("w8a8-64",      Schedule(64, 64, 64, 4, 3),   _FP8, None, _EIGHT[:1], narrow="fp8"),
    *_rows("w8a8-64",      Schedule(64, 64, 128, 4, 3),  _FP8, None, _EIGHT[1:], narrow="fp8"),
    *_rows("w8a8-128",     Schedule(128, 64, 128, 8, 3), _FP8, True, _EIGHT, narrow="fp8"),
    *_rows("w8a8-wide",    Schedule(128, 128, 64, 8, 3), _FP8, False, _EIGHT[:2], narrow="fp8"),
    *_rows("w8a8-wide",    Schedule(128, 128, 128, 8, 3), _FP8, False, _EIGHT[2:], narrow="fp8"),
    *_rows("w8a8-half-16", Schedule(16, 64, 64, 4, 4),   _FP8, False, _EIGHT[1:], narrow="fp8"),
    *_rows("w8a8-half",    Schedule(128, 128, 64, 8, 3), _FP8, False, _EIGHT[2:], narrow="fp8"),
    *_rows("w4a4-16",      Schedule(16, 128, 128, 4, 3), _FP4[:1], None, _FOUR, narrow="fp4"),
    *_rows("w4a4-64",      Schedule(64, 128, 128, 8, 3), _FP4[:1], None, _FOUR, narrow="fp4"),
    *_rows("w4a4-128",     Schedule(128, 64, 256, 8, 3), _FP4[:1], True, _FOUR[:1], narrow="fp4"),
    *_rows("w4a4-wide",    Schedule(128, 128, 128, 8, 3), _FP4[:1], False, _FOUR[:1], narrow="fp4"),
    *_odd("odd",           Schedule(16, 64, 0, 8), (_SYNC,)),
    *_odd("odd",           Schedule(16, 64, 0, 4), _LATER),
    *_odd("exact",         Schedule(16, 16, 0, 4), (("", EVERY, NO_MMA),), exact=True),
)

SORT: tuple[Row, ...] = (
    Row("sort", Warps(4, 128), EVERY, lambda p: True, "every number of pairs", NO_MMA, measured_on=H200),
)

ROUTE: tuple[Row, ...] = (
    Row("few",  Warps(1), EVERY, lambda p: p.num_experts <= 128, "E <= 128", NO_MMA),
    Row("many", Warps(4), EVERY, lambda p: True,                 "every E",  NO_MMA),
)

TURN: tuple[Row, ...] = (
    Row("turn", Warps(8), frozenset({90}), lambda p: True, "every width", NO_MMA, measured_on=H200),
)

COMBINE: tuple[Row, ...] = (
    Row("combine", Warps(4, 512), EVERY, lambda p: True, "every width", NO_MMA, measured_on=H200),
)
# fmt: on
