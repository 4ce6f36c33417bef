"""`sparkwell generate` on a tiny checkpoint of every family."""

import json

import pytest
from typer.testing import CliRunner

from families import FAMILIES, checkpoint
from sparkwell.cli import app

pytestmark = pytest.mark.xdist_group("oracle")


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_generate(name: str) -> None:
    prompt = "Sing, O goddess, the anger of Achilles son of Peleus. " * 3  # past index_topk
    arguments = ["generate", str(checkpoint(name)), prompt, "--max-tokens", "8", "--json"]
    arguments += ["--temperature", "0", "--num-pages", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["usage"]["prompt_tokens"] == len(prompt)
    assert report["finish_reason"] in ("length", "stop")
    assert report["usage"]["completion_tokens"] == 8 or report["finish_reason"] == "stop"
    assert (
        CliRunner().invoke(app, arguments).stdout.split('"timings"')[0]
        == (result.stdout.split('"timings"')[0])
    ), "greedy text must repeat"
