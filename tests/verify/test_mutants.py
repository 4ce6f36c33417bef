"""The runner of mutants finds what survives, what is dead, and what is no mutant."""

from pathlib import Path

import pytest
import torch

from mutants import run

KERNEL = "ops/norm/kernel.py"


def test_every_mutant_stands_in_the_source_once() -> None:
    paths = sorted(path for path in run.HERE.glob("*.py") if path.name != "run.py")
    assert paths
    for path in paths:
        for file, old, new in run.load(path).MUTANTS:
            text = (run.ROOT / "src" / "sparkwell" / file).read_text()
            assert old != new and text.count(old) == 1, f"{path.name}: {old!r} in {file}"


def test_planting(tmp_path: Path) -> None:
    target = tmp_path / "src" / "sparkwell" / KERNEL
    target.parent.mkdir(parents=True)
    target.write_text("a = 1\nb = 1\n")
    assert run.plant(tmp_path, KERNEL, "a = 1", "a = 2") is None
    assert target.read_text() == "a = 2\nb = 1\n"
    assert "0 times" in (run.plant(tmp_path, KERNEL, "c", "d") or "")
    assert "2 times" in (run.plant(tmp_path, KERNEL, " = ", "=") or "")
    assert "no such file" in (run.plant(tmp_path, "none.py", "c", "d") or "")


def test_survivors_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tests are played by a look at the copied source."""

    def failure(root: Path, *_: object) -> str | None:
        bad = "cols < d + 1" in (root / "src" / "sparkwell" / KERNEL).read_text()
        return "red" if bad else None

    monkeypatch.setattr(run, "failure", failure)
    killed = (KERNEL, "mask = cols < d", "mask = cols < d + 1")
    lives = (KERNEL, "mask = cols < d", "mask = cols <= d - 1")
    assert run.survivors("norm", [killed], []) == 0
    assert run.survivors("norm", [killed, lives, killed], []) == 1  # each on a fresh source
    assert run.survivors("norm", [(KERNEL, "not there", "x")], []) == 1
    assert "SURVIVED" in capsys.readouterr().out
    monkeypatch.setattr(run, "failure", lambda *_: "red")
    assert run.survivors("norm", [killed, killed], []) == 2  # red before any mutant
    assert "fail without any mutant:\nred" in capsys.readouterr().out


def test_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["nothing"]) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["mla_hopper"]) == 2
    assert "mla_hopper: needs a GPU" in capsys.readouterr().err
