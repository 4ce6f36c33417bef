"""Records and the table made of them; the table in the documents is the current one."""

import json
from pathlib import Path

import pytest

from sparkwell.errors import BadInput
from sparkwell.verify.command import Cell, Report
from sparkwell.verify.records import (
    append,
    highest,
    of_outcomes,
    of_report,
    read,
    refresh,
    surroundings,
    table,
)
from sparkwell.verify.run import Outcome

ROOT = Path(__file__).resolve().parents[2]
HERE = {"commit": "abc"}


def outcome(status: str, rung: str = "retargeted", op: str = "rope") -> Outcome:
    return Outcome(op, "case", "small", "sm_121", rung, status)


@pytest.mark.parametrize("name", ["docs/coverage.md", "README.md"])
def test_the_documents_hold_the_current_table(name: str, request: pytest.FixtureRequest) -> None:
    path = ROOT / name
    text = path.read_text()
    wanted = refresh(text, read(ROOT / "bench" / "records"))
    if request.config.getoption("--update-docs"):
        path.write_text(wanted)
    else:
        assert text == wanted, "run pytest tests/verify/test_coverage.py --update-docs"


def test_the_highest_rung_that_held_last_counts() -> None:
    compiled = {"op": "rope", "target": "sm_121", "rung": "compiled", "failed": 0}
    ran = compiled | {"rung": "retargeted"}
    assert highest([ran, compiled]) == {("rope", "sm_121"): "retargeted"}
    assert highest([ran, compiled, ran | {"failed": 2}]) == {("rope", "sm_121"): "compiled"}
    assert highest([ran | {"failed": 2}, compiled, ran]) == {("rope", "sm_121"): "retargeted"}
    refused = compiled | {"rung": "refused"}
    assert highest([compiled, refused]) == {("rope", "sm_121"): "compiled"}
    assert highest([refused]) == {("rope", "sm_121"): "refused"}


@pytest.mark.parametrize(
    ("target", "gpu", "found"),
    [
        (None, "NVIDIA H200", {("rope", "sm_90"): "timed"}),
        ("sm_90", "NVIDIA H200", {("rope", "sm_90"): "timed"}),
        ("sm_121", "NVIDIA H200", {}),  # another target's code: its time means nothing there
        (None, "a GPU of no table", {}),
    ],
)
def test_a_timing_counts_on_its_own_target(
    target: str | None, gpu: str, found: dict[tuple[str, str], str]
) -> None:
    assert highest([{"op": "rope", "target": target, "gpu": gpu, "us": 3.5}]) == found


def test_records_of_a_run() -> None:
    outcomes = [outcome("passed"), outcome("passed"), outcome("refused"), outcome("failed")]
    (record,) = of_outcomes(outcomes, HERE)
    assert record == {
        "op": "rope",
        "target": "sm_121",
        "rung": "retargeted",
        "passed": 2,
        "refused": 1,
        "skipped": 0,
        "failed": 1,
        "commit": "abc",
    }
    assert of_outcomes([outcome("refused")], HERE)[0]["rung"] == "refused"
    assert of_outcomes([outcome("skipped")], HERE) == []  # nothing was shown


def test_records_of_a_compilation() -> None:
    cells = [
        Cell("rope", "sm_80", ("rope:a", "rope:b"), 4, 40, 0, 0, 0),
        Cell("rope", "sm_86", (), 0, 0, 0, 3, 0),
        Cell("rope", "sm_89", (), 0, 0, 0, 0, 0),
        Cell("rope", "sm_90", ("rope:a",), 2, 40, 0, 0, 1),
    ]
    records = of_report(Report(tuple(cells), (), 6, ()), HERE)
    assert [(r["target"], r["rung"], r["failed"]) for r in records] == [
        ("sm_80", "compiled", 0),
        ("sm_86", "refused", 0),
        ("sm_90", "compiled", 1),
    ]


def test_records_are_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "verify.jsonl"
    append([{"op": "rope"}], path)
    append([{"op": "swiglu"}], path)
    assert read(tmp_path) == [{"op": "rope"}, {"op": "swiglu"}]
    with pytest.raises(BadInput, match="its folder does not exist"):
        append([], tmp_path / "nowhere" / "verify.jsonl")
    path.write_text('{"soak": 1}\n{"op": "rope"}\n')
    assert read(tmp_path) == [{"op": "rope"}]
    for line in ("[]", "{"):
        path.write_text('{"op": "rope"}\n' + line)
        with pytest.raises(BadInput, match=r"verify.jsonl:2 is no JSON object"):
            read(tmp_path)


def test_the_table() -> None:
    text = table([{"op": "rope", "target": "sm_121", "rung": "ran", "failed": 0}])
    assert text.splitlines()[-1] == "| `rope` | - | - | - | - | - | - | - | ran |"
    assert text.splitlines()[0].count("sm_") == 8
    assert "| `rope` |" in refresh("a\n<!-- coverage -->\nold\n<!-- /coverage -->\nb", [
        {"op": "rope", "target": "sm_80", "rung": "compiled"}
    ])  # fmt: skip
    with pytest.raises(BadInput, match="has no <!-- coverage -->"):
        refresh("nothing", [])


def test_surroundings_say_what_made_a_record() -> None:
    around = surroundings("abc")
    assert around["commit"] == "abc" and around["torch"] and around["triton"]
    assert json.dumps(around)
