"""The whole path: OpenAI's client, the server, the scheduler, the packaged model."""

import asyncio
from collections.abc import Iterator

import pytest
import torch

from server.running_server import Running, eventually, idle, running
from sparkwell.engine.llm import LLM
from sparkwell.engine.request import SamplingParams

PROMPT = "ROMEO.\n"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # its matrices are too small to split
    with LLM("bard", num_pages=64, page_size=16, max_requests=8) as made:
        yield made
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def served(llm: LLM) -> Iterator[Running]:
    with running(llm.engine, model_name="bard") as made:
        yield made


def test_the_server_writes_what_the_library_writes(llm: LLM, served: Running) -> None:
    params = SamplingParams(max_tokens=24, seed=3, temperature=0.9, top_p=0.95, logprobs=1)
    want = llm.generate(PROMPT, params)[0]
    got = served.client().completions.create(
        model="bard", prompt=PROMPT, max_tokens=24, seed=3, temperature=0.9, top_p=0.95, logprobs=1
    )
    choice = got.choices[0]
    assert choice.text == want.text and len(choice.text) > 20
    assert choice.finish_reason == want.finish_reason == "length"
    assert choice.logprobs.token_logprobs == pytest.approx([e.logprob for e in want.logprobs])
    ends = [*choice.logprobs.text_offset[1:], len(choice.text)]
    cut = [choice.text[a:b] for a, b in zip(choice.logprobs.text_offset, ends, strict=True)]
    assert cut == choice.logprobs.tokens
    assert all(p <= 0 for p in choice.logprobs.token_logprobs)


def test_chat(served: Running) -> None:
    messages = [{"role": "user", "content": "Who is there?"}]
    asked = {"model": "bard", "messages": messages, "seed": 1, "max_tokens": 16, "n": 2}
    whole = served.client().chat.completions.create(**asked)
    texts = ["", ""]
    for chunk in served.client().chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1] and whole.usage.completion_tokens <= 32


def test_requests_together_answer_as_alone(served: Running) -> None:
    """Forty at once, some left in the middle: an answer does not depend on its company."""
    client = served.client()
    asked = {"model": "bard", "max_tokens": 20, "temperature": 0.7, "seed": 11}
    names = ["ROMEO.\n", "KING.\n", "And the LORD", "It was a"]
    alone = [client.completions.create(prompt=p, **asked).choices[0].text for p in names]

    async def together() -> list[str | None]:
        many = served.async_client()

        async def one(i: int) -> str | None:
            stream = await many.completions.create(prompt=names[i % 4], stream=True, **asked)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].text
                if i % 3 == 0 and len(text) > 10:
                    await stream.close()
                    return None
            return text

        async with many:
            return await asyncio.gather(*(one(i) for i in range(40)))

    texts = asyncio.run(together())
    finished = [(i, text) for i, text in enumerate(texts) if text is not None]
    assert len(finished) == 26
    assert [text for _, text in finished] == [alone[i % 4] for i, _ in finished]
    eventually(lambda: idle(served.engine), "all pages are free")
    assert client.completions.create(prompt=names[0], **asked).choices[0].text == alone[0]
