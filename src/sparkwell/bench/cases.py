"""The speed table: which cases are timed, beside whom, and how fast they are meant to be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparkwell.errors import BadInput
from sparkwell.verify.case import Case
from sparkwell.verify.cases.speed import CASES
from sparkwell.verify.cases.speed_products import CASES as PRODUCTS


@dataclass(frozen=True)
class Line:
    """One line of the table.

    peers: names in `sparkwell.bench.peers`; the fastest of those that are there counts.
    want: our speed over the peer's, at least; None: no goal.
    target: another GPU's code, run on this one; None: this GPU's own.
    of_floor: the least time that the formula allows over ours, at least; None: no goal.
    """

    case: Case
    peers: tuple[str, ...]
    want: float | None
    target: str | None = None
    of_floor: float | None = None

    @property
    def name(self) -> str:
        """How the line is called on the command line and in records."""
        return self.case.name + (f"@{self.target}" if self.target else "")


_SPARSE = {"h8": 1.7, "h16": 1.7, "h32": 1.1, "h64": 0.9, "h128": 0.75}


def _sparse_want(name: str) -> float:
    heads = name.rsplit("-", 1)[1]
    if name.startswith("prefill"):
        return 2.0 if heads == "h16" else 0.65
    return 1.9 if "-b1-" in name else _SPARSE[heads]


def _linear_line(case: Case) -> Line:
    form, _, shape = case.name.split("-")
    m, n, k = (int(size) for size in shape.split("x"))
    if form == "int4":
        return Line(case, ("marlin",), 1.0)
    if form == "fp8":
        want = 1.3 if m <= 16 else 0.8 if m >= 4096 else None
        return Line(case, ("deep_gemm_linear",), want)
    few = 2.0 if (n, k) == (2048, 6144) else 1.5
    return Line(case, ("marlin",), few if m <= 16 else 1.1 if m <= 256 else 1.4)


def _lines(case: Case) -> list[Line]:
    match case.op:
        case "mla_sparse":
            peer = "flash_mla_prefill" if case.name.startswith("prefill") else "flash_mla_sparse"
            return [Line(case, (peer,), _sparse_want(case.name))]
        case "mla_paged":
            own = Line(case, ("flash_mla_dense", "flashinfer_fa3"), 0.95)
            return [own, Line(case, ("flashinfer_fa2",), 1.0, "sm_121")]
        case "index_logits":
            return [Line(case, ("deep_gemm_prefill",), 0.75)]
        case "index_logits_paged":
            return [Line(case, ("deep_gemm_decode",), 1.0)]
        case "topk_select":
            return [Line(case, ("vllm_topk",), 1.0)]
        case "attention_prefill":
            return [Line(case, ("fa3",), 0.8)]
        case "linear":
            return [_linear_line(case)]
        case "grouped_linear":
            return [Line(case, ("deep_gemm_grouped",), 0.75 if "prefill" in case.name else 1.1)]
        case "experts":
            one = case.name.endswith("-b1")
            return [Line(case, ("marlin_experts",), 1.2, of_floor=0.6 if one else None)]
    raise AssertionError(f"{case.op} {case.name}: no line of the speed table")


LINES: tuple[Line, ...] = tuple(line for case in CASES + PRODUCTS for line in _lines(case))


def met(entry: dict[str, Any]) -> bool | None:
    """Whether a record's time is what its line wants; None where nothing is wanted or known."""
    share = entry.get("want_of_floor")
    if share is not None and entry["floor_us"] < share * entry["us"]:
        return False
    if entry["want"] is None:
        return None if share is None else True
    return None if entry["ratio"] is None else bool(entry["ratio"] >= entry["want"])


def goal(entry: dict[str, Any]) -> str:
    """What a record's line wants, in words: "1.2, 60 % of the floor"."""
    share = entry.get("want_of_floor")
    words = [] if entry["want"] is None else [f"{entry['want']:g}"]
    return ", ".join(words if share is None else [*words, f"{100 * share:.0f} % of the floor"])


def chosen(ops: Sequence[str] = (), cases: Sequence[str] = ()) -> tuple[Line, ...]:
    """The lines of these ops (or folders: "mla") whose name has one of these parts.

    Raises BadInput where nothing is left.
    """
    found = tuple(
        line
        for line in LINES
        if (not ops or any(line.case.op.startswith(op) for op in ops))
        and (not cases or any(part in line.name for part in cases))
    )
    if not found:
        known = ", ".join(sorted({line.case.op for line in LINES}))
        raise BadInput(f"bench: no case fits ops {list(ops)}, cases {list(cases)}; ops: {known}")
    return found
