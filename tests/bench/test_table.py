"""docs/speed.md is what the records say."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparkwell.bench.cases import met
from sparkwell.bench.table import KERNELS, SOAKS, newest, render

ROOT = Path(__file__).resolve().parents[2]


def entry(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "op": "mla_sparse",
        "case": "decode-656B-2048-b64-h16",
        "us": 50.0,
        "low": 49.0,
        "high": 52.0,
        "gbs": 1000.0,
        "tflops": 200.0,
        "floor_us": 20.0,
        "peers": {"flash_mla_sparse": {"version": "1", "us": 90.0, "low": 89.0, "high": 91.0}},
        "missing": {},
        "ratio": 1.8,
        "want": 1.7,
        "gpu": "NVIDIA H200",
        "date": "2026-11-21 02:00",
        "driver": "580",
        "torch": "2.11",
        "triton": "3.9.0",
        "commit": "abc",
        "ceilings": {
            "copy_gbs": 4000.0,
            "read_gbs": 4000.0,
            "bf16_tflops": 780.0,
            "fp8_tflops": 1400.0,
        },
    }
    return values | changes


def rendered(tmp_path: Path, *entries: dict[str, Any], soaks: tuple[Any, ...] = ()) -> str:
    (tmp_path / KERNELS).write_text("".join(json.dumps(x) + "\n" for x in entries))
    (tmp_path / SOAKS).write_text("".join(json.dumps(x) + "\n" for x in soaks))
    return render(tmp_path)


def test_the_document_is_current() -> None:
    want = render(ROOT / "bench" / "records")
    assert (ROOT / "docs" / "speed.md").read_text() == want, (
        "docs/speed.md is stale: run python -m sparkwell.bench table --write docs/speed.md"
    )


def test_a_row_says_whether_its_goal_is_met(tmp_path: Path) -> None:
    text = rendered(
        tmp_path,
        entry(),
        entry(case="decode-656B-2048-b64-h8", ratio=1.69),
        entry(
            case="decode-656B-2048-b1-h8", ratio=None, peers={}, missing={"flash_mla_sparse": "x"}
        ),
    )
    assert "1 of 2 goals met" in text
    assert "| 40 % | FlashMLA 90.0 | 1.80 | 1.7 | met |" in text
    assert "| 1.69 | 1.7 | missed |" in text and "| FlashMLA: none |  | 1.9" not in text


def test_a_share_of_the_floor_is_a_goal_too(tmp_path: Path) -> None:
    one = entry(op="experts", case="nvfp4-w4a16-glm5-b1", want=1.2, want_of_floor=0.6, ratio=1.3)
    text = rendered(tmp_path, one | {"floor_us": 30.0})
    assert "### Experts, the whole layer (`experts`): 1 of 1 goals met" in text
    assert "| 1.30 | 1.2, 60 % of the floor | met |" in text
    assert "0 of 1 goals met" in rendered(tmp_path, one | {"floor_us": 29.0})
    assert "0 of 0 goals met" in rendered(tmp_path, one | {"floor_us": 30.0, "ratio": None})


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"ratio": 1.2}, True),
        ({"ratio": 1.19}, False),
        ({"ratio": None}, None),
        ({"want": None}, None),
        ({"want_of_floor": 0.4, "ratio": 1.3}, True),
        ({"want_of_floor": 0.41, "ratio": 1.3}, False),
        ({"want_of_floor": 0.41, "ratio": None}, False),
        ({"want_of_floor": 0.4, "want": None, "ratio": None}, True),
    ],
)
def test_met(changes: dict[str, Any], want: bool | None) -> None:
    assert met(entry(want=1.2) | changes) is want


def test_the_newest_record_counts(tmp_path: Path) -> None:
    text = rendered(tmp_path, entry(us=99.0, ratio=0.9), entry())
    assert "99.0" not in text and "1 of 1 goals met" in text
    assert len(newest([entry(), entry(gpu="other")], "gpu", "case")) == 2


def test_rows_stand_in_the_order_of_the_table_and_old_cases_fall_out(tmp_path: Path) -> None:
    text = rendered(
        tmp_path,
        entry(case="decode-656B-2048-b64-h16"),
        entry(case="decode-656B-2048-b1-h8"),
        entry(case="no-longer-a-case"),
    )
    assert text.index("b1-h8") < text.index("b64-h16") and "no-longer" not in text


def test_soaks_are_listed(tmp_path: Path) -> None:
    soak = {"soak": "sparse_decode", "gpu": "NVIDIA H200", "replays": 1000000, "mismatches": 0}
    text = rendered(tmp_path, entry(), soaks=(soak | {"us_per_replay": 41.25},))
    assert "| sparse_decode | NVIDIA H200 | 1,000,000 | 0 | 41.2 | none |" in text


def test_no_record_no_row(tmp_path: Path) -> None:
    text = render(tmp_path)
    assert text.startswith("# Speed") and "##" not in text.replace("# Speed", "")
