"""Which rows of the schedules were timed, and where: what they say is what the records say."""

import importlib
import json
from pathlib import Path

import sparkwell.ops
from sparkwell.ops.schedule import Row

RECORDS = Path(__file__).parents[2] / "bench" / "records" / "kernels.jsonl"
OPS = Path(sparkwell.ops.__file__).parent


def rows_of(folder: str) -> dict[str, set[str | None]]:
    """Every row that an op's folder has: name -> where it says it was timed."""
    found: dict[str, set[str | None]] = {}
    for name in ("schedule", "plan"):
        if (OPS / folder / f"{name}.py").is_file():
            values = vars(importlib.import_module(f"sparkwell.ops.{folder}.{name}")).values()
            tables = [x if isinstance(x, tuple) else (x,) for x in values]
            for row in (row for table in tables for row in table if isinstance(row, Row)):
                found.setdefault(row.name, set()).add(row.measured_on)
    return found


def test_rows_say_what_the_records_say() -> None:
    lines = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    timed = {
        (sparkwell.ops.OPS[line["op"]].split(".")[-1], row.split(":")[1]): line["gpu"]
        for line in lines
        for row in line["rows"]
    }
    said = {
        (folder.name, row): where
        for folder in OPS.iterdir()
        if (folder / "schedule.py").is_file()
        for row, places in rows_of(folder.name).items()
        for where in places
        if where is not None
    }
    assert len(timed) >= 10
    assert said == timed
