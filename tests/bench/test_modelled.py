"""Modelled times: loops of machine code, the three bounds, records and the document of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwell.bench import modelled
from sparkwell.bench.__main__ import main
from sparkwell.bench.modelled import Bounds, bounds, render
from sparkwell.cli import app
from sparkwell.errors import BadInput, SparkwellError
from sparkwell.hardware.gpus import gpu
from sparkwell.ops.linear.schedule import Problem
from sparkwell.verify.cases.speed_products import linear_case
from sparkwell.verify.compile import busiest_loop

ROOT = Path(__file__).resolve().parents[2]
CASE = linear_case("nvfp4", "w4a16", 3, 2048, 1024)
PROBLEM = Problem(3, 2048, 1024, "nvfp4", "bf16", 16)
LOOP = {"HMMA.16816.F32.BF16": 2, "FFMA": 5, "LDS.128": 1}
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FADD R0, R1, R2 ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0030*/              @!P0 IADD3 R2, R2, 0x1, RZ ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   BRA.U UP0, `(.L_x_0) ;
.L_x_2:
        /*0060*/                   FADD R0, R1, R2 ;
        /*0070*/                   FADD R0, R1, R2 ;
        /*0080*/                   BRA `(.L_x_2) ;
        /*0090*/                   BRA `(.L_x_3) ;
.L_x_3:
        /*00a0*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
"""


def test_the_loop_is_the_innermost_that_multiplies() -> None:
    assert busiest_loop(LISTING) == {"HMMA.16816.F32.BF16": 1, "IADD3": 1, "BRA": 1}
    assert busiest_loop(LISTING.replace("HMMA", "FMUL")) is None
    assert busiest_loop("") is None


def test_bounds_by_hand() -> None:
    spark = gpu("dgx-spark")
    found = bounds(CASE, PROBLEM, 8, LOOP, spark)
    assert CASE.timing is not None
    assert found.memory == pytest.approx(CASE.timing.nbytes / 273e3)
    padded = 2 * 2048 * 1024 * 8  # three rows take the room of eight
    products = padded / (2 * 16 * 8 * 16)
    assert found.issue == pytest.approx(1e6 * products * 8 / 2 / (4 * 48 * 2.14e9))
    assert found.units == pytest.approx(padded / 100e6)
    one = bounds(CASE, PROBLEM, 8, {"OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X": 1}, spark)
    assert one.units == pytest.approx(padded / 500e6)
    assert one.issue == pytest.approx(1e6 * products / 4 / (4 * 48 * 2.14e9))
    both = bounds(CASE, PROBLEM, 8, LOOP | {"OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X": 1}, spark)
    assert both.units == found.units  # the slower kind
    nine = bounds(CASE, Problem(9, 2048, 1024, "nvfp4", "bf16", 16), 8, LOOP, spark)
    assert nine.units == pytest.approx(2 * found.units)


def test_what_binds() -> None:
    assert (Bounds(3, 2, 1).us, Bounds(3, 2, 1).by) == (3, "memory")
    assert (Bounds(1, 3, 2).us, Bounds(1, 3, 2).by) == (3, "instructions")
    assert (Bounds(1, 2, 3).us, Bounds(1, 2, 3).by) == (3, "matrix units")


@pytest.mark.parametrize("name", ["HGMMA.64x64x16.F32", "IMMA.16832.S8"])
def test_units_of_no_known_shape(name: str) -> None:
    with pytest.raises(SparkwellError, match=f"{name} has no shape"):
        bounds(CASE, PROBLEM, 8, {name: 1}, gpu("dgx-spark"))


@pytest.mark.parametrize(
    ("name", "why"),
    [("l40s", "the clock of l40s is not known"), ("h200", "h200 has no mma.sync units")],
)
def test_gpus_that_cannot_be_modelled(name: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        modelled.model([gpu(name)], out=None, commit=None, say=print)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelled, "ROWS", (1, 4096))
    monkeypatch.setattr(modelled, "FORMS", (("nvfp4", "w4a16"), ("nvfp4", "w4a4")))
    monkeypatch.setattr(modelled, "SHAPE", (1024, 2048))


@pytest.mark.usefixtures("short")
def test_records_and_their_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "modelled.jsonl"
    words = ["modelled", "--gpu", "dgx-spark", "--commit", "abc"]
    assert main([*words, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    # A weight that is widened first is multiplied by torch: no kernel of ours, no record.
    assert [line["case"] for line in lines] == [
        "nvfp4-w4a16-1x1024x2048",
        "nvfp4-w4a4-1x1024x2048",
        "nvfp4-w4a4-4096x1024x2048",
    ]
    for line in lines:
        assert line["commit"] == "abc" and not {"us", "rung"} & line.keys()  # no time, no proof
        assert (line["product"], line["target"]) == ("dgx-spark", "sm_121")
        assert line["modelled_us"] == max(line["memory_us"], line["issue_us"], line["units_us"]) > 0
    assert [next(iter(line["matrix"])).split(".")[0] for line in lines] == ["HMMA", "OMMA", "OMMA"]
    said = capsys.readouterr().out
    assert "dgx-spark nvfp4-w4a16-1x1024x2048" in said and "modelled" in said
    text = render(tmp_path)
    assert "## dgx-spark (sm_121)" in text and text.count("| nvfp4-") == 3
    result = CliRunner().invoke(app, ["bench", *words, "--json"])
    assert result.exit_code == 0
    assert [r["modelled_us"] for r in json.loads(result.stdout)["records"]] == [
        x["modelled_us"] for x in lines
    ]


def test_a_product_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modelled", "--gpu", "rtx-9999"]) == 1
    assert "rtx-9999" in capsys.readouterr().err


def test_the_document_is_current() -> None:
    written = (ROOT / "docs" / "modelled.md").read_text()
    wanted = render(ROOT / "bench" / "records")
    assert written == wanted, "run sparkwell bench table --of modelled --write docs/modelled.md"
