"""The verb `bench`, with and without typer: what it parses, and how it fails."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sparkwell.bench.__main__ import main
from sparkwell.cli import app

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
@pytest.mark.parametrize("words", [["kernels", "--op", "mla"], ["soak", "--replays", "5"]])
def test_without_a_gpu_both_forms_fail_in_words(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert "no CUDA device" in capsys.readouterr().err
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 1 and "no CUDA device" in result.output


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--case", "nothing-of-the-kind"]) == 1
    assert "nothing-of-the-kind" in capsys.readouterr().err


def test_usage() -> None:
    with pytest.raises(SystemExit) as error:
        main(["kernels", "--no-such-option"])
    assert error.value.code == 2
    assert CliRunner().invoke(app, ["bench", "kernels", "--no-such-option"]).exit_code == 2


def test_the_table_goes_to_the_terminal_or_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "soak.jsonl").write_text(
        json.dumps({"soak": "s", "gpu": "g", "replays": 3, "mismatches": 0, "us_per_replay": 1.0})
    )
    assert main(["table", "--records", str(tmp_path)]) == 0
    assert "| s | g | 3 | 0 |" in capsys.readouterr().out
    result = CliRunner().invoke(
        app, ["bench", "table", "--records", str(tmp_path), "--write", str(tmp_path / "x.md")]
    )
    assert result.exit_code == 0 and "| s | g | 3 |" in (tmp_path / "x.md").read_text()
