"""What has been proven where: a line of JSON for each op and target, and the table made of them.

Records are appended, never changed.  The table shows the highest rung that held when it was last
tried; a rung that failed the last time does not count.
"""

import datetime
import importlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sparkwell
from sparkwell.errors import BadInput
from sparkwell.hardware.gpus import match_device_name
from sparkwell.hardware.probe import probe
from sparkwell.ops.schedule import EVERY
from sparkwell.verify.command import Report
from sparkwell.verify.run import FAILED, PASSED, REFUSED, SKIPPED, Outcome

Record = dict[str, Any]
RUNGS = ("refused", "compiled", "retargeted", "ran", "timed")  # from low to high
FILE = Path("bench/records/verify.jsonl")  # in a checkout
MEANINGS = {
    "refused": "the op serves none of its cases there and says why",
    "compiled": "every row compiles; shared memory, registers and instructions are checked",
    "retargeted": "the target's own code ran on another GPU and matched the reference",
    "ran": "ran on a GPU of that target and matched the reference",
    "timed": "the same, and timed",
}


def surroundings(commit: str | None = None) -> Record:
    """When, with what and on which GPU.  commit: None asks git, where this is a checkout."""
    machine = probe()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "gpu": machine.gpus[0].name if machine.gpus else None,
        "driver": machine.driver,
        "torch": importlib.import_module("torch").__version__,
        "triton": importlib.import_module("triton").__version__,
        "sparkwell": sparkwell.__version__,
        "commit": commit or commit_here(),
    }


def commit_here() -> str | None:
    """The checkout's commit, "+" behind it where files differ; None outside a checkout."""
    root = str(Path(sparkwell.__file__).parent)
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", root)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: str, *words: str) -> str:
    command = ["git", "-C", root, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


# ---------------------------------------------------------------- making records


def of_report(report: Report, around: Mapping[str, Any]) -> list[Record]:
    """A record for each op and target of a compilation."""
    return [
        {
            "op": cell.op,
            "target": cell.target,
            "rung": "compiled" if cell.rows or cell.failures else "refused",
            "rows": len(cell.rows),
            "kernels": cell.kernels,
            REFUSED: cell.refused,
            FAILED: cell.failures,
            **around,
        }
        for cell in report.cells
        if cell.rows or cell.failures or cell.refused
    ]


def of_outcomes(outcomes: Iterable[Outcome], around: Mapping[str, Any]) -> list[Record]:
    """A record for each op and target of a run."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for outcome in outcomes:
        place = (outcome.op, outcome.target, outcome.rung)
        counts.setdefault(place, Counter())[outcome.status] += 1
    return [
        {
            "op": op,
            "target": name,
            "rung": rung if count[PASSED] or count[FAILED] else "refused",
            **{status: count[status] for status in (PASSED, REFUSED, SKIPPED, FAILED)},
            **around,
        }
        for (op, name, rung), count in counts.items()
        if count[PASSED] or count[FAILED] or count[REFUSED]
    ]


def append(records: Iterable[Record], path: Path = FILE) -> None:
    """More lines at the end of the file.  Raises BadInput where its folder does not exist."""
    if not path.parent.is_dir():
        raise BadInput(f"records go to {path}: its folder does not exist; run in a checkout")
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


# ---------------------------------------------------------------- the table


def read(folder: Path) -> list[Record]:
    """Every record of a folder that is about an op, file by file.

    Raises BadInput for a line that is no JSON object.
    """
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise BadInput(f"{path}:{number} is no JSON object: {line[:80]}")
            records += [record] if "op" in record else []
    return records


def highest(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """(op, target) -> the highest rung whose last record has no failure."""
    last: dict[tuple[str, str, str], bool] = {}
    for record in records:
        if (place := _place(record)) is not None:
            last[place] = not record.get(FAILED)
    best: dict[tuple[str, str], str] = {}
    for (op, name, rung), held in last.items():
        if held and RUNGS.index(rung) >= RUNGS.index(best.get((op, name), RUNGS[0])):
            best[op, name] = rung
    return best


def _place(record: Record) -> tuple[str, str, str] | None:
    """Op, target and rung; a timing counts on the GPU's own target only."""
    if "rung" in record:
        return record["op"], record["target"], record["rung"]
    if "us" not in record or "target" not in record:
        return None
    product = match_device_name(record["gpu"])
    if product is None or record["target"] not in (None, product.target.name):
        return None
    return record["op"], product.target.name, "timed"


def table(records: Sequence[Record]) -> str:
    """Ops x targets in Markdown."""
    best = highest(records)
    names = [f"sm_{sm}" for sm in sorted(EVERY)]
    ops = list(dict.fromkeys(record["op"] for record in records if _place(record)))
    lines = [f"| op | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for op in sorted(ops):
        cells = [best.get((op, name), "-") for name in names]
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def refresh(text: str, records: Sequence[Record]) -> str:
    """A document with the table between its markers made anew."""
    start, end = "<!-- coverage -->", "<!-- /coverage -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise BadInput(f"the document has no {start} ... {end} to put the table in")
    return f"{head}{start}\n\n{table(records)}\n\n{end}{tail}"
