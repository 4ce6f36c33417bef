"""The engine: how requests end, what goes wrong, and who may call from which thread."""

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from engine.fake_runner import FakeRunner, history_of, mix
from engine.fake_tokenizer import byte_tokenizer
from sparkwell.engine import core
from sparkwell.engine.core import Engine, EngineClosed, QueueFull, Sampled
from sparkwell.engine.pages import PagePool
from sparkwell.engine.request import Output, SamplingParams
from sparkwell.engine.scheduler import Scheduler, StepPlan
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadInput

TOKENIZER = Tokenizer(byte_tokenizer(), frozenset({258}))
EOS = 258
PROMPT = TOKENIZER.encode("prompt")
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def script(tokens: Sequence[int], prompt: Sequence[int] = PROMPT) -> Callable[[Sequence[int]], int]:
    """Draws these tokens behind the prompt, then the letter z for ever."""
    return lambda history: (
        [*tokens, *ids("z") * len(history)][len(history) - len(prompt)]
    )  # fmt: skip


class Told:
    """An on_output that keeps what it was told."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.done = threading.Event()

    def __call__(self, output: Output) -> None:
        assert not self.done.is_set(), "told after the end"
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.done.set()

    @property
    def last(self) -> Output:
        return self.outputs[-1]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def end(self) -> tuple[str | None, str | int | None]:
        return self.last.finish_reason, self.last.stop_reason


def make(
    runner: Any = None, *, pages: int = 40, size: int = 4, requests: int = 4, **options: Any
) -> Engine:
    runner = runner or FakeRunner(size, vocab_size=258)
    scheduler = Scheduler(PagePool(pages, size), max_batch_tokens=16, max_requests=requests)
    return Engine(runner, scheduler, TOKENIZER, **{"max_context": 100, **options})


def run(tokens: Sequence[int], params: SamplingParams, **options: Any) -> Told:
    """One request whose draws are these."""
    engine, told = make(FakeRunner(4, next_token=script(tokens)), **options), Told()
    engine.submit(PROMPT, params, on_output=told)
    while engine.step():
        pass
    assert told.done.is_set() and engine.stats().pages_used == 0
    return told


@pytest.fixture
def started() -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(*args: Any, **options: Any) -> Engine:
        engines.append(make(*args, **options))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.shutdown(drain=False)


# ---------------------------------------------------------------- how a request ends


def test_a_request_from_prompt_to_length() -> None:
    engine, told = make(), Told()
    before = time.monotonic()
    request_id = engine.submit(PROMPT, GREEDY, on_output=told)
    while engine.step():
        pass
    history, want = history_of(PROMPT), []
    for _ in range(8):
        want.append(mix(mix(history, 0), 0) % 258)
        history = mix(history, want[-1])
    assert told.tokens == want and told.end == ("length", None)
    assert told.text == TOKENIZER.decode(want)
    assert [o.output_tokens for o in told.outputs] == list(range(1, 9))
    assert {o.request_id for o in told.outputs} == {request_id}
    assert {(o.prompt_tokens, o.cached_tokens) for o in told.outputs} == {(6, 0)}
    assert {(o.logprobs, o.error) for o in told.outputs} == {(None, None)}
    first, last = told.outputs[0].timing, told.last.timing
    assert first.finished is None and last.finished is not None and last.first_token is not None
    assert before <= last.arrival <= last.first_token <= last.finished <= time.monotonic()
    assert first.first_token == last.first_token and first.arrival == last.arrival


def test_stats_count() -> None:
    engine, told = make(requests=1), Told()
    for prompt in (PROMPT, PROMPT, [1]):
        engine.submit(prompt, GREEDY, on_output=lambda output: None)
    engine.submit([1] * 30, GREEDY, on_output=told)
    assert (engine.stats().waiting, engine.stats().running) == (4, 0)
    engine.step()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.steps) == (3, 1, 1)
    assert (stats.pages_total, stats.pages_used, stats.pages_cached) == (40, 2, 0)
    while engine.step():
        pass
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.pages_used) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens) == (43, 32)
    assert stats.prefix_hit_tokens == 4 and stats.preemptions == 0
    assert stats.steps == 8 + 8 + 8 + 9  # the last prompt takes two chunks
    assert stats.finished == {"length": 4} and stats.pages_cached > 0


def test_the_models_end_token() -> None:
    told = run([*ids("ab"), EOS], GREEDY)
    assert told.end == ("stop", None) and told.text == "ab"
    assert told.tokens == [*ids("ab"), EOS]
    told = run([*ids("ab"), EOS, *ids("c")], SamplingParams(max_tokens=4, ignore_eos=True))
    assert told.end == ("length", None) and told.text == "abc"


def test_a_stop_token() -> None:
    params = SamplingParams(stop_token_ids=tuple(ids("!")))
    told = run(ids("ab!"), params)
    assert told.end == ("stop", ids("!")[0]) and told.text == "ab"
    assert told.tokens == ids("ab!")
    both = SamplingParams(stop_token_ids=tuple(ids("!")), include_stop_str=True)
    assert run(ids("ab!"), both).text == "ab!"
    named = SamplingParams(stop_token_ids=(EOS,), ignore_eos=True)
    assert run([*ids("ab"), EOS], named).end == ("stop", EOS)


def test_a_stop_string_over_several_tokens() -> None:
    params = SamplingParams(stop=("END", "xyz"))
    told = run(ids("a EN END b"), params)
    assert told.text == "a EN " and told.end == ("stop", "END")
    assert [o.text for o in told.outputs][:6] == ["a", " ", "", "", "EN ", ""]
    told = run(ids("a END b"), SamplingParams(stop=("END",), include_stop_str=True))
    assert told.text == "a END" and told.end == ("stop", "END")


def test_a_stop_string_within_one_token() -> None:
    told = run([*ids("a "), 257], SamplingParams(stop=("h",)))  # "the"
    assert told.text == "a t" and told.end == ("stop", "h")


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    params = SamplingParams(stop=("END",), max_tokens=4)
    told = run(ids("a EN"), params)
    assert told.text == "a EN" and told.last.text == "EN" and told.end == ("length", None)
    told = run([*ids("a EN"), EOS], SamplingParams(stop=("END",)))
    assert told.text == "a EN" and told.end == ("stop", None)


def test_the_last_token_may_complete_a_stop_string_or_be_the_end_token() -> None:
    assert run(ids("abEND"), SamplingParams(stop=("END",), max_tokens=5)).end == ("stop", "END")
    assert run([*ids("ab"), EOS], SamplingParams(max_tokens=3)).end == ("stop", None)


def test_half_a_character_at_the_end() -> None:
    told = run(ids("a🙂")[:3], SamplingParams(max_tokens=3))
    assert [o.text for o in told.outputs] == ["a", "", "\ufffd"]
    told = run(ids("🙂"), SamplingParams(max_tokens=4))
    assert [o.text for o in told.outputs] == ["", "", "", "🙂"]


def test_a_held_back_stop_and_half_a_character_come_in_order() -> None:
    told = run(ids("aEN🙂")[:5], SamplingParams(max_tokens=5, stop=("END",)))
    assert told.text == "aEN\ufffd"


def test_a_character_that_begins_in_the_prompt() -> None:
    prompt = [*PROMPT, *ids("🙂")[:2]]
    engine, told = make(FakeRunner(4, next_token=script(ids("🙂b")[2:], prompt))), Told()
    engine.submit(prompt, SamplingParams(max_tokens=3), on_output=told)
    while engine.step():
        pass
    assert [o.text for o in told.outputs] == ["", "🙂", "b"]


def test_nothing_stops_before_min_tokens() -> None:
    end = [EOS, *ids("a"), EOS]
    assert run(end, SamplingParams(min_tokens=2)).tokens == end
    assert run(end, SamplingParams(min_tokens=1)).tokens == [EOS]
    told = run(ids("abab"), SamplingParams(min_tokens=3, stop=("ab",)))
    assert told.text == "ab" and told.tokens == ids("abab")
    assert run(ids("abab"), SamplingParams(min_tokens=1, stop=("ab",))).tokens == ids("ab")
    # A stop string must lie behind min_tokens entirely, whatever the tokens' borders.
    told = run(ids("abab"), SamplingParams(min_tokens=2, max_tokens=4, stop=("ab",)))
    assert told.end == ("stop", "ab") and told.text == "ab" and len(told.tokens) == 4


def test_runners_are_told_which_tokens_min_tokens_forbids() -> None:
    class Asking(FakeRunner):
        seen: list[frozenset[int]] = []

        def run(self, plan: StepPlan) -> dict[int, Sampled]:
            self.seen.extend(work.request.suppressed for work in plan.work)
            return super().run(plan)

    engine = make(Asking(4, next_token=script(ids("abc"))))
    params = SamplingParams(min_tokens=2, max_tokens=3, stop_token_ids=(7,))
    engine.submit(PROMPT, params, on_output=Told())
    engine.submit(PROMPT, SamplingParams(min_tokens=1, max_tokens=1, ignore_eos=True),
                  on_output=Told())  # fmt: skip
    while engine.step():
        pass
    assert Asking.seen == [{7, EOS}, frozenset(), {7, EOS}, frozenset()]


def test_the_context_limit() -> None:
    told = run([], SamplingParams(max_tokens=50), max_context=10)
    assert told.end == ("length", None) and len(told.tokens) == 4
    told = run([], SamplingParams(max_tokens=None), max_context=12)
    assert len(told.tokens) == 6
    told = run([], SamplingParams(max_tokens=None), pages=3)  # 12 cached and the last one
    assert len(told.tokens) == 13 - 6


def test_logprobs() -> None:
    told = run(ids("ab"), SamplingParams(max_tokens=2, logprobs=2))
    a, b = ids("ab")
    entries = [entry for output in told.outputs for entry in output.logprobs or ()]
    assert [(e.token_id, e.logprob) for e in entries] == [(a, -0.5), (b, -0.5)]
    assert entries[0].top == ((a, -0.5), (a + 1, -1.5))
    told = run(ids("ab"), SamplingParams(max_tokens=2, logprobs=0))
    assert told.last.logprobs is not None and told.last.logprobs[0].top == ()


def test_seeds() -> None:
    engine = make(requests=8)
    params = SamplingParams(max_tokens=12)
    seeded = SamplingParams(max_tokens=12, seed=-5)
    told = [Told() for _ in range(4)]
    for one, given in zip(told, (params, params, seeded, seeded), strict=True):
        engine.submit([9], given, on_output=one)
    engine.step()
    seeds = [request.seed for request in engine.scheduler.running.values()]
    assert seeds[2:] == [2**64 - 5] * 2 and seeds[0] != seeds[1] and max(seeds) > 2**40
    while engine.step():
        pass
    assert told[2].tokens == told[3].tokens != told[0].tokens != told[1].tokens


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "the prompt has no tokens, want at least one"),
        ([1, 261], {}, "the prompt names token 261, the model knows 0 to 260"),
        ([-1, 2], {}, "the prompt names token -1"),
        ([1] * 20, {}, "the prompt has 20 tokens, want at most 19: the context limit is 20 tokens"),
        ([1], {"logit_bias": {261: 1.0}}, "logit_bias names token 261"),
        ([1], {"stop_token_ids": (261,)}, "stop_token_ids names token 261"),
        ([1], {"logprobs": 262}, "logprobs is 262, the model knows 261 tokens"),
    ],
)
def test_requests_that_cannot_be_served(
    prompt: list[int], params: dict[str, Any], message: str
) -> None:
    engine = make(max_context=20)
    for ask in (engine.check, lambda p, s: engine.submit(p, s, on_output=Told())):
        with pytest.raises(BadInput, match=message):
            ask(prompt, SamplingParams(**params))
    assert engine.stats().waiting == 0


def test_requests_at_the_limit_are_served() -> None:
    engine = make(max_context=20)
    assert engine.check([260] * 19, SamplingParams(logit_bias={0: 1.0, 260: 1.0})) == 20
    assert engine.check([1], SamplingParams(logprobs=261, max_tokens=3)) == 4
    assert make(vocab_size=5).check([4], SamplingParams(max_tokens=2)) == 3
    with pytest.raises(BadInput, match="names token 5, the model knows 0 to 4"):
        make(vocab_size=5).check([5], SamplingParams())


def test_requests_larger_than_the_cache() -> None:
    engine = make(pages=3)
    with pytest.raises(BadInput, match="needs 4 cache pages of 4 tokens, the cache has 3"):
        engine.check([1] * 6, SamplingParams(max_tokens=8))
    assert engine.check([1] * 6, SamplingParams(max_tokens=7)) == 13
    assert engine.check([1] * 6, SamplingParams(max_tokens=None)) == 13
    with pytest.raises(BadInput, match="want at most 12: .* the cache holds 13; shorten"):
        engine.check([1] * 13, SamplingParams(max_tokens=None))


def test_the_queue_has_an_end() -> None:
    engine = make(max_waiting=2, requests=1)
    for _ in range(2):
        engine.submit(PROMPT, GREEDY, on_output=Told())
    with pytest.raises(QueueFull, match="2 requests are waiting, which is the limit"):
        engine.submit(PROMPT, GREEDY, on_output=Told())
    engine.step()  # one runs, one waits
    engine.submit(PROMPT, GREEDY, on_output=Told())
    with pytest.raises(QueueFull):
        engine.submit(PROMPT, GREEDY, on_output=Told())


@pytest.mark.parametrize(("context", "waiting"), [(1, 1), (2, 0)])
def test_limits_of_the_engine_are_checked(context: int, waiting: int) -> None:
    with pytest.raises(BadInput, match=f"max_context is {context} and max_waiting is {waiting}"):
        make(max_context=context, max_waiting=waiting)


# ---------------------------------------------------------------- cancelling


def test_cancelling_takes_effect_without_a_step_and_only_once() -> None:
    engine, running, waiting = make(requests=1), Told(), Told()
    first = engine.submit(PROMPT, GREEDY, on_output=running)
    second = engine.submit(PROMPT, GREEDY, on_output=waiting)
    engine.step()
    for request_id in (second, first, first, 12345):
        engine.cancel(request_id)
    assert waiting.end == running.end == ("cancelled", None)
    assert waiting.tokens == [] and len(running.tokens) == 1
    assert (waiting.last.timing.first_token, waiting.last.output_tokens) == (None, 0)
    assert running.last.output_tokens == 1 and running.last.token_ids == ()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.pages_used) == (0, 0, 0)
    assert stats.finished == {"cancelled": 2} and not engine.step()


def test_text_held_back_is_not_shown_after_cancelling() -> None:
    engine, told = make(FakeRunner(4, next_token=script(ids("a EN")))), Told()
    request_id = engine.submit(PROMPT, SamplingParams(stop=("END",), logprobs=0), on_output=told)
    for _ in range(4):
        engine.step()
    engine.cancel(request_id)
    assert told.text == "a " and told.last.logprobs == ()


def test_a_callers_function_may_submit_and_cancel() -> None:
    engine, second = make(), Told()
    outputs: list[Output] = []

    def told(output: Output) -> None:
        outputs.append(output)
        if output.finish_reason is None:
            engine.submit(PROMPT, GREEDY, on_output=second)
            engine.cancel(output.request_id)

    engine.submit(PROMPT, GREEDY, on_output=told)
    while engine.step():
        pass
    assert [o.finish_reason for o in outputs] == [None, "cancelled"]
    assert second.end == ("length", None)


# ---------------------------------------------------------------- failures


def test_a_failed_step_ends_the_running_requests_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make(FakeRunner(4, vocab_size=258, fail_on=(2,)), requests=2)
    told = [Told() for _ in range(3)]
    for one in told:
        engine.submit(PROMPT, GREEDY, on_output=one)
    with caplog.at_level(logging.ERROR):
        while engine.step():
            pass
    assert [one.end[0] for one in told] == ["error", "error", "length"]
    assert told[0].last.error == "RuntimeError: step 2 was told to fail"
    assert len(told[0].tokens) == 2 and told[2].last.error is None
    assert "a step of 2 tokens failed" in caplog.text and "Traceback" in caplog.text
    stats = engine.stats()
    assert stats.pages_used == 0 and stats.finished == {"error": 2, "length": 1}
    assert told[2].text == run_alone()  # what the failed step wrote is not reused


def run_alone() -> str:
    engine, told = make(), Told()
    engine.submit(PROMPT, GREEDY, on_output=told)
    while engine.step():
        pass
    return told.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "KeyError: 0"),
        ({0: Sampled(-1, 0.0)}, "AssertionError: the runner drew token -1"),
        ({0: Sampled(5)}, "AssertionError: the runner gave no log-probability"),
    ],
)
def test_a_runner_that_breaks_its_promise(answer: dict[int, Sampled], message: str) -> None:
    class Broken:
        def run(self, plan: StepPlan) -> dict[int, Sampled]:
            return answer

    engine, told = make(Broken()), Told()
    engine.submit(PROMPT, SamplingParams(logprobs=0), on_output=told)
    assert engine.step() and not engine.step()
    assert told.last.error is not None and told.last.error.startswith(message)
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("fails_at", [0, 7])
def test_a_callers_function_that_fails_drops_its_request_only(
    fails_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine, other, calls = make(), Told(), []

    def broken(output: Output) -> None:
        calls.append(output)
        if len(calls) == fails_at + 1:
            raise ValueError("not my day")

    engine.submit(PROMPT, GREEDY, on_output=broken)
    engine.submit([9], GREEDY, on_output=other)
    while engine.step():
        pass
    assert len(calls) == fails_at + 1
    assert other.end == ("length", None) and engine.stats().pages_used == 0
    # The last output had ended the request by itself.
    assert engine.stats().finished == ({"error": 1, "length": 1} if not fails_at else {"length": 2})
    assert "on_output of request 0 failed" in caplog.text and "not my day" in caplog.text


def test_a_broken_engine_says_so_to_everybody(
    started: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    engine, told, waiting = started(FakeRunner(4, delay=0.01), requests=1), Told(), Told()
    engine.submit(PROMPT, SamplingParams(max_tokens=50), on_output=told)
    engine.submit(PROMPT, GREEDY, on_output=waiting)
    monkeypatch.setattr(engine.scheduler, "plan", lambda: 1 / 0)
    assert told.done.wait(5) and waiting.done.wait(5)
    assert told.end[0] == waiting.end[0] == "error"
    assert waiting.last.error == "the engine broke; its log says why"
    with pytest.raises(EngineClosed, match="takes no more requests: it broke; the log says why"):
        engine.submit(PROMPT, GREEDY, on_output=Told())
    assert "division by zero" in caplog.text and engine.stats().pages_used == 0


# ---------------------------------------------------------------- its own thread


def test_requests_from_other_threads_are_served(started: Callable[..., Engine]) -> None:
    engine, told = started(), Told()
    assert engine.is_started
    engine.start()  # a second time changes nothing
    engine.submit(PROMPT, GREEDY, on_output=told)
    assert told.done.wait(5) and told.text == run_alone()
    again = Told()
    engine.submit(PROMPT, GREEDY, on_output=again)
    assert again.done.wait(5) and again.tokens == told.tokens
    assert again.last.cached_tokens == 4
    assert sum(t.name == "engine" and t.is_alive() for t in threading.enumerate()) == 1


def test_an_idle_engine_sleeps(started: Callable[..., Engine]) -> None:
    engine, told = started(), Told()
    engine.submit(PROMPT, GREEDY, on_output=told)
    assert told.done.wait(5)
    time.sleep(0.05)
    steps, used = engine.stats().steps, time.process_time()
    time.sleep(0.3)
    assert engine.stats().steps == steps
    assert time.process_time() - used < 0.1


def test_cancelling_a_running_request_frees_its_pages(started: Callable[..., Engine]) -> None:
    engine, told = started(FakeRunner(4, delay=0.005), max_context=150), Told()
    request_id = engine.submit(PROMPT, SamplingParams(max_tokens=None), on_output=told)
    while not told.outputs:
        time.sleep(0.001)
    engine.cancel(request_id)
    assert told.done.wait(5) and told.end[0] == "cancelled"
    assert engine.stats().pages_used == 0


def test_shutdown_finishes_what_was_accepted(started: Callable[..., Engine]) -> None:
    engine = started(FakeRunner(4, delay=0.002), requests=2)
    told = [Told() for _ in range(6)]
    for one in told:
        engine.submit(PROMPT, GREEDY, on_output=one)
    engine.shutdown()
    assert {one.end[0] for one in told} == {"length"}
    with pytest.raises(EngineClosed, match="takes no more requests: it is shutting down"):
        engine.submit(PROMPT, GREEDY, on_output=Told())
    with pytest.raises(EngineClosed):
        engine.start()
    engine.shutdown()
    engine.cancel(0)
    assert not any(t.name == "engine" and t.is_alive() for t in threading.enumerate())


@pytest.mark.parametrize("drain", [True, False])
def test_shutdown_cancels_what_takes_too_long(started: Callable[..., Engine], drain: bool) -> None:
    engine = started(FakeRunner(4, delay=0.02), requests=1)
    told = [Told(), Told()]
    for one in told:
        engine.submit(PROMPT, SamplingParams(max_tokens=90), on_output=one)
    begun = time.monotonic()
    engine.shutdown(drain=drain, timeout=0.8)
    assert (time.monotonic() - begun >= 0.8) == drain
    assert [one.end[0] for one in told] == ["cancelled", "cancelled"]
    assert 0 <= len(told[0].tokens) < 90 and told[1].tokens == []
    assert engine.stats().pages_used == 0


def test_shutdown_leaves_a_step_that_never_returns(
    started: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(core, "_GRACE", 0.05)
    gate, told = threading.Event(), Told()

    class Stuck(FakeRunner):
        def run(self, plan: StepPlan) -> dict[int, Sampled]:
            gate.wait(5)
            return super().run(plan)

    engine = started(Stuck(4))
    engine.submit(PROMPT, GREEDY, on_output=told)
    engine.shutdown(timeout=0.05)
    assert "a step has not returned" in caplog.text and not told.done.is_set()
    gate.set()
    assert told.done.wait(5) and told.end[0] == "cancelled"


def test_shutdown_without_a_thread() -> None:
    engine, told = make(), Told()
    engine.submit(PROMPT, GREEDY, on_output=told)
    engine.shutdown()
    assert told.end == ("length", None) and not engine.is_started
    engine, told = make(), Told()
    engine.submit(PROMPT, GREEDY, on_output=told)
    engine.shutdown(drain=False)
    assert told.end == ("cancelled", None)
    engine, told = make(FakeRunner(4, delay=0.02)), Told()
    engine.submit(PROMPT, SamplingParams(max_tokens=90), on_output=told)
    engine.shutdown(timeout=0.1)
    assert told.end == ("cancelled", None) and 1 <= len(told.tokens) < 90


def test_many_threads_submitting_and_cancelling(started: Callable[..., Engine]) -> None:
    engine = started(pages=24, requests=6, max_waiting=40)
    told: dict[int, list[Told]] = defaultdict(list)
    prompts = [PROMPT * 2, PROMPT, [*PROMPT, 3], [5] * 13]

    def client(number: int) -> None:
        rng = random.Random(number)
        for _ in range(25):
            one, prompt = Told(), rng.choice(prompts)
            params = SamplingParams(temperature=0, max_tokens=rng.randint(1, 40))
            while True:
                try:
                    request_id = engine.submit(prompt, params, on_output=one)
                    break
                except QueueFull:
                    time.sleep(0.002)
            told[number].append(one)
            if rng.random() < 0.3:
                engine.cancel(request_id)
            elif rng.random() < 0.3:
                one.done.wait(5)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everybody = [one for each in told.values() for one in each]
    assert all(one.done.wait(20) for one in everybody) and len(everybody) == 200
    reasons = Counter(one.last.finish_reason for one in everybody)
    assert reasons.keys() <= {"length", "cancelled"} and min(reasons.values()) > 10
    stats = engine.stats()
    assert stats.finished == dict(reasons)
    assert (stats.waiting, stats.running, stats.pages_used) == (0, 0, 0)
    assert stats.preemptions > 0 and stats.prefix_hit_tokens > 0
    assert stats.generated_tokens == sum(len(one.tokens) for one in everybody)
    after = Told()
    engine.submit(PROMPT, GREEDY, on_output=after)
    assert after.done.wait(5) and after.text == run_alone()
