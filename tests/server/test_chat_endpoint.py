"""POST /v1/chat/completions through OpenAI's client."""

import json
from collections.abc import Iterator

import httpx
import pytest

from server.running_server import MODEL, Running, idle, make_engine, running, spell

TEXT = "the wörld, a stage"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(make_engine(next_token=spell(TEXT))) as made:
        yield made


@pytest.fixture(scope="module")
def drawing() -> Iterator[Running]:
    """Draws pseudo-random tokens that depend on history and seed."""
    with running(make_engine()) as made:
        yield made


def test_an_answer_has_every_field(served: Running) -> None:
    answer = served.client().chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.id.startswith("chatcmpl-") and answer.system_fingerprint.startswith("sparkwell-")
    assert answer.created > 1_700_000_000
    usage = answer.usage
    # <|user|> h i <|assistant|>; the text is 18 characters, "the" one token, ö two, the end one
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 18, 22)
    assert idle(served.engine)


def test_null_means_the_default(served: Running) -> None:
    nulls = dict.fromkeys(["temperature", "stop", "n", "tools", "logit_bias", "max_tokens", "user"])
    answer = served.chat(**nulls)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_fields_that_ask_for_nothing_pass(served: Running) -> None:
    answer = served.chat(
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        store=False,
        modalities=["text"],
        user="somebody",
        metadata={"a": "b"},
        top_k=-1,
        best_of=1,
    )
    assert answer.status_code == 200


def test_max_tokens_by_both_names(served: Running) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = served.post(
            "/v1/chat/completions", {"model": MODEL, "messages": USER, name: 3}
        ).json()
        assert answer["choices"][0]["message"]["content"] == "the w"[:5]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 3


def test_without_max_tokens_the_context_is_the_limit() -> None:
    with running(make_engine(next_token=spell("abc", end=False), max_context=20)) as served:
        answer = served.client().chat.completions.create(model=MODEL, messages=USER)
    assert answer.usage.total_tokens == 20
    assert answer.choices[0].finish_reason == "length"


def test_messages_reach_the_template_in_order(drawing: Running) -> None:
    """The fake runner draws from the whole history, so equal answers mean equal prompts."""

    def answer(messages: list[dict[str, object]]) -> tuple[str, int]:
        body = drawing.chat(messages=messages, temperature=0).json()
        return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]

    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    history = [{"role": "assistant", "content": "yo", "refusal": None, "tool_calls": None}]
    assert answer([{"role": "user", "content": parts}]) == answer(USER)
    assert answer([*history, *USER]) != answer(USER)
    assert answer([*history, *USER])[1] == 7  # each message is its mark and its letters
    assert answer([*USER, *history]) != answer([*history, *USER])


def test_stop_texts_end_the_answer_and_are_cut(served: Running) -> None:
    for stop, want in (("w", "the "), ([",", "ld"], "the wör"), (["zz"], TEXT)):
        body = served.chat(stop=stop, max_tokens=50).json()
        assert body["choices"][0]["message"]["content"] == want
        assert body["choices"][0]["finish_reason"] == "stop"
    kept = served.chat(stop="w", max_tokens=50, include_stop_str_in_output=True).json()
    assert kept["choices"][0]["message"]["content"] == "the w"


def test_min_tokens_and_ignore_eos_write_past_the_end(served: Running) -> None:
    for fields, reason in (({"min_tokens": 20}, "stop"), ({"ignore_eos": True}, "length")):
        body = served.chat(max_tokens=20, **fields).json()
        assert body["usage"]["completion_tokens"] == 20
        assert body["choices"][0]["finish_reason"] == reason


def test_stop_token_ids(served: Running) -> None:
    w = served.engine.tokenizer.encode("w")
    body = served.chat(max_tokens=20, stop_token_ids=w).json()
    assert body["choices"][0]["message"]["content"] == "the "


def test_each_choice_draws_with_its_own_seed(drawing: Running) -> None:
    client = drawing.client()

    def texts(seed: int | None, n: int, stream: bool = False) -> list[str]:
        asked = {"model": MODEL, "messages": USER, "seed": seed, "n": n, "max_tokens": 6}
        if not stream:
            answer = client.chat.completions.create(**asked)
            assert [choice.index for choice in answer.choices] == list(range(n))
            assert answer.usage.prompt_tokens == 4 and answer.usage.completion_tokens == 6 * n
            return [choice.message.content for choice in answer.choices]
        out = [""] * n
        for chunk in client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                out[choice.index] += choice.delta.content or ""
        return out

    three = texts(7, 3)
    assert len(set(three)) == 3
    assert texts(7, 3, stream=True) == three
    assert texts(8, 2) == three[1:]  # choice i draws with seed + i
    assert texts(-(2**63), 1) == texts(-(2**63), 1)
    assert texts(None, 1) != texts(None, 1)


def test_the_largest_seed_wraps(drawing: Running) -> None:
    first, second = (
        drawing.chat(seed=seed, n=2).json()["choices"] for seed in (2**63 - 1, -(2**63))
    )
    assert first[1]["message"] == second[0]["message"]


def test_cached_tokens_of_a_repeated_prompt(drawing: Running) -> None:
    long = [{"role": "user", "content": "a prompt that fills several pages"}]
    details = [
        drawing.chat(messages=long, n=2).json()["usage"]["prompt_tokens_details"] for _ in range(2)
    ]
    assert details[0] == {"cached_tokens": 0}
    assert details[1] == {"cached_tokens": 32}  # 34 tokens: 8 full pages, shared; counted once


def test_logprobs(served: Running) -> None:
    answer = served.client().chat.completions.create(
        model=MODEL, messages=USER, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 18
    assert [entry.token for entry in content[:3]] == ["the", " ", "w"]
    assert content[0].bytes == [116, 104, 101] and content[0].logprob == -0.5
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]
    o, umlaut = served.engine.tokenizer.encode("ö")
    assert [entry.token for entry in content[3:5]] == [f"token_id:{o}", f"token_id:{umlaut}"]
    assert content[3].bytes is None
    assert content[-1].token == "token_id:258"  # the end: drawn, but no text
    without = served.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in without] == [[]] * 4
    assert served.chat(logprobs=False).json()["choices"][0]["logprobs"] is None


def test_a_stream_adds_up_to_the_answer(served: Running) -> None:
    chunks = list(
        served.client().chat.completions.create(
            model=MODEL,
            messages=USER,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    body = [chunk.choices[0] for chunk in chunks[1:-2]]
    assert "".join(choice.delta.content for choice in body) == TEXT
    assert all("\ufffd" not in choice.delta.content for choice in body)
    assert sum(len(choice.logprobs.content) for choice in body) == 18
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 18 and chunks[-1].usage.prompt_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def events(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    rows = response.text.removesuffix("\n\n").split("\n\n")
    assert all(row.startswith("data: ") and "\n" not in row for row in rows)
    return [row.removeprefix("data: ") for row in rows]


def test_a_stream_byte_by_byte(served: Running) -> None:
    rows = events(served.chat(stream=True, max_tokens=3))
    assert rows[-1] == "[DONE]"
    chunks = [json.loads(row) for row in rows[:-1]]
    assert all("usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1:] == [{"content": "the"}, {"content": " "}, {"content": "w"}, {}]
    with_usage = events(
        served.chat(stream=True, max_tokens=3, stream_options={"include_usage": True})
    )
    counted = [json.loads(row)["usage"] for row in with_usage[:-1]]
    assert counted[:-1] == [None] * (len(counted) - 1)
    assert counted[-1]["total_tokens"] == 7


def test_text_arrives_before_the_answer_is_complete() -> None:
    with (
        running(make_engine(next_token=spell("a", end=False), delay=0.02)) as served,
        served.client().chat.completions.create(
            model=MODEL, messages=USER, max_tokens=200, stream=True
        ) as stream,
    ):
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert served.engine.stats().running == 1
        assert served.engine.stats().generated_tokens < 100
