"""What the documents say exists, exists; what they tell a reader to type, parses."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from sparkwell.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
PATH = re.compile(r"`((?:src|tests|docs|dev|examples|models|ops|engine)/[\w./-]*)`")
VERBS = get_command(app).commands  # type: ignore[attr-defined]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def commands(path: Path) -> list[str]:
    """Lines of the shell blocks, continued lines joined, comments dropped."""
    found = []
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").split(" #")[0].strip()
            if line and not line.startswith("#"):
                found.append(line)
    return found


def sparkwell_arguments(line: str) -> list[str] | None:
    words = shlex.split(line)
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    return words[1:] if words and Path(words[0]).name == "sparkwell" else None


def parse(arguments: list[str]) -> None:
    """Parse a verb and its options as the program would, without running anything."""
    verbs = VERBS
    if len(arguments) > 1 and hasattr(VERBS.get(arguments[0]), "commands"):
        verbs, arguments = VERBS[arguments[0]].commands, arguments[1:]
    verb = verbs.get(arguments[0])
    assert verb is not None, f"no verb {arguments[0]}; there are {sorted(verbs)}"
    verb.make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_paths_exist(path: Path) -> None:
    text = path.read_text()
    for name in PATH.findall(text):
        places = [ROOT / name, ROOT / "src" / "sparkwell" / name, path.parent / name]
        assert any(p.exists() for p in places), f"{path.name} names {name}, which is not there"
    for link in LINK.findall(text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}, which is not there"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_parse(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in commands(path):
        words = shlex.split(line)
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{path.name}: {line}"
        arguments = sparkwell_arguments(line)
        if arguments is not None and arguments not in (["--help"], ["--version"]):
            parse(arguments)


def test_every_verb_stands_in_the_readme_and_no_other_works() -> None:
    rows = re.findall(
        r"^\| `sparkwell (.+?)\|.*\| (\w[^|]*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    works = {names.split()[0].strip("`") for names, today in rows if today.startswith("works")}
    assert works and works == set(VERBS) - {"version"}


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["serve", "bard", "--no-such-option"])


def test_the_readme_has_commands() -> None:
    assert len([c for c in commands(ROOT / "README.md") if sparkwell_arguments(c)]) >= 2
