"""LLM: prompts in, completions out, whoever drives the engine."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparkwell
import sparkwell.engine
from engine.fake_runner import FakeRunner
from engine.fake_tokenizer import byte_tokenizer, save_byte_tokenizer
from sparkwell.engine import runner as runner_module
from sparkwell.engine.core import Engine, EngineClosed, QueueFull
from sparkwell.engine.llm import LLM, Completion, GenerationError
from sparkwell.engine.pages import PagePool
from sparkwell.engine.request import Output, SamplingParams
from sparkwell.engine.scheduler import Scheduler
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadCheckpoint, BadInput

TOKENIZER = Tokenizer(byte_tokenizer(), frozenset({258}))
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def make(*, delay: float = 0, fail_on: tuple[int, ...] = (), max_waiting: int = 100) -> LLM:
    scheduler = Scheduler(PagePool(40, 4), max_batch_tokens=16, max_requests=3)
    runner = FakeRunner(4, vocab_size=258, delay=delay, fail_on=fail_on)
    engine = Engine(runner, scheduler, TOKENIZER, max_context=100, max_waiting=max_waiting)
    return LLM.from_engine(engine, TOKENIZER)


@pytest.fixture(params=["stepping", "threaded"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with make() as made:
        if request.param == "threaded":
            made.engine.start()
        yield made


def test_completions_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["one", "another one", TOKENIZER.encode("tokens"), "x"]
    lengths = [9, 2, 5, 1]
    each = [SamplingParams(temperature=0, max_tokens=n) for n in lengths]
    together = llm.generate(prompts, each)
    assert [len(c.token_ids) for c in together] == lengths
    assert [c.prompt_tokens for c in together] == [3, 9, 6, 1]  # "another" holds "the"
    for prompt, params, completion in zip(prompts, each, together, strict=True):
        (alone,) = make().generate(prompt, params)
        assert alone.token_ids == completion.token_ids
        assert completion.text == TOKENIZER.decode(completion.token_ids)
        assert completion.finish_reason == "length" and completion.logprobs is None
        assert completion.timing.finished is not None


def test_prompts_run_together() -> None:
    llm = make()
    llm.generate(["a", "b", "c"], GREEDY)
    assert llm.engine.stats().steps == 6


def test_a_text_a_list_of_tokens_and_lists_of_them(llm: LLM) -> None:
    ids = TOKENIZER.encode("the hen")
    answers = [llm.generate(p, GREEDY) for p in ("the hen", ids, tuple(ids), ["the hen"], [ids])]
    assert all(len(answer) == 1 for answer in answers)
    assert len({answer[0].token_ids for answer in answers}) == 1
    assert llm.generate([], GREEDY) == []
    assert len(llm.generate("x")[0].token_ids) > 0  # default parameters


def test_more_prompts_than_the_queue_holds() -> None:
    for threaded in (False, True):
        llm = make(max_waiting=2)
        if threaded:
            llm.engine.start()
        completions = llm.generate([f"prompt {i}" for i in range(20)], GREEDY)
        wants = [make().generate(f"prompt {i}", GREEDY)[0].text for i in range(20)]
        assert [c.text for c in completions] == wants
        llm.close()


def test_a_queue_full_of_others_is_no_reason_to_wait_for_ever() -> None:
    llm = make(max_waiting=1)
    llm.engine.submit([1], GREEDY, on_output=lambda output: None)
    with pytest.raises(QueueFull):
        llm.generate("x", GREEDY)


def test_logprobs_and_stop_reason_arrive(llm: LLM) -> None:
    (plain,) = llm.generate("x", SamplingParams(temperature=0, max_tokens=6, logprobs=1))
    assert plain.logprobs is not None
    assert tuple(entry.token_id for entry in plain.logprobs) == plain.token_ids
    third = plain.token_ids[2]
    stop = SamplingParams(temperature=0, max_tokens=6, stop_token_ids=(third,), logprobs=0)
    (stopped,) = llm.generate("x", stop)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", third)
    assert stopped.token_ids == plain.token_ids[:3]
    assert stopped.logprobs is not None and len(stopped.logprobs) == 3


def test_a_repeated_prompt_is_found_in_the_cache(llm: LLM) -> None:
    first, second = (llm.generate("twelve chars", GREEDY)[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)
    assert first.text == second.text


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (3, None, r"a prompt is 3 \(int\), want a text, a list of token ids, or a list"),
        (None, None, r"a prompt is None \(NoneType\)"),
        (["a", 3], None, r"a prompt is 3 \(int\)"),
        ([[1, "a"]], None, r"a prompt is \[1, 'a'\] \(list\)"),
        ([1, True], None, r"a prompt is 1 \(int\)"),
        ([[1], [2.0]], None, r"a prompt is \[2.0\] \(list\)"),
        (b"bytes", None, r"a prompt is b.bytes. \(bytes\)"),
        ("a", [GREEDY, GREEDY], "2 SamplingParams for 1 prompts, want one for each"),
        ("a", [{"max_tokens": 3}], "params holds {'max_tokens': 3}, want SamplingParams"),
        ("a", {"max_tokens": 3}, "params is a dict, want SamplingParams"),
        ("", None, "the prompt has no tokens"),
        (["a", ""], None, "the prompt has no tokens"),
    ],
)
def test_wrong_arguments(llm: LLM, prompts: Any, params: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        llm.generate(prompts, params)
    assert llm.engine.stats().steps == 0  # nothing is computed for the others either


def test_all_prompts_are_checked_before_the_first_is_computed() -> None:
    llm = make(max_waiting=1)  # the last prompt is submitted when the first ones are finished
    with pytest.raises(BadInput, match="the prompt has no tokens"):
        llm.generate(["a", "b", "c", "d", ""], GREEDY)
    assert llm.engine.stats().steps == 0


def test_a_failed_step_is_an_error() -> None:
    llm = make(fail_on=(1, 4))
    with pytest.raises(GenerationError, match="request 0 failed: RuntimeError: step 1 was told"):
        llm.generate(["a", "b"], GREEDY)
    stream = llm.stream("a", GREEDY)
    reasons = []
    with pytest.raises(GenerationError, match="request 2 failed: RuntimeError: step 4 was told"):
        for output in stream:
            reasons.append(output.finish_reason)
    assert reasons == [None, None, "error"]
    assert llm.generate("a", GREEDY)[0].finish_reason == "length"
    assert llm.engine.stats().pages_used == 0


def test_an_interruption_leaves_nothing_behind() -> None:
    llm = make()
    run, calls = llm.engine.runner.run, []

    def interrupted(plan: Any) -> Any:
        calls.append(plan)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(plan)

    llm.engine.runner.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a"] * 5, GREEDY)
    stats = llm.engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.finished == {"cancelled": 5}
    assert llm.generate("a", GREEDY) != []


# ---------------------------------------------------------------- streams


def test_a_stream_says_what_generate_says(llm: LLM) -> None:
    outputs = list(llm.stream("the hen", GREEDY))
    (whole,) = llm.generate("the hen", GREEDY)
    assert "".join(output.text for output in outputs) == whole.text
    assert [output.finish_reason for output in outputs] == [None] * 5 + ["length"]


def test_streams_interleave(llm: LLM) -> None:
    streams = [llm.stream(text, GREEDY) for text in ("a", "b")]
    pairs: list[tuple[Output, ...]] = list(zip(*streams, strict=True))
    for i, text in enumerate("ab"):
        (whole,) = llm.generate(text, GREEDY)
        assert "".join(pair[i].text for pair in pairs) == whole.text


def test_closing_a_stream_cancels_its_request() -> None:
    for threaded in (False, True):
        llm = make(delay=0.002)
        if threaded:
            llm.engine.start()
        stream = llm.stream("a", SamplingParams(max_tokens=90))
        next(stream)
        assert llm.engine.stats().running == 1
        stream.close()  # type: ignore[attr-defined]
        until = time.monotonic() + 5
        while llm.engine.stats().pages_used and time.monotonic() < until:
            time.sleep(0.001)
        stats = llm.engine.stats()
        assert (stats.running, stats.pages_used) == (0, 0) and stats.finished == {"cancelled": 1}
        llm.close()


def test_a_stream_refuses_at_once_and_starts_when_it_is_read(llm: LLM) -> None:
    with pytest.raises(BadInput, match="the prompt has no tokens"):
        llm.stream("")
    with pytest.raises(BadInput, match="a prompt is 3"):
        llm.stream(3)  # type: ignore[arg-type]
    llm.stream("a")
    assert llm.engine.stats().waiting == 0


# ---------------------------------------------------------------- chat, threads, closing


def test_chat_goes_through_the_template(llm: LLM) -> None:
    message = {"role": "user", "content": "he"}
    completion = llm.chat([message], GREEDY)
    assert isinstance(completion, Completion) and completion.prompt_tokens == 3
    assert completion.token_ids == llm.generate([259, 256, 260], GREEDY)[0].token_ids
    with pytest.raises(BadInput, match="template refuses these messages: who is judge"):
        llm.chat([{"role": "judge", "content": "x"}])


def test_several_threads_may_generate(llm: LLM) -> None:
    wants = {text: make().generate(text, GREEDY)[0].text for text in "abcdef"}
    got: dict[str, str] = {}

    def work(text: str) -> None:
        for _ in range(5):
            got[text] = llm.generate(text, GREEDY)[0].text

    threads = [threading.Thread(target=work, args=(text,)) for text in wants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == wants


def test_a_closed_model_takes_nothing_more() -> None:
    with make() as llm:
        stream = llm.stream("a", GREEDY)
        next(stream)
    assert llm.engine.stats().pages_used == 0
    with pytest.raises(EngineClosed, match="takes no more requests"):
        llm.generate("a", GREEDY)
    assert [output.finish_reason for output in stream] == ["cancelled"]


# ---------------------------------------------------------------- from a folder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 200,
    "max_position_embeddings": 50,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    save_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked.clear()

    def build_runner(path: Path, **options: Any) -> FakeRunner:
        asked.update(options, folder=path)
        runner = FakeRunner(options["page_size"], vocab_size=200)
        runner.num_pages = options["num_pages"] or 7  # type: ignore[attr-defined]
        return runner

    monkeypatch.setattr(runner_module, "build_runner", build_runner)
    yield tmp_path


asked: dict[str, Any] = {}


def test_a_folder_becomes_a_model(folder: Path) -> None:
    progress = lambda done, total: None  # noqa: E731
    llm = LLM(
        folder, device="cpu", dtype="bfloat16", kv_cache_dtype="fp8", page_size=8, num_pages=9,
        max_batch_tokens=32, max_requests=5, scheme="fp8", progress=progress,
    )  # fmt: skip
    assert asked == {
        "folder": folder, "device": "cpu", "dtype": "bfloat16", "kv_cache_dtype": "fp8",
        "page_size": 8, "num_pages": 9, "eos_ids": frozenset({258}), "progress": progress,
        "max_requests": 5, "max_context": 50, "enforce_eager": False, "say": None,
        "scheme": "fp8",
    }  # fmt: skip
    scheduler = llm.engine.scheduler
    assert (scheduler.max_batch_tokens, scheduler.max_requests) == (32, 5)
    assert (scheduler.pool.num_pages, scheduler.pool.page_size) == (9, 8)
    assert llm.engine.max_context == 50 and llm.engine.vocab_size == 200
    assert llm.tokenizer.eos_ids == {258} and llm.engine.tokenizer is llm.tokenizer
    assert len(llm.generate("a", SamplingParams(max_tokens=None))[0].token_ids) == 49


def test_the_defaults_leave_the_choice_to_the_runner(folder: Path) -> None:
    llm = LLM(str(folder), max_context=20)
    assert asked["num_pages"] is None and asked["device"] == asked["dtype"] == "auto"
    assert asked["kv_cache_dtype"] == "auto" and asked["page_size"] == 64
    assert asked["max_requests"] == 64 and asked["max_context"] == 20
    assert llm.engine.scheduler.pool.num_pages == 7
    assert llm.engine.max_context == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_context": 51}, "max_context is 51, want 2 to 50, the positions"),
        ({"max_context": 1}, "max_context is 1, want 2 to 50"),
        ({"backend": "cuda"}, "backend is 'cuda', want one of auto, reference"),
        ({"max_requests": 0}, "max_requests is 0 and max_batch_tokens is 2048"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        LLM(folder, **options)
    assert asked == {}


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no config.json in the model's folder"):
        LLM(tmp_path)


def test_the_package_exports_it() -> None:
    assert sparkwell.LLM is sparkwell.engine.LLM is LLM
    for name in sparkwell.engine.__all__:
        assert getattr(sparkwell.engine, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sparkwell.engine.nothing
