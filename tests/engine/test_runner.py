"""The packaged model through the real engine: paging, sharing and preempting change no text."""

import pytest
import torch

from sparkwell import LLM, SamplingParams
from sparkwell.engine.request import Output
from sparkwell.errors import BadInput, Unsupported

GREEDY = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
PROMPTS = ["ROMEO.\n", "My lord, the queen hath", "In the beginning", "KING HENRY.\nOnce more"]
LONG = "Now is the winter of our discontent made glorious summer by this sun of York;\n" * 10


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("bard", num_pages=64)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[str]:
    return [llm.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]


def test_texts_are_distinct_and_not_empty(alone: list[str]) -> None:
    assert len(set(alone)) == len(PROMPTS) and all(len(text) > 20 for text in alone)


def test_together_equals_alone(llm: LLM, alone: list[str]) -> None:
    assert [c.text for c in llm.generate(PROMPTS, GREEDY)] == alone


def test_preempted_equals_alone(alone: list[str]) -> None:
    """Too few pages for all four at once: somebody is put off and computed again."""
    with LLM("bard", num_pages=9, page_size=8) as small:
        assert [c.text for c in small.generate(PROMPTS, GREEDY)] == alone
        stats = small.engine.stats()
    assert stats.preemptions > 0
    assert stats.pages_used == 0


def test_long_prompts_select_keys_and_share_pages(llm: LLM) -> None:
    """Past index_topk; chunked where the budget is small; a second asking finds the pages."""
    first = llm.generate(LONG, GREEDY)[0]
    assert first.prompt_tokens > 192 and first.cached_tokens == 0
    again = llm.generate(LONG, GREEDY)[0]
    assert again.cached_tokens >= 128 and again.token_ids == first.token_ids
    with LLM("bard", num_pages=64, max_batch_tokens=50, max_requests=4) as chunked:
        assert chunked.generate(LONG, GREEDY)[0].token_ids == first.token_ids


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_smaller_caches_write_much_the_same(kind: str, alone: list[str]) -> None:
    with LLM("bard", num_pages=32, kv_cache_dtype=kind) as small:
        texts = [c.text for c in small.generate(PROMPTS, GREEDY)]
    assert any(text[:8] == want[:8] for text, want in zip(texts, alone, strict=True))
    assert all(len(text) > 20 for text in texts)


def test_seeds_decide_samples(llm: LLM) -> None:
    def text(seed: int) -> str:
        params = SamplingParams(max_tokens=20, temperature=1.0, seed=seed, ignore_eos=True)
        return llm.generate(PROMPTS[0], params)[0].text

    assert text(1) == text(1) != text(2)


def test_min_tokens_keeps_the_end_away(llm: LLM) -> None:
    bias = dict.fromkeys(llm.tokenizer.eos_ids, 100.0)
    ended = SamplingParams(max_tokens=30, temperature=0.0, logit_bias=bias)
    kept = SamplingParams(max_tokens=30, temperature=0.0, logit_bias=bias, min_tokens=7)
    assert llm.generate(PROMPTS[0], ended)[0].finish_reason == "stop"
    assert len(llm.generate(PROMPTS[0], ended)[0].token_ids) == 1
    assert len(llm.generate(PROMPTS[0], kept)[0].token_ids) == 8


def test_logprobs_are_the_models(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=0.0, logprobs=3, ignore_eos=True)
    done = llm.generate(PROMPTS[0], params)[0]
    assert done.logprobs is not None and len(done.logprobs) == 5
    for entry, token in zip(done.logprobs, done.token_ids, strict=True):
        assert entry.token_id == token == entry.top[0][0]
        assert entry.logprob == pytest.approx(entry.top[0][1]) and entry.logprob < 0
        assert [p for _, p in entry.top] == sorted((p for _, p in entry.top), reverse=True)


def test_stream_adds_up(llm: LLM, alone: list[str]) -> None:
    outputs: list[Output] = list(llm.stream(PROMPTS[0], GREEDY))
    assert len(outputs) > 5 and "".join(o.text for o in outputs) == alone[0]


def test_chat_answers(llm: LLM) -> None:
    assert llm.chat([{"role": "user", "content": "Who art thou?"}], GREEDY).text


def test_refusals() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(
            Unsupported, match=r"gpu kernels: torch .* (without CUDA|no NVIDIA GPU)"
        ):
            LLM("bard", device="cuda")
    with pytest.raises(BadInput, match="device is 'tpu'; want auto, cpu, cuda or cuda:N"):
        LLM("bard", device="tpu")
    with pytest.raises(BadInput, match="kv cache dtype is 'int3'; want one of auto, fp32"):
        LLM("bard", kv_cache_dtype="int3")
    with pytest.raises(BadInput, match="number of cache pages is 0; want at least 1"):
        LLM("bard", num_pages=0)
    with pytest.raises(BadInput, match="page size is 0; want at least 1 token"):
        LLM("bard", page_size=0)
