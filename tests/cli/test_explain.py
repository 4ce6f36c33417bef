"""explain: texts from the command line and from stdin, JSON, exit codes."""

import json

import pytest
from typer.testing import CliRunner, Result

from sparkwell.cli import app


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["explain", *arguments], input=stdin)


def test_an_error_text() -> None:
    result = run("wgmma.fence", "not", "supported", "on", ".target", "sm_120")
    assert result.exit_code == 0
    first, second = result.stdout.strip().split("\n\n")
    assert first.startswith(
        "instruction not supported on the target\n  matched  not supported on .t"
    )
    assert "  cause    ptxas was given PTX of another" in first and "  on  " not in first
    assert second.startswith("wgmma\n  matched  wgmma.fence\n")
    assert "\n  on       sm_90\n  not on   sm_75, sm_80, " in second
    assert second.splitlines()[-1].startswith("  sources  PTX ISA")


def test_stdin() -> None:
    text = "Traceback ...\nRuntimeError: no kernel image is available for execution on the device\n"
    result = run(stdin=text)
    assert result.exit_code == 0 and result.stdout.startswith("no kernel image\n")


def test_json() -> None:
    result = run("tcgen05", "--json")
    found = json.loads(result.stdout)
    assert list(found) == ["entries", "near"] and found["near"] == []
    (entry,) = found["entries"]
    assert list(entry) == ["name", "matched", "cause", "cure", "targets", "sources"]
    assert entry["name"] == entry["matched"] == "tcgen05"
    assert entry["targets"]["with"] == ["sm_100", "sm_103", "sm_107", "sm_110"]
    assert set(entry["targets"]["without"]) >= {"sm_90", "sm_120", "sm_121"}
    assert (
        json.loads(run("driver version is insufficient", "--json").stdout)["entries"][0]["targets"]
        is None
    )


def test_unknown() -> None:
    result = run("kernel imag missing")
    assert result.exit_code == 1 and result.stdout == ""
    assert "not known; near: no kernel image" in result.stderr
    result = run("zzz")
    assert result.exit_code == 1 and "not known; nor is anything near" in result.stderr
    result = run("kernel imag missing", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["near"][0] == "no kernel image"


@pytest.mark.parametrize("stdin", ["", "   \n"])
def test_nothing_to_explain(stdin: str) -> None:
    result = run(stdin=stdin)
    assert result.exit_code == 2 and "is no text" in result.stderr


def test_many_entries_are_named_at_the_end() -> None:
    text = "wgmma tcgen05 setmaxnreg tensormap multicast"
    result = run(text)
    assert result.exit_code == 0
    assert result.stdout.strip().splitlines()[-1].startswith("also: ")
    assert result.stdout.count("  cause    ") == 3
