"""Rows for attention: tiles by head width, by rows a request has, and by element type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparkwell.hardware.targets import Target
from sparkwell.ops.schedule import (
    EVERY,
    H200,
    HGMMA,
    HMMA,
    LARGE,
    NO_MMA,
    SMALL,
    UTCHMMA,
    Row,
)

WGMMA = frozenset({90})
TCGEN = frozenset({100, 103})
MMA_SYNC = EVERY - WGMMA - TCGEN
CHUNK = 32  # columns of fp32 keys multiplied at a time: a whole row would not fit in registers
FEW_ROWS = 64  # a request with fewer leaves one of two warp groups idle


def split_width(d: int) -> tuple[int, int]:
    """A head width as two powers of two >= 16 (the second may be 0) that cover it: 192 -> 128, 64.

    Tiles have power-of-two sides; one tile of 256 for 192 would waste a third of the products.
    """
    whole = max(16, 1 << (d - 1).bit_length())
    half = whole // 2
    rest = max(16, 1 << (d - half - 1).bit_length()) if d > half else half
    return (half, rest) if half >= 16 and rest < half else (whole, 0)


@dataclass(frozen=True)
class PrefillProblem:
    """keys, values: width of a padded head.  rows: of a request, on average.

    widest: of the tiles a head is cut into.  exact: products in fp32.
    copyable: the tensor copy engine can read queries, keys and values.
    windowed: rows see a window of the keys.
    """

    keys: int
    values: int
    widest: int
    rows: int
    exact: bool
    copyable: bool
    windowed: bool

    @property
    def width(self) -> int:
        """Of the wider of keys and values."""
        return max(self.keys, self.values)

    @property
    def whole(self) -> bool:
        """Whether keys and values are one tile wide each."""
        return _is_power(self.keys) and _is_power(self.values)


@dataclass(frozen=True)
class PrefillSchedule:
    """Query rows and keys of a tile; whether its warps have roles."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    specialize: bool = False


def _exact(width: int) -> Callable[[Any], bool]:
    """fp32 products of heads no wider than this."""
    return lambda p: p.exact and p.width <= width


def _holds(keys: int, values: int) -> Callable[[PrefillProblem], bool]:
    """Whether heads are no wider than this."""
    return lambda p: not p.exact and p.keys <= keys and p.values <= values


def _whole(width: int) -> Callable[[PrefillProblem], bool]:
    fits = _holds(width, width)
    return lambda p: fits(p) and p.whole


def _mixed(p: PrefillProblem) -> bool:
    return _holds(192, 128)(p) and _is_power(p.values)


def _is_power(width: int) -> bool:
    return not width & (width - 1)


def _roles(keys: int, values: int) -> Callable[[PrefillProblem], bool]:
    fits = _holds(keys, values)
    return lambda p: fits(p) and p.copyable and p.rows > FEW_ROWS


def _unwindowed(p: PrefillProblem) -> bool:
    return _roles(192, 128)(p) and not p.windowed


# fmt: off
PREFILL: tuple[Row, ...] = (
    #   name           schedule                               targets     serves
    Row("exact",       PrefillSchedule(16, 32, 4, 1),         EVERY,      _exact(192),
        "fp32, mixed types or rows off 16-byte steps, width <= 192", NO_MMA),
    Row("exact-wide",  PrefillSchedule(16, 16, 4, 1),         EVERY,      _exact(256),
        "fp32, mixed types or rows off 16-byte steps, width <= 256", NO_MMA),
    Row("roles",       PrefillSchedule(128, 128, 4, 2, True), WGMMA,      _unwindowed,
        "tensors the copy engine reads, over 64 rows, widths <= 192, 128, no window", HGMMA,
        measured_on=H200),
    Row("roles-wide",  PrefillSchedule(128, 64, 4, 2, True),  WGMMA,      _roles(256, 256),
        "tensors the copy engine reads, over 64 rows, widths <= 256", HGMMA),
    Row("wgmma",       PrefillSchedule(128, 64, 8, 3),        WGMMA,      _holds(128, 128),
        "widths <= 128", HGMMA),
    Row("wgmma-wide",  PrefillSchedule(64, 64, 8, 2),         WGMMA,      _holds(256, 256),
        "widths <= 256", HGMMA),
    Row("tcgen",       PrefillSchedule(128, 64, 8, 2),        TCGEN,      _holds(128, 128),
        "widths <= 128", UTCHMMA),
    Row("tcgen-wide",  PrefillSchedule(64, 32, 8, 2),         TCGEN,      _holds(256, 256),
        "widths <= 256", UTCHMMA),
    Row("mma",         PrefillSchedule(128, 64, 8, 3),        MMA_SYNC,   _whole(128),
        "widths <= 128, powers of two", HMMA),
    Row("mma-mixed",   PrefillSchedule(64, 64, 8, 2),         MMA_SYNC,   _mixed,
        "widths <= 192, 128, one tile of values", HMMA),
    Row("mma-wide",    PrefillSchedule(64, 32, 8, 2),         MMA_SYNC,   _holds(256, 256),
        "widths <= 256", HMMA),
)
# fmt: on


def prefill_shared(problem: PrefillProblem, schedule: PrefillSchedule, target: Target) -> int:
    """Bytes of shared memory a block takes: queries, tiles in flight, weights between layouts."""
    s = schedule
    if problem.exact:
        return _exact_shared(s, problem.widest)
    queries = s.block_m * problem.keys * 2
    depth = _in_flight(s, target)
    keys, values = (s.block_n * width * 2 for width in (problem.keys, problem.values))
    if target.sm in TCGEN and not _is_power(problem.keys):
        return queries + keys + depth * values  # two products in a row hold up the copies
    return queries + depth * (keys + values) + _weights(s, problem.values, target)


def _exact_shared(schedule: Any, widest: int) -> int:
    """A product's operands, one after the other: queries and keys in chunks, weights and values."""
    m, n = schedule.block_m, schedule.block_n
    return 4 * max((m + n) * CHUNK, m * n + n * widest)


def _in_flight(schedule: Any, target: Target) -> int:
    """Tiles in shared memory at a time: mma.sync takes its operands to registers first."""
    return schedule.num_stages - (target.sm in MMA_SYNC)


def _weights(schedule: Any, values: int, target: Target) -> int:
    """Weights go through shared memory where mma.sync's two products share rows unlike."""
    unlike = values > 64 and _is_power(values)
    shared = target.sm in MMA_SYNC and schedule.block_m <= 64 and unlike
    return schedule.block_m * schedule.block_n * 2 if shared else 0


@dataclass(frozen=True)
class PagedProblem:
    """width: of a padded head.  rows: (token, head) pairs of a request and key head.

    widest: of the tiles a head is cut into.  exact: products in fp32.
    fp8: the cache holds e4m3.  bytes: it is read as bytes.
    """

    width: int
    widest: int
    rows: int
    exact: bool
    fp8: bool
    bytes: bool


@dataclass(frozen=True)
class PagedSchedule:
    """Rows and keys of a tile; whether tiles that need no mask have a loop of their own."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    two_loops: bool = False


def _serves(rows: int | None, width: int) -> Callable[[PagedProblem], bool]:
    few = lambda p: rows is None or p.rows <= rows  # noqa: E731
    return lambda p: not p.exact and p.width <= width and few(p)


def _fp8_chunk(p: PagedProblem) -> bool:
    return _serves(None, 256)(p) and p.fp8


def _typed_few(p: PagedProblem) -> bool:
    return _serves(16, 128)(p) and not p.bytes


def _plain_few(p: PagedProblem) -> bool:
    return _serves(16, 128)(p) and not p.fp8


# fmt: off
PAGED: tuple[Row, ...] = (
    #   name           schedule                               targets     serves
    Row("exact",       PagedSchedule(16, 32, 8, 1),           EVERY,      _exact(128),
        "fp32, mixed types or rows off 16-byte steps, width <= 128", NO_MMA),
    Row("exact-wide",  PagedSchedule(16, 16, 4, 1),           EVERY,      _exact(256),
        "fp32, mixed types or rows off 16-byte steps, width <= 256", NO_MMA),
    Row("decode",      PagedSchedule(16, 128, 4, 3),          LARGE,      _typed_few,
        "rows <= 16, width <= 128, no fp8 as bytes", HMMA),
    Row("decode-99k",  PagedSchedule(16, 64, 2, 3),           SMALL,      _plain_few,
        "rows <= 16, width <= 128, no fp8", HMMA),
    Row("decode-fp8",  PagedSchedule(16, 64, 4, 3),           MMA_SYNC,   _serves(16, 128),
        "rows <= 16, width <= 128", HMMA),
    Row("decode-wide", PagedSchedule(16, 32, 4, 3),           EVERY,      _serves(16, 256),
        "rows <= 16, width <= 256", HMMA),
    Row("wgmma",       PagedSchedule(64, 64, 8, 2, True),     WGMMA,      _serves(None, 128),
        "width <= 128", HGMMA),
    Row("wgmma-wide",  PagedSchedule(64, 32, 8, 2, True),     WGMMA,      _serves(None, 256),
        "width <= 256", HGMMA),
    Row("tcgen",       PagedSchedule(64, 32, 8, 2, True),     TCGEN,      _serves(None, 256),
        "width <= 256", UTCHMMA),
    Row("mma-fp8",     PagedSchedule(64, 32, 8, 1),           MMA_SYNC,   _fp8_chunk,
        "fp8", HMMA),
    Row("mma",         PagedSchedule(64, 32, 8, 2),           MMA_SYNC,   _serves(None, 256),
        "width <= 256", HMMA),
)
# fmt: on


def paged_shared(problem: PagedProblem, schedule: PagedSchedule, target: Target) -> int:
    """Bytes of shared memory a block takes."""
    s = schedule
    if problem.exact:
        return _exact_shared(s, problem.widest)
    queries = s.block_m * problem.width * 2
    if s.num_stages == 1:  # keys, then values in their place
        return queries + s.block_n * problem.widest + _weights(s, problem.width, target)
    tile = s.block_n * problem.width * 2 * (1 if problem.fp8 else 2)
    scales = s.block_n * 8 if problem.fp8 else 0
    weights = s.block_m * s.block_n * 2
    alone = s.block_n == 32 * s.num_warps  # page numbers, one a thread, stay in registers
    pages = 0 if alone else s.block_n * 4 * (s.num_stages - 1)
    if s.block_m == 16:  # mma.sync on every target
        depth = s.num_stages - (1 if alone else 2)
        return queries + depth * (tile + scales) + weights + pages
    total = queries + _in_flight(s, target) * (tile + scales) + pages
    if target.sm in TCGEN:  # one operand as bfloat16, or barriers and a row's sums
        return total + (s.block_n * problem.width * 2 if problem.fp8 else 1024)
    return total + _weights(s, problem.width, target)


@dataclass(frozen=True)
class MergeSchedule:
    """Columns of a block."""

    block_d: int
    num_warps: int
    num_stages: int = 1


MERGE: tuple[Row, ...] = (
    Row("merge", MergeSchedule(64, 4), EVERY, lambda parts: True, "everything", NO_MMA),
)
