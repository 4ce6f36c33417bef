"""The verb, with and without the command line's packages: words, exit codes, JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwell.cli import app
from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import Target, target
from sparkwell.ops.launch import interpreting
from sparkwell.verify import __main__ as plain
from sparkwell.verify import command, records
from sparkwell.verify.case import Case
from sparkwell.verify.check import Failure
from sparkwell.verify.command import Options, Report
from sparkwell.verify.run import Outcome

pytestmark = pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")
WORDS = ["--op", "rms_norm", "--target", "sm_121", "--jobs", "1"]
FAILURE = Failure("rms_norm", "long", "sm_121", "rms_norm case", "kernel", "no [spill]", "3")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = command.verify_compiled

    def verify(options: Options, progress: object = None) -> Report:
        return replace(sound(options), failures=(FAILURE,))

    monkeypatch.setattr(command, "verify_compiled", verify)
    monkeypatch.setattr(plain, "verify_compiled", verify)


def test_the_plain_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain.main(WORDS) == 0
    said = capsys.readouterr()
    assert "3 kernels compiled: all hold" in said.out and "compiled 3 of 3" in said.err
    assert plain.main([*WORDS, "--list"]) == 0
    assert capsys.readouterr().out.count("_norm_kernel") == 3
    assert plain.main([*WORDS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compiled"] == 3


@pytest.mark.parametrize("words", [["--opp"], ["--jobs", "two"], ["rms_norm"]])
def test_the_plain_verb_refuses_what_it_does_not_know(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain.main(words) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.usefixtures("failing")
def test_a_failure_is_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain.main(WORDS) == 1
    assert f"FAILED {FAILURE}" in capsys.readouterr().out
    done = CliRunner().invoke(app, ["verify", *WORDS])
    assert done.exit_code == 1 and f"FAILED {FAILURE}" in done.output


def test_the_verb() -> None:
    done = CliRunner().invoke(app, ["verify", *WORDS])
    assert done.exit_code == 0 and "3 rows" in done.output
    done = CliRunner().invoke(app, ["verify", *WORDS, "--json"])
    assert json.loads(done.stdout)["cells"][0]["target"] == "sm_121"
    assert CliRunner().invoke(app, ["verify", "--op", "nothing"]).exit_code == 1
    assert CliRunner().invoke(app, ["verify", "--ops", "norm"]).exit_code == 2


def test_records_are_written_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench" / "records").mkdir(parents=True)
    assert CliRunner().invoke(app, ["verify", *WORDS, "--record"]).exit_code == 0
    assert plain.main([*WORDS, "--record", "--commit", "abc"]) == 0
    first, second = records.read(tmp_path / "bench" / "records")
    assert (first["op"], first["rung"], first["rows"]) == ("rms_norm", "compiled", 3)
    assert second["commit"] == "abc"


def test_running(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert plain.main(["--run"]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    bad = Outcome("rms_norm", "case", "small", "sm_121", "retargeted", "failed", "too far off")
    monkeypatch.setattr(plain, "verify_run", lambda *_: [bad, replace(bad, status="passed")])
    assert plain.main(["--run"]) == 1
    said = capsys.readouterr().out
    assert "rms_norm retargeted as sm_121: 1 failed, 1 passed" in said
    assert "FAILED rms_norm case as sm_121: too far off" in said
    monkeypatch.setattr(plain, "verify_run", lambda *_: [replace(bad, status="passed")])
    assert plain.main(["--run", "--json"]) == 0


def test_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, set[str]]] = []

    def run_cases(cases: list[Case], one: Target, *_: object) -> list[Outcome]:
        runs.append((one.name, {case.size for case in cases}))
        return []

    monkeypatch.setattr(command, "target_here", lambda: target(90))
    monkeypatch.setattr(command, "run_cases", run_cases)
    notes: list[str] = []
    command.verify_run(Options(ops=("norm",)), print, notes.append)
    assert runs == [("sm_90", {"small", "model"})] and not notes
    runs.clear()
    command.verify_run(Options(("all",), ("norm",), small=True), print, notes.append)
    names = [name for name, _ in runs]
    assert names == ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "sm_121"]
    assert {frozenset(sizes) for _, sizes in runs} == {frozenset({"small"})}
    assert [note.split()[0] for note in notes] == ["sm_100", "sm_103"] and "TCGEN05" in notes[0]
    with pytest.raises(Unsupported, match="TCGEN05"):
        command.verify_run(Options(("sm_100",)), print, notes.append)
