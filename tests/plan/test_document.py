"""docs/plan.md holds the current tables: pytest tests/plan/test_document.py --update-docs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plan import published
from sparkwell.cli import app
from sparkwell.plan import derive
from sparkwell.plan.efficiency import ASSUMED, LIKE, efficiency, error

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "plan.md"
MODELS = ("glm-5.2", "deepseek-v3.2", "glm-4.7-flash", "llama-3.1-8b")
PRODUCTS = ("dgx-spark", "rtx-4090", "rtx-pro-6000", "h200", "b200")


def shown() -> str:
    """What the verb prints."""
    blocks = []
    for model in MODELS:
        gpus = [word for name in PRODUCTS for word in ("--gpu", name)]
        arguments = ["plan", model, *gpus, "--gpus", "fit", "--context", "32k"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        lines = [line.rstrip() for line in result.stdout.splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("Times are"))
        blocks.append(f"```console\n$ sparkwell {' '.join(arguments)}\n{text}\n```")
    return "\n\n".join(blocks)


def records() -> str:
    typical, worst = error()
    lines = [
        f"One H200. Root mean square {typical:.0%}, worst {worst:.0%}.",
        "",
        "| kind of op | start, us | of bandwidth | of peak | records | typical error | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for of in ASSUMED:
        known = efficiency(of)
        source = str(known.records) if known.records else "assumed"
        if not known.records and known != ASSUMED[of]:
            source = "as " + " and ".join(dict.fromkeys(LIKE[of]))
        errors = f"{known.typical:.0%} | {known.worst:.0%}" if known.records else "| "
        lines.append(
            f"| {of} | {known.start:g} | {known.memory:.2f} | {known.math:.2f} | {source} | "
            f"{errors} |"
        )
    lines += ["", "| op | case | measured us | predicted us | ratio |", "|---|---|---|---|---|"]
    for one in derive.read(ROOT / "bench" / "records"):
        us = 1e6 * efficiency(one.of).seconds(one.bytes_us * 1e-6, one.math_us * 1e-6)
        lines.append(f"| `{one.op}` | {one.case} | {one.us:.1f} | {us:.1f} | {us / one.us:.2f} |")
    return "\n".join(lines)


def others() -> str:
    ratios = [published.speed_ratio(row) for row in published.ROWS]
    typical = derive.errors(ratios)[0]
    about = f"Root mean square {typical:.0%}; from {min(ratios):.2f} to {max(ratios):.2f}."
    return f"{about}\n\n{published.table()}"


SECTIONS: dict[str, Callable[[], str]] = {"shown": shown, "records": records, "published": others}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_document_is_current(name: str, request: pytest.FixtureRequest) -> None:
    text = DOCUMENT.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    assert rest and tail, f"{DOCUMENT.name} has no {start} ... {end}"
    wanted = f"{head}{start}\n\n{SECTIONS[name]()}\n\n{end}{tail}"
    if request.config.getoption("--update-docs"):
        DOCUMENT.write_text(wanted)
    else:
        assert text == wanted, "run pytest tests/plan/test_document.py --update-docs"


def test_the_document_names_every_key() -> None:
    """Of the JSON object, down to its rows."""
    import json

    arguments = ["plan", "glm-5.2", "--gpu", "h200", "--gpus", "8", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    plan = found["plans"][0]
    text = DOCUMENT.read_text()
    objects = [found, found["model"], found["asked"], plan, plan["crossovers"]]
    objects += [plan[key][0] for key in ("schemes", "kernels", "over_batch", "over_input", "grid")]
    objects += [plan["crossovers"]["arithmetics"][0], plan["schemes"][0]["tpot"]]
    for one in objects:
        for key in one:
            assert f"`{key}`" in text or f".{key}" in text or f"`{key}[]`" in text, key
