"""gpus: the table, one product, one target, JSON, names that are not known."""

import json
import re

import pytest
from typer.testing import CliRunner, Result

from sparkwell.cli import app
from sparkwell.hardware.gpus import GPUS
from sparkwell.hardware.targets import MEANINGS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["gpus", *arguments])


def test_the_table_has_every_product_whole() -> None:
    result = run()
    assert result.exit_code == 0 and "…" not in result.stdout
    for gpu in GPUS:
        (line,) = [x for x in result.stdout.splitlines() if x.split()[:1] == [gpu.name]]
        assert gpu.title in line and gpu.target.name in line and str(gpu.target.tensor_path) in line
    (spark,) = [x for x in result.stdout.splitlines() if x.split()[:1] == ["dgx-spark"]]
    figures = spark.split("sm_121")[1].split()
    assert figures == ["48", "131", "273", "~100", "~250", "~500", "99", "mma.sync"]
    (ampere,) = [x for x in result.stdout.splitlines() if x.split()[:1] == ["rtx-3090"]]
    assert ampere.split("sm_86")[1].split()[3:6] == ["~71", "-", "-"]


def test_a_product() -> None:
    result = run("Spark")
    assert result.exit_code == 0 and "…" not in result.stdout
    assert result.stdout.startswith("DGX Spark (GB10): sm_121, memory shared with the host\n")
    lines = {re.split(r"\s{2,}", x.strip())[0]: x for x in result.stdout.splitlines()}
    assert "121.7 GiB" in lines["memory"] and "MemTotal of a DGX Spark" in lines["memory"]
    assert "~24 MiB" in lines["L2"] and "from memory" in lines["L2"]
    assert "~356 TFLOP/s" in lines["measured fp4"] and "250 TOP/s" in lines["peak int8"]
    assert "99 KiB" in lines["shared per block"] and lines["warps per sm"].split()[-1] == "48"
    assert " no " in lines["WGMMA"] and " no " in lines["TCGEN05"] and " yes " in lines["TMA"]
    assert set(map(str, (feature.name for feature in MEANINGS))) <= lines.keys()
    assert "compilers make code for sm_121, sm_121f, sm_121a" in result.stdout


def test_a_target() -> None:
    result = run("12.0")
    assert result.exit_code == 0 and result.stdout.startswith("sm_120: Blackwell (RTX 50, RTX PRO)")
    assert "bandwidth" not in result.stdout
    assert "features: ptxas 13.5 accepts it" in result.stdout and "CUTLASS" in result.stdout


def test_weak_limits_are_marked() -> None:
    (line,) = [x for x in run("sm_107").stdout.splitlines() if "shared per block" in x]
    assert "~227 KiB" in line


def test_json() -> None:
    everything = json.loads(run("--json").stdout)["gpus"]
    assert [one["name"] for one in everything] == [gpu.name for gpu in GPUS]
    found = json.loads(run("h200", "--json").stdout)
    assert list(found) == ["gpu", "target"]
    assert found["gpu"]["bandwidth"] == {
        "value": 4.8e12, "unit": "B/s", "source": "NVIDIA H200 datasheet", "weak": False,
    }  # fmt: skip
    assert found["gpu"]["measured"]["bf16"]["value"] == 785e12
    assert found["target"]["features"]["WGMMA"]["has"] is True
    assert found["target"]["features"]["TCGEN05"]["has"] is False
    assert found["target"]["suffixes"] == ["", "a"]
    only = json.loads(run("sm_120", "--json").stdout)
    assert list(only) == ["target"] and only["target"]["shared_bytes_per_block"] == 99 * 1024


@pytest.mark.parametrize("name", ["rtx-5091", "sm_99", ""])
def test_unknown_names(name: str) -> None:
    result = run(name)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"GPU {name!r} is not known" in result.stderr
    assert "dgx-spark, jetson-thor, or a target: sm_75" in result.stderr


def test_a_near_name_is_suggested() -> None:
    assert "did you mean 'rtx-5090'?" in run("rtx-509").stderr
