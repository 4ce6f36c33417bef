"""The packaged model on a GPU writes what the CPU reference writes, as other targets' code too."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from sparkwell import LLM, SamplingParams
from sparkwell.verify.retarget import retargeted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PROMPTS = [
    "ROMEO.\nBut, soft! what light",
    "It was the best of times, it was",
    "Call me Ishmael. Some years ago",
    "KING.\nNow is the winter",
]
GREEDY = SamplingParams(temperature=0, max_tokens=200)  # past index_topk: keys are selected
CACHES = ["fp32", "bf16", "fp8"]


def written(device: str, cache: str) -> list[list[int]]:
    settings = {"dtype": "float32", "kv_cache_dtype": cache, "num_pages": 256, "max_requests": 4}
    with LLM("bard", device=device, **settings) as llm:  # type: ignore[arg-type]
        return [list(out.token_ids) for out in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture(scope="module", params=CACHES)
def by_the_cpu(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[list[int]]]]:
    yield request.param, written("cpu", request.param)


@pytest.mark.parametrize("target", ["its own", "sm_80", "sm_89", "sm_121"])
def test_the_text_is_the_references(by_the_cpu: tuple[str, list[list[int]]], target: str) -> None:
    cache, want = by_the_cpu
    with nullcontext() if target == "its own" else retargeted(target):
        got = written("cuda", cache)
    differ = [prompt for prompt, a, b in zip(PROMPTS, got, want, strict=True) if a != b]
    assert not differ, f"{cache} as {target}: another text after {differ}"


def test_auto_takes_the_gpu() -> None:
    with LLM("bard", num_pages=64) as llm:
        assert llm.generate(["To be"], SamplingParams(temperature=0, max_tokens=4))[0].token_ids
        assert torch.cuda.memory_allocated() > 0
