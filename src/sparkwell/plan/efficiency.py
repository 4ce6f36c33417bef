"""How close to its bounds each kind of op comes, and where it is proven: from our own records.

A time is start + max(bytes / (memory * bandwidth), operations / (math * peak)), with bandwidth and
peak as published for the GPU.  `derive` fits start, memory and math to bench/records and writes
facts.json; what no record covers is assumed here, and every figure says which of the two it is.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("facts.json")


FEW, SOME = 16, 1024  # rows of a linear layer's x
FEW_TOKENS = 64  # of experts


def linear_size(rows: int) -> str:
    """How many rows a linear layer's x has, in the name of a kind: other kernels, other factors."""
    return "few" if rows <= FEW else "some" if rows <= SOME else "many"


def experts_size(rows: int) -> str:
    """How many rows experts get, likewise."""
    return "few" if rows <= FEW_TOKENS else "many"


@dataclass(frozen=True)
class Efficiency:
    """start: microseconds of a launch's own.  memory, math: shares of the published rates.

    records: that it was fitted to; 0: assumed.  typical, worst: of the fit's error, as factors
    minus 1.  of: the kind of op.
    """

    of: str
    start: float
    memory: float
    math: float
    records: int = 0
    typical: float = 0.0
    worst: float = 0.0

    def seconds(self, bytes_bound: float, math_bound: float) -> float:
        """Of one call whose bounds at the published rates are these many seconds."""
        return self.start * 1e-6 + max(bytes_bound / self.memory, math_bound / self.math)


def _assumed(of: str, start: float, memory: float, math: float) -> Efficiency:
    return Efficiency(of, start, memory, math)


# Start, memory, math.  16-bit products are cuBLAS's: 785 of 989 TFLOP/s on an H200.  The quantized
# ones are what single runs of our kernels on an H200 came to before there were records; where both
# operands are FP4, and for 16-bit experts, by likeness.  All give way to records.
ASSUMED = {
    one.of: one
    for one in (
        _assumed("linear w16a16 few", 3.0, 0.80, 0.60),
        _assumed("linear w16a16 some", 4.0, 0.80, 0.70),
        _assumed("linear w16a16 many", 4.0, 0.80, 0.79),
        _assumed("linear w8a16 few", 4.0, 0.85, 0.20),
        _assumed("linear w8a16 some", 6.0, 0.60, 0.30),
        _assumed("linear w8a16 many", 8.0, 0.50, 0.65),
        _assumed("linear w4a16 few", 4.0, 0.55, 0.25),
        _assumed("linear w4a16 some", 6.0, 0.45, 0.45),
        _assumed("linear w4a16 many", 8.0, 0.30, 0.65),
        _assumed("linear w8a8 few", 6.0, 0.75, 0.40),
        _assumed("linear w8a8 some", 8.0, 0.75, 0.33),
        _assumed("linear w8a8 many", 11.0, 0.80, 0.33),
        _assumed("linear w4a8 few", 6.0, 0.55, 0.40),
        _assumed("linear w4a8 some", 8.0, 0.55, 0.33),
        _assumed("linear w4a8 many", 11.0, 0.55, 0.33),
        _assumed("linear w4a4 few", 6.0, 0.55, 0.40),
        _assumed("linear w4a4 some", 8.0, 0.55, 0.40),
        _assumed("linear w4a4 many", 11.0, 0.55, 0.40),
        _assumed("experts w16a16 few", 25.0, 0.80, 0.40),
        _assumed("experts w16a16 many", 30.0, 0.50, 0.45),
        _assumed("experts w8a16 few", 25.0, 0.80, 0.40),
        _assumed("experts w8a16 many", 30.0, 0.40, 0.45),
        _assumed("experts w4a16 few", 28.0, 0.50, 0.40),
        _assumed("experts w4a16 many", 30.0, 0.40, 0.45),
        _assumed("experts w8a8 few", 27.0, 0.90, 0.40),
        _assumed("experts w8a8 many", 30.0, 0.30, 0.40),
        _assumed("experts w4a4 few", 28.0, 0.50, 0.40),
        _assumed("experts w4a4 many", 30.0, 0.40, 0.40),
        _assumed("attention_paged", 6.0, 0.75, 0.40),
        _assumed("attention_prefill", 4.0, 0.80, 0.50),
        _assumed("mla_paged", 12.0, 0.80, 0.45),
        _assumed("mla_sparse decode", 10.0, 0.45, 0.30),
        _assumed("mla_sparse prefill", 10.0, 1.00, 0.35),
        _assumed("index_logits", 4.0, 0.80, 0.45),
        _assumed("index_logits_paged", 4.0, 0.80, 0.25),
        _assumed("topk_select", 10.0, 0.30, 1.00),
        _assumed("small", 2.0, 0.60, 1.00),
    )
}
# What was never timed takes the factors of what is most like it, where that was: of the first its
# share of the bandwidth (the same weights), of the second start and share of the peak.
LIKE = {
    "linear w4a8 few": ("linear w4a16 few", "linear w4a16 few"),
    "linear w4a8 some": ("linear w4a16 some", "linear w8a8 some"),
    "linear w4a8 many": ("linear w8a8 many", "linear w8a8 many"),
    "linear w4a4 few": ("linear w4a16 few", "linear w4a16 few"),
    "linear w4a4 some": ("linear w4a16 some", "linear w8a8 some"),
    "linear w4a4 many": ("linear w8a8 many", "linear w8a8 many"),
    "experts w4a4 few": ("experts w4a16 few", "experts w8a8 few"),
    "experts w4a4 many": ("experts w8a8 many", "experts w8a8 many"),
    "experts w8a16 few": ("experts w8a8 few", "experts w4a16 few"),
}


@cache
def facts() -> dict[str, Any]:
    """What `derive` wrote."""
    return json.loads(FACTS.read_text())


def efficiency(of: str) -> Efficiency:
    """The factors of a kind of op, one of ASSUMED's names."""
    fitted = facts()["efficiency"]
    if of in fitted:
        return Efficiency(of, **fitted[of])
    memory, rest = LIKE.get(of, ("", ""))
    if memory in fitted and rest in fitted:
        like = fitted[rest]
        return Efficiency(of, like["start"], fitted[memory]["memory"], like["math"])
    return ASSUMED[of]


def quantizing(rows: float, columns: float, bandwidth: float) -> float:
    """Seconds of the launch that quantizes x: 16-bit values read, a byte for each written."""
    return efficiency("small").seconds(3 * rows * columns / bandwidth, 0.0)


def rung(op: str, target: str) -> str | None:
    """The highest step that holds for an op on a target ("sm_121"), or None without a record."""
    return facts()["rungs"].get(op, {}).get(target)


def error() -> tuple[float, float]:
    """Typical (root mean square) and worst error of the fitted times, as factors minus 1."""
    stated = facts()["error"]
    return stated["typical"], stated["worst"]
