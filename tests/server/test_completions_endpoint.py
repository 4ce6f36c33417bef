"""POST /v1/completions through OpenAI's client."""

from collections.abc import Iterator

import pytest

from server.running_server import MODEL, Running, make_engine, running, spell

TEXT = "né the end"


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(make_engine(next_token=spell(TEXT))) as made:
        yield made


@pytest.fixture(scope="module")
def drawing() -> Iterator[Running]:
    with running(make_engine()) as made:
        yield made


def test_an_answer_has_every_field(served: Running) -> None:
    answer = served.client().completions.create(model=MODEL, prompt="x:", max_tokens=50)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].logprobs is None
    assert answer.object == "text_completion" and answer.model == MODEL
    assert answer.id.startswith("cmpl-") and answer.system_fingerprint.startswith("sparkwell-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 10)


def test_sixteen_tokens_unless_asked_otherwise(drawing: Running) -> None:
    body = drawing.post("/v1/completions", {"model": MODEL, "prompt": "a"}).json()
    assert body["usage"]["completion_tokens"] == 16


def test_the_four_kinds_of_prompt(drawing: Running) -> None:
    encode = drawing.engine.tokenizer.encode

    def texts(prompt: object) -> list[str]:
        body = drawing.complete(prompt=prompt, temperature=0).json()
        assert [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))
        return [choice["text"] for choice in body["choices"]]

    (one,), (two,) = texts("one"), texts("number two")
    assert one != two
    assert texts(["one", "number two"]) == [one, two]
    assert texts(encode("one")) == [one]
    assert texts([encode("one"), encode("number two")]) == [one, two]


def test_choices_stand_behind_one_another_by_prompt(drawing: Running) -> None:
    def texts(**fields: object) -> list[str]:
        return [c["text"] for c in drawing.complete(seed=3, **fields).json()["choices"]]

    both = texts(prompt=["a", "b"], n=2)
    assert both == texts(prompt="a", n=2) + texts(prompt="b", n=2)
    assert len(set(both)) == 4
    usage = drawing.complete(prompt=["aa", "b"], n=2, max_tokens=3).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 12)


def test_echo_puts_the_prompt_before_each_text(served: Running) -> None:
    ids = served.engine.tokenizer.encode("z:")
    for prompt, shown in ((["x:", "yy:"], ["x:", "yy:"]), (ids, ["z:"]), ([ids, ids], ["z:"] * 2)):
        body = served.complete(prompt=prompt, echo=True, n=2, max_tokens=50).json()
        want = [text + TEXT for text in shown for _ in range(2)]
        assert [choice["text"] for choice in body["choices"]] == want
    stream = served.client().completions.create(
        model=MODEL, prompt="x:", echo=True, stream=True, max_tokens=50
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == "x:" + TEXT


def test_logprobs(served: Running) -> None:
    answer = served.client().completions.create(
        model=MODEL, prompt="x:", logprobs=2, max_tokens=50, echo=False
    )
    got = answer.choices[0].logprobs
    accent = served.engine.tokenizer.encode("é")
    names = [f"token_id:{token}" for token in accent]
    assert got.tokens == ["n", *names, " ", "the", " ", "e", "n", "d", "token_id:258"]
    assert got.text_offset == [0, 1, 1, 2, 3, 6, 7, 8, 9, 10]
    assert got.token_logprobs == [-0.5] * 10
    assert got.top_logprobs[0] == {"n": -0.5, "o": -1.5}
    assert len(got.top_logprobs[1]) == 2
    zero = served.complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert zero["top_logprobs"] is None and len(zero["tokens"]) == 4


def test_streamed_logprobs_are_the_same(served: Running) -> None:
    asked = {"model": MODEL, "prompt": ["x:", "y:"], "logprobs": 1, "max_tokens": 50}
    whole = served.client().completions.create(**asked)
    tokens: list[list[str]] = [[], []]
    offsets: list[list[int]] = [[], []]
    texts = ["", ""]
    reasons = []
    for chunk in served.client().completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens
        offsets[choice.index] += choice.logprobs.text_offset
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert reasons == ["stop", "stop"]


def test_stream_usage(served: Running) -> None:
    chunks = list(
        served.client().completions.create(
            model=MODEL, prompt="x:", stream=True, stream_options={"include_usage": True}, n=2
        )
    )
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 20, 22)
    assert all(chunk.usage is None for chunk in chunks[:-1])
