"""generate and chat with a model that says what it was asked."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.fake_model import fake_llm
from sparkwell import __version__
from sparkwell.cli import app
from sparkwell.cli.output import note
from sparkwell.engine import llm as llm_module
from sparkwell.engine.core import Engine
from sparkwell.errors import BadCheckpoint

Run = Callable[..., Result]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What LLM was constructed with."""
    calls: list[dict[str, Any]] = []

    def make(model: str, **settings: Any) -> llm_module.LLM:
        calls.append({"model": model, **settings})
        return fake_llm(model, **settings)

    monkeypatch.setattr(llm_module, "LLM", make)
    return calls


@pytest.fixture
def run(asked: list[dict[str, Any]]) -> Run:
    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return invoke


def test_generate_streams_text(run: Run) -> None:
    for extra in ((), ("--no-stream",)):
        result = run("generate", "fake", "x", "--max-tokens", "5", *extra)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "bcdef\n", "")


def test_generate_reads_stdin(run: Run) -> None:
    result = run("generate", "fake", "-", "--max-tokens", "2", "--json", stdin="né\n\n")
    assert json.loads(result.stdout)["prompt"] == "né\n"  # one newline is the shell's
    assert json.loads(result.stdout)["text"] == "ef"
    result = run("generate", "fake", "-", stdin=b"\xff")
    assert result.exit_code == 1 and "the prompt on stdin is not UTF-8" in result.stderr


def test_generate_json(run: Run) -> None:
    result = run(
        "generate", "fake", "xy", "--max-tokens", "3", "--json", "--logprobs", "2", "--stop", "d"
    )
    assert result.exit_code == 0
    got = json.loads(result.stdout)
    assert (got["model"], got["prompt"], got["text"]) == ("fake", "xy", "c")
    assert (got["finish_reason"], got["stop_reason"]) == ("stop", "d")
    assert got["token_ids"] == [99, 100]
    assert got["usage"] == {
        "prompt_tokens": 2,
        "cached_tokens": 0,
        "completion_tokens": 2,
        "total_tokens": 4,
    }
    times = got["timings"]
    assert 0 < times["ttft_s"] < times["total_s"] < 10
    assert times["tpot_s"] == pytest.approx(times["total_s"] - times["ttft_s"])
    assert times["tokens_per_s"] == pytest.approx(1 / times["tpot_s"])
    first = {"token_id": 99, "token": "c", "logprob": -0.5}
    second = {"token_id": 100, "token": "d", "logprob": -1.5}
    assert got["logprobs"][0] == {**first, "top": [first, second]}
    single = json.loads(run("generate", "fake", "x", "--max-tokens", "1", "--json").stdout)
    assert single["timings"]["tpot_s"] is None and single["timings"]["tokens_per_s"] is None
    assert single["logprobs"] is None


def test_generate_passes_its_options_on(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    submit = Engine.submit

    def spy(self: Engine, ids: Any, params: Any, **kwargs: Any) -> int:
        seen.append(params)
        return submit(self, ids, params, **kwargs)

    monkeypatch.setattr(Engine, "submit", spy)
    line = (
        "generate fake x --max-tokens 7 --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 "
        "--repetition-penalty 1.5 --seed 3 --stop A --stop B --device cpu --dtype bf16 "
        "--kv-cache-dtype fp8 --page-size 16 --num-pages 99 --max-context 50 --enforce-eager "
        "--scheme fp8"
    )
    assert run(*line.split()).exit_code == 0
    (p,) = seen
    assert (p.max_tokens, p.temperature, p.top_p, p.top_k, p.min_p) == (7, 0.5, 0.9, 5, 0.1)
    assert (p.repetition_penalty, p.seed, p.stop) == (1.5, 3, ("A", "B"))
    assert asked == [
        {
            "model": "fake",
            "device": "cpu",
            "dtype": "bf16",
            "scheme": "fp8",
            "kv_cache_dtype": "fp8",
            "page_size": 16,
            "num_pages": 99,
            "max_context": 50,
            "max_requests": 1,
            "enforce_eager": True,
            "progress": None,
            "say": note,
        }
    ]


def test_chat_takes_one_line_after_another(run: Run, asked: list[dict[str, Any]]) -> None:
    lines = "one\n\ntwo\n/reset\nthree\n/system be brief\nfour\n/exit\nx\n"
    result = run("chat", "fake", "--scheme", "nvfp4-w4a4", stdin=lines)
    assert asked[0]["scheme"] == "nvfp4-w4a4"
    assert result.exit_code == 0
    assert result.stdout == "u: one\nuau: two\nu: three\nsuau: four\n"
    assert result.stderr == ""


def test_chat_system_message(run: Run) -> None:
    result = run("chat", "fake", "--system", "brief", stdin="one\n/system\ntwo")
    assert result.stdout == "su: one\nuau: two\n"  # /system without a text takes it away


def test_chat_commands(run: Run) -> None:
    result = run("chat", "fake", stdin="/help\n/wat\n")
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.count("/reset begins anew") == 2
    assert "no command /wat" in result.stderr


def test_chat_without_a_template_is_refused_before_any_typing(run: Run) -> None:
    result = run("chat", "silent", stdin="")
    assert result.exit_code == 1
    assert "error: this model has no chat template" in result.stderr


def test_chat_ends_when_a_piped_turn_is_refused(run: Run) -> None:
    result = run("chat", "fake", stdin=f"one\n{'x' * 400}\ntwo\n")
    assert result.exit_code == 1
    assert result.stdout == "u: one\n"
    assert "error: the prompt has" in result.stderr
    result = run("chat", "fake", stdin=b"\xff\n")
    assert result.exit_code == 1 and "is not UTF-8" in result.stderr


def test_errors_are_plain_words(run: Run) -> None:
    result = run("generate", "missing", "x")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: checkpoint: no model\n")
    assert "Traceback" not in result.stderr
    failing = run("generate", "failing", "x", "--max-tokens", "5")
    assert failing.exit_code == 1
    assert "error: request 0 failed: RuntimeError: step 1 was told to fail" in failing.stderr
    for option, value in (("--top-p", "0"), ("--min-p", "2"), ("--repetition-penalty", "0")):
        refused = run("generate", "fake", "x", option, value)
        assert refused.exit_code == 1
        assert f"error: SamplingParams: {option[2:].replace('-', '_')} is" in refused.stderr


def test_debug_lets_the_error_through(run: Run) -> None:
    result = run("generate", "missing", "x", "--debug")
    assert isinstance(result.exception, BadCheckpoint)


def test_usage_errors(run: Run) -> None:
    for line, text in (
        ("generate", "'MODEL'"),
        ("generate fake", "'PROMPT'"),
        ("generate fake x --max-tokens 0", "'--max-tokens'"),
        ("generate fake x --temperature -1", "'--temperature'"),
        ("generate fake x --dtype int3", "'--dtype'"),
        ("generate fake x --kv-cache-dtype fp4", "'--kv-cache-dtype'"),
        ("generate fake x --logprobs 1", "--logprobs needs --json"),
        ("generate fake x --nonsense", "--nonsense"),
        ("serve fake --port 70000", "'--port'"),
        ("serve fake --log-level loud", "'--log-level'"),
        ("frobnicate", "'frobnicate'"),
    ):
        result = run(*line.split())
        assert result.exit_code == 2, line
        assert text in result.stderr and "Usage" in result.stderr, result.stderr
        assert result.stdout == ""


def test_threads(run: Run) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert run("generate", "fake", "x", "--max-tokens", "1", "--threads", "3").exit_code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_log_level_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKWELL_LOG_LEVEL", "loud")
    result = run("generate", "fake", "x")
    assert result.exit_code == 1
    assert "log level is 'loud', want one of debug, info, warning, error" in result.stderr


def test_version(run: Run) -> None:
    for line in ("version", "--version"):
        result = run(line)
        assert (result.exit_code, result.stdout) == (0, f"sparkwell {__version__}\n")


def test_serve_without_the_servers_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparkwell.server.limits", None)
    result = run("serve", "fake")
    assert result.exit_code == 1
    assert "pip install 'sparkwell[serve]'" in result.stderr


def test_serve_passes_its_options_on(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkwell.server import serve

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(serve, "run", lambda engine, **kwargs: calls.append(kwargs))
    monkeypatch.setenv("SPARKWELL_API_KEY", "from the environment")
    line = (
        "serve fake --host 0.0.0.0 --port 99 --served-model-name it --max-body-bytes 77 "
        "--shutdown-timeout 3 --max-requests 5 --max-batch-tokens 66 --max-context 44 "
        "--scheme nvfp4"
    )
    assert run(*line.split()).exit_code == 0
    assert run("serve", "fake", "--api-key", "given").exit_code == 0
    first, second = calls
    assert (first["host"], first["port"], first["model_name"]) == ("0.0.0.0", 99, "it")
    assert (first["limits"].max_body_bytes, first["shutdown_timeout"]) == (77, 3)
    assert first["api_key"] == "from the environment"
    assert (asked[0]["max_requests"], asked[0]["max_batch_tokens"]) == (5, 66)
    assert asked[0]["max_context"] == 44 and asked[0]["enforce_eager"] is False
    assert (asked[0]["scheme"], asked[1]["scheme"]) == ("nvfp4", None)
    assert (second["api_key"], second["model_name"]) == ("given", "fake")
    assert (second["host"], second["port"]) == ("127.0.0.1", 8000)
    monkeypatch.delenv("SPARKWELL_API_KEY")
    run("serve", "fake")
    assert calls[2]["api_key"] is None
