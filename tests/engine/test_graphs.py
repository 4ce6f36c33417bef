"""Recorded decode steps: padded, replayed from static buffers, and the text is the same.

The recorder here keeps the step as a function, so what a CUDA graph would keep is kept: the tensors
it was recorded with, and no value that the host knew then.
"""

import logging
from collections.abc import Callable

import pytest
import torch

from sparkwell import LLM, SamplingParams
from sparkwell.engine.graphs import DecodeGraphs, batch_sizes, context_bounds
from sparkwell.engine.inputs import Inputs
from sparkwell.engine.request import Request
from sparkwell.engine.runner import ModelRunner
from sparkwell.engine.scheduler import Work

PROMPTS = ["ROMEO.\n", "My lord, the queen hath", "In the beginning", "KING HENRY.\nOnce more"]
LONG = "Now is the winter of our discontent made glorious summer by this sun of York;\n" * 4
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


class FakeRecorder:
    """Keeps steps; can fail at one, as a GPU does."""

    def __init__(self, fail_at: int | None = None, error: type[Exception] = RuntimeError) -> None:
        self.fail_at, self.error = fail_at, error
        self.recorded = self.replayed = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        if self.recorded == self.fail_at:
            self.fail_at = None
            raise self.error("operation not permitted when stream is capturing")
        self.recorded += 1
        step()

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


def recorded(
    recorder: FakeRecorder, max_requests: int = 5, page_size: int = 16, **options: object
) -> LLM:
    settings = {"num_pages": 200, "page_size": page_size, "max_requests": max_requests}
    llm = LLM("bard", **(settings | options))  # type: ignore[arg-type]
    runner = llm.engine.runner
    assert isinstance(runner, ModelRunner) and runner.graphs is None  # none on the CPU by itself
    runner.record(recorder, max_requests=max_requests, max_context=2048)
    return llm


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM("bard", num_pages=200, page_size=16, max_requests=5)


def test_sizes() -> None:
    assert [batch_sizes(n) for n in (1, 2, 3, 8, 9)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 9],
    ]  # fmt: skip
    assert context_bounds(2048, 128) == [128, 2048]
    assert context_bounds(163840, 2048) == [2048, 16384, 163840]
    assert context_bounds(131072) == [2048, 16384, 131072]
    assert context_bounds(200, 128) == [128, 200]
    assert context_bounds(128, 128) == context_bounds(128, 2048) == context_bounds(128) == [128]


def test_replayed_steps_write_the_same_text(plain: LLM) -> None:
    """Four requests of three kinds of length; padding in every batch but the last sizes."""
    prompts = [*PROMPTS[:3], LONG]
    params = [
        SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (24, 9, 30, 14)
    ]
    want = [out.token_ids for out in plain.generate(prompts, params)]
    recorder = FakeRecorder()
    with recorded(recorder) as llm:
        assert recorder.recorded == 4 * (2 + 2)  # 1, 2, 4, 5 requests; 128, 2048 tokens; 2 draws
        assert [out.token_ids for out in llm.generate(prompts, params)] == want
        assert recorder.replayed == 29  # all but the prompts' step
        # Other requests in the same rows: nothing of the last ones is left over.
        assert (
            llm.generate(PROMPTS[3], GREEDY)[0].token_ids
            == plain.generate(PROMPTS[3], GREEDY)[0].token_ids
        )


def test_a_text_that_outgrows_index_topk(plain: LLM) -> None:
    params = SamplingParams(max_tokens=140, temperature=0.0, ignore_eos=True)
    recorder = FakeRecorder()
    with recorded(recorder, max_requests=1) as llm:
        got = llm.generate(PROMPTS[0], params)[0].token_ids
    assert got == plain.generate(PROMPTS[0], params)[0].token_ids
    assert recorder.replayed == 139


def test_seeds_penalties_and_logprobs_are_the_same(plain: LLM) -> None:
    options = {"max_tokens": 12, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.8, top_p=0.9, seed=3, logprobs=2, **options),
        SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.3, **options),
        SamplingParams(temperature=0.0, logprobs=0, min_tokens=5, **options),
        SamplingParams(temperature=1.0, top_k=4, min_p=0.1, seed=5, logprobs=4, **options),
    ]
    want = plain.generate(PROMPTS, params)
    recorder = FakeRecorder()
    with recorded(recorder) as llm:
        for a, b in zip(llm.generate(PROMPTS, params), want, strict=True):
            assert a.token_ids == b.token_ids
            assert (a.logprobs is None) == (b.logprobs is None)
            for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
                assert [i for i, _ in x.top] == [i for i, _ in y.top]
                assert x.logprob == pytest.approx(y.logprob, abs=1e-4)
    assert recorder.replayed == 11


def test_draws_are_replayed_where_nothing_adjusts_the_logits(plain: LLM) -> None:
    options = {"max_tokens": 12, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.8, top_p=0.9, seed=3, **options),
        SamplingParams(temperature=1.0, seed=4, **options),
        SamplingParams(temperature=0.0, **options),
        SamplingParams(temperature=1.5, top_k=4, min_p=0.1, seed=5, **options),
    ]
    want = [out.token_ids for out in plain.generate(PROMPTS, params)]
    recorder = FakeRecorder()
    with recorded(recorder) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, params)] == want
        assert recorder.replayed == 11 * 2
        assert [out.token_ids for out in llm.generate(PROMPTS[1], params[1])] == want[1:2]
        assert recorder.replayed == 11 * 4
        llm.generate(PROMPTS[1], SamplingParams(logit_bias={5: 1.0}, seed=1, **options))
        assert recorder.replayed == 11 * 5


def test_preempted_requests_and_pages_that_move(plain: LLM) -> None:
    want = [out.token_ids for out in plain.generate(PROMPTS, GREEDY)]
    recorder = FakeRecorder()
    with recorded(recorder, page_size=8, num_pages=9) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == want
        assert llm.engine.stats().preemptions > 0
    assert recorder.replayed > 10


def test_more_requests_than_recorded_run_as_they_come(plain: LLM) -> None:
    want = [out.token_ids for out in plain.generate(PROMPTS, GREEDY)]
    recorder = FakeRecorder()
    with LLM("bard", num_pages=200, page_size=16) as llm:
        runner = llm.engine.runner
        assert isinstance(runner, ModelRunner)
        runner.record(recorder, max_requests=3, max_context=2048)
        assert [out.token_ids for out in llm.generate(PROMPTS, GREEDY)] == want
        assert recorder.replayed == 0


def test_what_cannot_be_recorded_is_logged(plain: LLM, caplog: pytest.LogCaptureFixture) -> None:
    want = plain.generate(PROMPTS[0], GREEDY)[0].token_ids
    recorder = FakeRecorder(fail_at=0)
    with recorded(recorder) as llm:
        assert recorder.recorded == 0
        (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert line == (
            "no CUDA graph of 5 decodes to 2048 tokens: RuntimeError: operation not permitted when "
            "stream is capturing"
        )
        assert llm.generate(PROMPTS[0], GREEDY)[0].token_ids == want
    caplog.clear()
    recorder = FakeRecorder(fail_at=1, error=torch.cuda.OutOfMemoryError)
    with recorded(recorder) as llm:  # another size may still fit
        assert recorder.recorded == 7 + 8
        (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert line == "no CUDA graph of 4 decodes to 2048 tokens: no memory left"
        assert [out.token_ids for out in llm.generate([PROMPTS[0]] * 4, GREEDY)] == [want] * 4
    assert recorder.replayed == 23


def test_recording_says_what_it_does() -> None:
    said: list[str] = []
    with LLM("bard", num_pages=20, max_requests=2) as llm:
        runner = llm.engine.runner
        assert isinstance(runner, ModelRunner)
        options = {"page_size": 64, "max_requests": 2, "max_context": 300}
        graphs = DecodeGraphs(
            runner.model, runner.caches, **options, device=torch.device("cpu"),
            recorder=FakeRecorder(), say=said.append,
        )  # fmt: skip
        graphs.record()
    first, last = said
    assert first == "recording 4 decode steps as CUDA graphs"
    assert last.startswith("recorded 4 decode steps in ")


def request(pages: list[int], length: int) -> Request:
    made = Request(0, range(100, 100 + length), GREEDY, limit=999)
    made.pages = pages
    return made


def test_inputs_are_what_the_batch_says() -> None:
    inputs = Inputs.allocate(3, 40, 16, torch.device("cpu"))
    batch = inputs.batch
    assert batch.max_query_len == 1 and batch.max_context_len == 40 and batch.num_requests == 3
    assert batch.query_start.tolist() == [0, 1, 2, 3] and batch.logit_rows.tolist() == [0, 1, 2]
    assert batch.slots.tolist() == [-1] * 3 and batch.context_lens.tolist() == [0] * 3
    assert batch.block_table.tolist() == [[-1] * 3] * 3
    a, b = request([7, 5, 9], 34), request([2], 9)
    inputs.fill([Work(a, 33, 1, True), Work(b, 8, 1, True)])
    assert batch.token_ids.tolist() == [133, 108, 0] and batch.positions.tolist() == [33, 8, 0]
    assert batch.slots.tolist() == [9 * 16 + 1, 2 * 16 + 8, -1]
    assert batch.context_lens.tolist() == [34, 9, 0]
    assert batch.block_table[0].tolist() == [7, 5, 9] and batch.block_table[1, 0] == 2
    b.pages = [4]  # its page was taken and another one given
    inputs.fill([Work(b, 8, 1, True)])
    assert batch.block_table[0, 0] == 4 and batch.slots.tolist() == [4 * 16 + 8, -1, -1]
    assert batch.context_lens.tolist() == [9, 0, 0]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("context", [1, 17, 2048])
def test_parts_of_the_buffer_do_not_touch(rows: int, context: int) -> None:
    inputs = Inputs.allocate(rows, context, 16, torch.device("cpu"))
    batch = inputs.batch
    parts = [batch.token_ids, batch.positions, batch.slots, batch.context_lens, batch.block_table]
    assert all(part.data_ptr() % 16 == inputs.buffer.device.data_ptr() % 16 for part in parts)
    for i, part in enumerate(parts):
        part.fill_(i)
    assert [part.unique().tolist() for part in parts] == [[i] for i in range(5)]
