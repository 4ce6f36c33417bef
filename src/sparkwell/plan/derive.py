"""Makes facts.json of bench/records: `python -m sparkwell.plan.derive` in a checkout.

Each kind of op gets the three factors of `efficiency` that fit its records' times best, in the
least squares of logarithms, so that twice too long and twice too short count alike.
"""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkwell.formats.kv import latent_record
from sparkwell.hardware.gpus import match_device_name
from sparkwell.plan.efficiency import ASSUMED, FACTS, experts_size, linear_size

RECORDS = Path("bench/records")
STARTS = [float(x) for x in range(31)]
SHARES = [0.95**x for x in range(41)]  # of a published rate
FROM_L2 = "mla_sparse prefill"  # the one kind whose bytes come faster than memory gives them
BEYOND = [0.95**-x for x in range(1, 7)]
FIXED = 4.0  # microseconds, of kinds with too few records to tell; their memory is USUAL's
USUAL = (0.8, 0.5)  # memory, math: what a kind leans to that its records do not decide
LEAN = 0.01  # how much: a rate three times off USUAL must bring 11 % on one record


@dataclass(frozen=True)
class Timed:
    """One record: seconds it took, and its bounds at the published rates."""

    of: str
    op: str
    case: str
    us: float
    bytes_us: float
    math_us: float

    def predicted(self, start: float, memory: float, math_share: float) -> float:
        """Microseconds."""
        return start + max(self.bytes_us / memory, self.math_us / math_share)


def timed(record: dict[str, Any]) -> Timed | None:
    """A record as the model sees it; None for other records and other targets' code."""
    if "us" not in record or record.get("target") is not None or "gbs" not in record:
        return None
    gpu, of = match_device_name(record["gpu"]), kind_of(record["op"], record["case"])
    if gpu is None or of not in ASSUMED or peak_of(of) not in gpu.peaks:
        return None
    nbytes, flops = record["gbs"] * record["us"] * 1e3, record["tflops"] * record["us"] * 1e6
    nbytes = _gathered(record["op"], record["case"]) or nbytes
    peak = gpu.peaks[peak_of(of)].value
    bounds = 1e6 * nbytes / gpu.bandwidth.value, 1e6 * flops / peak
    return Timed(of, record["op"], record["case"], record["us"], *bounds)


def kind_of(op: str, name: str) -> str | None:
    """The kind of op that a timed case is of; None: none that plans need."""
    match op:
        case "mla_sparse":
            return f"{op} {'prefill' if name.startswith('prefill') else 'decode'}"
        case "linear":
            match = re.fullmatch(r"(\w+)-(w\d+a\d+)-(\d+)x\d+x\d+", name)
            if match is None or match[1] == "int4":
                return None
            return f"linear {match[2]} {linear_size(int(match[3]))}"
        case "grouped_linear":
            return f"experts w8a8 {'many' if 'prefill' in name else 'few'}"
        case "experts":
            match = re.fullmatch(r"\w+-(w\d+a\d+)-\w+-b(\d+)", name)
            return f"experts {match[1]} {experts_size(int(match[2]))}" if match else None
        case "mla_paged" | "index_logits" | "index_logits_paged" | "topk_select":
            return op
        case "attention_prefill":
            return op
    return None


def peak_of(of: str) -> str:
    """Which peak a kind's products run at."""
    if of.startswith("index") or "a8" in of:
        return "fp8"
    return "fp4" if "a4" in of else "bf16"


def _gathered(op: str, case: str) -> float | None:
    """Sparse prefill reads each row's keys anew, mostly from the L2."""
    match = re.match(r"prefill-(\w+)-(\d+)x(\d+)-", case) if op == "mla_sparse" else None
    if match is None:
        return None
    return int(match[2]) * int(match[3]) * latent_record(match[1]).nbytes


def fit(rows: list[Timed]) -> dict[str, float]:
    """start, memory, math of the least error, and what error is left."""
    shares = BEYOND + SHARES if rows[0].of == FROM_L2 else SHARES
    best: tuple[float, float, float, float] | None = None
    enough = len(rows) > 2
    for start in STARTS if enough else [FIXED]:
        for memory in shares if enough else USUAL[:1]:
            for share in SHARES:
                far = sum(math.log(x.predicted(start, memory, share) / x.us) ** 2 for x in rows)
                lean = math.log(memory / USUAL[0]) ** 2 + math.log(share / USUAL[1]) ** 2
                cost = far + LEAN * lean
                if best is None or cost < best[0]:
                    best = (cost, start, memory, share)
    assert best is not None
    found = tuple(round(x, 3) for x in best[1:])
    typical, worst = errors(x.predicted(*found) / x.us for x in rows)
    return {
        "start": found[0], "memory": found[1], "math": found[2], "records": len(rows),
        "typical": typical, "worst": worst,
    }  # fmt: skip


def errors(ratios: Iterable[float]) -> tuple[float, float]:
    """Root mean square and largest of the ratios' distances from 1, as factors minus 1."""
    logs = [abs(math.log(ratio)) for ratio in ratios]
    typical = math.sqrt(sum(x * x for x in logs) / max(1, len(logs)))
    return round(math.exp(typical) - 1, 3), round(math.exp(max(logs, default=0)) - 1, 3)


def read(folder: Path) -> list[Timed]:
    """The newest timing of each case on each GPU."""
    found = {}
    for line in (folder / "kernels.jsonl").read_text().splitlines():
        record = json.loads(line)
        if (one := timed(record)) is not None:
            found[record["gpu"], one.op, one.case] = one
    return list(found.values())


def derive(folder: Path) -> dict[str, Any]:
    """The contents of facts.json."""
    from sparkwell.verify import records as verified

    grouped: dict[str, list[Timed]] = defaultdict(list)
    for one in read(folder):
        grouped[one.of].append(one)
    fitted = {of: fit(rows) for of, rows in sorted(grouped.items())}
    rungs: dict[str, dict[str, str]] = defaultdict(dict)
    for (op, name), rung in sorted(verified.highest(verified.read(folder)).items()):
        rungs[op][name] = rung
    typical, worst = errors(row["predicted"] / row["us"] for row in compared(fitted, grouped))
    return {
        "made_by": "python -m sparkwell.plan.derive, of bench/records",
        "error": {"typical": typical, "worst": worst},
        "efficiency": fitted,
        "rungs": dict(rungs),
    }


def compared(
    fitted: dict[str, dict[str, float]], grouped: dict[str, list[Timed]]
) -> list[dict[str, Any]]:
    """Each record beside its prediction."""
    rows = []
    for of, several in grouped.items():
        factors = (fitted[of]["start"], fitted[of]["memory"], fitted[of]["math"])
        for x in several:
            us = round(x.predicted(*factors), 2)
            rows.append({"op": x.op, "case": x.case, "us": x.us, "predicted": us})
    return rows


def as_text(found: dict[str, Any]) -> str:
    """facts.json: one line a kind, so that differences can be read."""
    lines = [
        f' "made_by": {json.dumps(found["made_by"])}',
        f' "error": {json.dumps(found["error"])}',
    ]
    for key in ("efficiency", "rungs"):
        inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in found[key].items())
        lines.append(f' "{key}": {{\n{inner}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write facts.json; say where it stands."""
    FACTS.write_text(as_text(derive(RECORDS)))
    print(f"wrote {FACTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
