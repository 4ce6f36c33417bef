"""Perplexity of a text: what is scored, errors and differences, records, the document of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from oracle import Feeder
from sparkwell.bench import perplexities
from sparkwell.bench.__main__ import main
from sparkwell.bench.perplexity import Text, losses, mean_and_error, measure, read_text
from sparkwell.checkpoints.locate import locate
from sparkwell.cli import app
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadInput
from sparkwell.models.load import load_model

pytestmark = pytest.mark.xdist_group("oracle")
ROOT = Path(__file__).resolve().parents[2]
EXCERPT = ROOT / "examples" / "train_bard" / "heldout_excerpt.txt"
SCHEMES = ["bf16", "fp8", "nvfp4", "nvfp4-w4a4"]
FIELDS = {
    *("op", "model", "scheme", "arithmetic", "text", "sha256", "window", "windows", "tokens"),
    *("nll", "nll_se", "perplexity", "delta_nll", "delta_se", "versus", "weight_bytes"),
    *("device", "dtype", "seconds", "date", "gpu", "driver", "torch", "triton", "sparkwell"),
    "commit",
}
BARD = locate("bard")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(BARD)


def entries(**options: Any) -> list[dict[str, Any]]:
    settings = {"schemes": SCHEMES[:1], "name": "bard", "window": 64, "most": 2, "device": "cpu"}
    return measure(BARD, EXCERPT, **settings | options)


# ---------------------------------------------------------------- the text


def test_windows_are_whole_and_the_rest_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("To be or not to be, that is the question. " * 3)
    ids = tokenizer.encode(file.read_text())
    text = read_text(file, tokenizer, window=12)
    assert len(ids) % 12 and len(text.windows) == len(ids) // 12 > 2
    assert [t for window in text.windows for t in window] == ids[: 12 * len(text.windows)]
    assert text.scored == 11 * len(text.windows) and text.name == "text.txt"
    exact = read_text(file, tokenizer, window=len(ids))
    assert exact.windows == (tuple(ids),)
    parts = next(n for n in range(2, len(ids)) if len(ids) % n == 0)
    assert len(read_text(file, tokenizer, window=len(ids) // parts).windows) == parts
    assert read_text(file, tokenizer, window=12, most=2).windows == text.windows[:2]
    short = read_text(file, tokenizer, window=1000)
    assert short.windows == (tuple(ids),), "a text shorter than a window is scored as it is"
    assert short.sha256 == text.sha256 and len(text.sha256) == 64


def test_texts_that_cannot_be_scored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    missing, latin, tiny = (tmp_path / name for name in ("missing", "latin", "tiny"))
    latin.write_bytes(b"caf\xe9 noir")
    tiny.write_text("")
    for file, words in (
        (missing, "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (latin, "is not UTF-8: .*position 3"),
        (tiny, r"has \d tokens, want at least 2"),
    ):
        with pytest.raises(BadInput, match=words):
            read_text(file, tokenizer, window=8)


# ---------------------------------------------------------------- figures


def test_losses_are_those_of_the_forward_pass() -> None:
    model = load_model(BARD)
    windows = (tuple(range(20, 50)), tuple(range(300, 330)))
    told: list[tuple[int, int]] = []
    got = losses(model, Text("t", "0", windows), done=lambda *step: told.append(step))
    for window, loss in zip(windows, got, strict=True):
        p = Feeder(model).prefill(list(window)).double().softmax(-1)  # type: ignore[arg-type]
        want = [-math.log(p[i, window[i + 1]]) for i in range(29)]
        assert loss.tolist() == pytest.approx(want, rel=1e-4)
    assert told == [(1, 2), (2, 2)]


def test_logits_that_are_not_finite_are_refused() -> None:
    model = load_model(BARD)
    model.norm = model.norm * torch.nan
    with pytest.raises(BadInput, match="window 0: the model gives logits that are not finite"):
        losses(model, Text("t", "0", ((1, 2, 3),)))


def test_errors_count_windows() -> None:
    make = torch.Generator().manual_seed(0)
    parts = [torch.randn(8, generator=make).double() for _ in range(5)]
    means = torch.stack([part.mean() for part in parts])
    mean, error = mean_and_error(parts)
    assert mean == pytest.approx(float(means.mean()))
    assert error == pytest.approx(float(means.std()) / math.sqrt(5))
    # The same window twice is no second draw of its tokens: more tokens, the same error.
    wide = mean_and_error([torch.cat([part, part]) for part in parts])
    assert wide == pytest.approx((mean, error))
    assert mean_and_error(parts[:1]) == (pytest.approx(float(means[0])), None)
    uneven = [torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([6.0]).double()]
    mean, error = mean_and_error(uneven)  # residuals 6 - 9 and 6 - 3
    assert mean == 3.0 and error == pytest.approx(math.sqrt(2 * 18) / 4)


@pytest.fixture(scope="module")
def all_schemes() -> dict[str, dict[str, Any]]:
    found = entries(schemes=SCHEMES, window=256, most=5)
    return {entry["scheme"]: entry for entry in found}


def test_smaller_formats_cost_more_and_not_much(all_schemes: dict[str, dict[str, Any]]) -> None:
    bf16, fp8, nvfp4, w4a4 = (all_schemes[scheme] for scheme in SCHEMES)
    assert bf16["delta_nll"] == bf16["delta_se"] == 0
    assert 15 < bf16["perplexity"] < 40
    for entry in (fp8, nvfp4, w4a4):
        assert entry["versus"] == "bf16" and entry["delta_nll"] != 0 < entry["delta_se"] < 0.02
        difference = entry["nll"] - bf16["nll"]
        assert entry["delta_nll"] == pytest.approx(difference, abs=1e-9)
        assert entry["delta_se"] < entry["nll_se"], "pairing takes out what is hard for both"
    assert abs(fp8["delta_nll"]) < 0.01
    assert abs(nvfp4["delta_nll"]) < 0.03
    assert max(fp8["delta_nll"], nvfp4["delta_nll"]) < w4a4["delta_nll"] < 0.1
    sizes = [entry["weight_bytes"] for entry in (bf16, nvfp4, w4a4)]
    assert sizes[0] > 1.5 * sizes[1] and sizes[1] == sizes[2]


def test_arithmetic_auto_leaves_activations_on_a_cpu(
    all_schemes: dict[str, dict[str, Any]],
) -> None:
    (auto,) = entries(schemes=["nvfp4-w4a4"], window=256, most=5, arithmetic="auto")
    assert auto["nll"] == pytest.approx(all_schemes["nvfp4"]["nll"], abs=1e-6)
    assert auto["versus"] == "nvfp4-w4a4" and auto["delta_nll"] == 0


def test_without_a_scheme_the_stored_weights_count() -> None:
    (stored,), (bf16,) = entries(schemes=()), entries()
    assert stored["scheme"] == stored["versus"] == "stored" and bf16["scheme"] == "bf16"
    assert stored["nll"] == bf16["nll"] and stored["tokens"] == 2 * 63


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 1}, "window is 1 tokens, want 2 to 2048"),
        ({"window": 2049}, "window is 2049 tokens, want 2 to 2048, the positions"),
        ({"schemes": ["fp8", "bf16", "fp8"]}, "scheme fp8 is named twice"),
        ({"schemes": ["int3"]}, "scheme is 'int3', want one of bf16"),
        ({"arithmetic": "w4a4"}, "arithmetic is 'w4a4', want one of auto, scheme"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        entries(**options)


# ---------------------------------------------------------------- the verb


LINE = ["perplexity", "bard", "--text", str(EXCERPT), "--window", "32", "--windows", "2"]


def test_the_verb_prints_and_appends_records(tmp_path: Path) -> None:
    out = tmp_path / "records" / "perplexity.jsonl"
    words = ["--scheme", "bf16", "--scheme", "fp8", "--out", str(out), "--commit", "abc"]
    line = ["bench", *LINE, *words, "--device", "cpu"]
    result = CliRunner().invoke(app, [*line, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["failures"] == [] and len(printed["records"]) == 2
    for record in printed["records"]:
        assert record.keys() == FIELDS
        assert (record["op"], record["commit"], record["tokens"]) == ("perplexity", "abc", 62)
        assert (record["window"], record["device"], record["dtype"]) == (32, "cpu", "float32")
    assert [json.loads(line) for line in out.read_text().splitlines()] == printed["records"]
    said = CliRunner().invoke(app, line, catch_exceptions=False)
    assert "fp8: perplexity " in said.stdout and " of 62 tokens, " in said.stdout
    assert said.stdout.splitlines()[0].endswith("+0.0000 +- 0.0000 to bf16")
    assert len(out.read_text().splitlines()) == 4


def test_the_verb_without_typer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--scheme", "nvfp4", "--json", "--arithmetic", "auto"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert (record["scheme"], record["arithmetic"]) == ("nvfp4", "auto")
    assert main([*LINE, "--scheme", "int3"]) == 1
    assert "scheme is 'int3'" in capsys.readouterr().err


def test_a_missing_text_is_told() -> None:
    result = CliRunner().invoke(app, ["bench", "perplexity", "bard", "--text", "nowhere.txt"])
    assert result.exit_code == 1 and "nowhere.txt cannot be read" in result.output


# ---------------------------------------------------------------- the document


def entry(**changes: Any) -> dict[str, Any]:
    values = {"op": "perplexity", "model": "bard", "scheme": "bf16", "arithmetic": "scheme"}
    values |= {"text": "t.txt", "sha256": "0123456789abcdef", "dtype": "float32", "device": "cpu"}
    values |= {"torch": "2.13", "commit": "abc", "versus": "bf16", "gpu": None}
    numbers = {"window": 512, "windows": 3, "tokens": 1533, "weight_bytes": 23_200_000}
    numbers |= {"nll": 3.0, "nll_se": 0.04, "perplexity": math.exp(3.0)}
    return values | numbers | {"delta_nll": 0.0, "delta_se": 0.0} | changes


def rendered(folder: Path, *records: dict[str, Any]) -> str:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / perplexities.PERPLEXITIES).write_text(lines)
    return perplexities.render(folder)


def test_a_row_for_each_scheme(tmp_path: Path) -> None:
    four = entry(scheme="nvfp4", nll=3.01, perplexity=20.29, delta_nll=0.01, delta_se=0.002)
    text = rendered(tmp_path, entry(), four | {"weight_bytes": 12_649_000})
    assert "## bard on t.txt" in text and "1,533 tokens in 3 windows of 512" in text
    row = "| nvfp4 | 12.6 | 3.0100 +- 0.0400 | 20.29 | +0.0100 +- 0.0020 | +1.01 % |"
    assert row in text
    assert "| bf16 | 23.2 | 3.0000 +- 0.0400 | 20.09 | +0.0000 +- 0.0000 | +0.00 % |" in text
    assert "sha256 0123456789ab." in text and "CPU, the references" in text


def test_newest_records_and_places_apart(tmp_path: Path) -> None:
    gpu = entry(device="cuda", gpu="NVIDIA H200", dtype="bfloat16")
    text = rendered(tmp_path, entry(nll=9.0), entry(nll_se=None), gpu)
    assert "9.0000" not in text and "| 3.0000 | 20.09 |" in text
    assert text.count("## bard on") == 2 and "NVIDIA H200; bfloat16 arithmetic" in text


def test_the_document_is_current() -> None:
    want = perplexities.render(ROOT / "bench" / "records")
    assert (ROOT / "docs" / "perplexity.md").read_text() == want, (
        "docs/perplexity.md is stale: run "
        "python -m sparkwell.bench table --of perplexity --write docs/perplexity.md"
    )


def test_an_unknown_document_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--of", "taste"]) == 1
    assert "no table of 'taste'; want one of speed, perplexity" in capsys.readouterr().err
