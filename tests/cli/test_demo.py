"""The verbs with the model in the package."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sparkwell.checkpoints.locate import locate
from sparkwell.cli import app
from sparkwell.cli import demo as module
from sparkwell.cli.demo import _machine_lines, _model_facts
from sparkwell.engine.llm import LLM
from sparkwell.formats.fp8 import quantize_fp8_block
from sparkwell.hardware.probe import Machine


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    """`demo` sets the number of torch's threads, which outlives it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_demo_json() -> None:
    line = ("demo", "--json", "--max-tokens", "12", "--seed", "4", "--prompt", "JULIET.\n")
    got = json.loads(run(*line))
    assert got["computed_on"] == "cpu"
    assert got["prompt"] == "JULIET.\n"
    assert len(got["text"]) > 12 and got["finish_reason"] == "length"
    facts, figures = got["model"], got["figures"]
    assert (facts["name"], facts["architecture"]) == ("bard", "glm_moe_dsa")
    assert 5e6 < facts["parameters"] < 7e6 and facts["bytes"] > 2 * 5e6
    assert facts["latent_width"] == 576 and facts["cache_bytes_per_token"] % 4 == 0
    assert figures["generated_tokens"] == 12 and figures["prompt_tokens"] >= 3
    assert figures["pages_used"] == 1 and figures["pages_total"] > 100
    assert 0 < figures["ttft_s"] < figures["total_s"]
    assert figures["tokens_per_s"] == pytest.approx(1 / figures["tpot_s"])
    assert json.loads(run(*line))["text"] == got["text"]
    other = json.loads(run(*line, "--seed", "5"))
    assert other["text"] != got["text"]
    generated = run(
        "generate", "bard", "JULIET.\n", "--seed", "4", "--temperature", "0.7", "--top-p", "0.95",
        "--max-tokens", "12", "--threads", "1",
    )  # fmt: skip
    assert generated == got["text"] + "\n"


def test_demo_in_words() -> None:
    text = run("demo", "--max-tokens", "66", "--prompt", "ROMEO.\n")
    for part in ("GPU ", "CPU ", "glm_moe_dsa", "ROMEO.\n", "66 tokens", "tokens/s", " ms"):
        assert part in text
    assert "2 of " in text  # pages of 64 tokens
    rows = run("demo", "--max-tokens", "1").splitlines()
    assert next(row for row in rows if "TPOT" in row).split()[-1] == "-"
    assert next(row for row in rows if "TTFT" in row).split()[-1] == "ms"


PROMPT = ("--prompt", "JULIET.\n", "--max-tokens", "24", "--seed", "4")


def test_demo_in_other_schemes() -> None:
    texts, sizes = {}, {}
    for scheme in ("bf16", "fp8", "nvfp4", "nvfp4-w4a4"):
        got = json.loads(run("demo", "--json", "--scheme", scheme, *PROMPT))
        assert got["model"]["scheme"] == scheme and got["model"]["scheme_in_words"]
        assert got["figures"]["generated_tokens"] == 24
        texts[scheme], sizes[scheme] = got["text"], got["model"]["weight_bytes"]
    assert len(set(texts.values())) == 4, "each of them rounds otherwise"
    # The indexer is quantized by fp8 alone; embeddings by none.
    assert sizes["bf16"] > 1.5 * sizes["nvfp4"] and sizes["nvfp4"] == sizes["nvfp4-w4a4"]
    assert texts["bf16"] == json.loads(run("demo", "--json", *PROMPT))["text"]
    words = ("--temperature", "0.7", "--top-p", "0.95", "--threads", "1", "--scheme", "nvfp4-w4a4")
    generated = run("generate", "bard", "JULIET.\n", *PROMPT[2:], *words)
    assert generated == texts["nvfp4-w4a4"] + "\n"


def test_demo_says_what_weights_are_in() -> None:
    text = run("demo", "--scheme", "nvfp4-w4a4", "--max-tokens", "1")
    assert "nvfp4-w4a4: NVFP4 weights and activations; 12." in text and "MB in memory" in text


def test_an_unknown_scheme_is_refused() -> None:
    result = CliRunner().invoke(app, ["demo", "--scheme", "int3"])
    assert result.exit_code == 1
    assert "error: scheme is 'int3', want one of bf16, fp8, nvfp4, nvfp4-w4a4" in result.stderr


def test_parameters_of_a_quantized_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes and scales are no parameters; a weight counts as the model has it."""
    folder = tmp_path / "bard"
    shutil.copytree(locate("bard"), folder)
    tensors = load_file(folder / "model.safetensors")
    parameters = sum(t.numel() for t in tensors.values())
    name = "model.layers.1.self_attn.o_proj.weight"
    block = quantize_fp8_block(tensors[name])
    tensors |= {name: block.values, f"{name}_scale_inv": block.scales}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(module, "MODEL", str(folder))
    with LLM(folder, num_pages=2) as llm:
        assert _model_facts(llm, "bf16")["parameters"] == parameters


def test_a_gpu_is_shown_and_why_it_is_idle() -> None:
    target = SimpleNamespace(name="sm_121")
    gpu = SimpleNamespace(name="NVIDIA GB10", target=target, capability="12.1", memory_bytes=2**37)
    strange = SimpleNamespace(name="Next", target=None, capability="99.0", memory_bytes=None)
    machine = Machine((gpu, strange), "1", "13.0", "aarch64", "Linux", 20, 2**37, ())  # type: ignore[arg-type]
    lines = _machine_lines(machine, "torch sees no NVIDIA GPU")
    assert lines[0] == "GPU    NVIDIA GB10 (sm_121, 128 GiB)"
    assert lines[1] == "GPU    Next (99.0)"
    assert lines[2].strip() == "not used: torch sees no NVIDIA GPU"
    assert lines[3] == "CPU    aarch64, 20 cores, 128 GiB; computes in torch"
    none = Machine((), None, None, "x86_64", "Linux", 2, None, ("no driver",))
    assert _machine_lines(machine, None)[2] == "CPU    aarch64, 20 cores, 128 GiB"
    assert _machine_lines(none, "torch is built without CUDA") == [
        "GPU    none: no driver",
        "CPU    x86_64, 2 cores; computes in torch",
    ]
