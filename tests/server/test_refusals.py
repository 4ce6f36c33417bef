"""Every request the server refuses: the status, OpenAI's body, and a text that names the fault."""

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from server.running_server import (
    MODEL,
    Running,
    eventually,
    idle,
    make_engine,
    raw_post,
    read_all,
    running,
    spell,
)
from sparkwell.errors import BadInput
from sparkwell.server.limits import Limits

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    limits = Limits(max_body_bytes=20_000, body_seconds=0.5, max_prompt_chars=2_000)
    with running(make_engine(next_token=spell("ok")), limits=limits) as made:
        yield made
        assert idle(made.engine)
        assert made.engine.stats().prompt_tokens == 0, "a refused request reached the engine"


def refused(
    response: httpx.Response,
    status: int,
    text: str,
    *,
    param: str | None = None,
    code: str | None = None,
    kind: str = "invalid_request_error",
) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    error = body["error"]
    assert re.search(text, error["message"]), error["message"]
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)


VALUES: list[tuple[dict[str, Any], str]] = [  # for both endpoints; the param is the first key
    ({"temperature": -0.1}, "greater than or equal to 0; -0.1 came"),
    ({"temperature": 2.1}, "less than or equal to 2"),
    ({"temperature": "warm"}, "valid number; 'warm' came"),
    ({"temperature": True}, "valid number; True came"),
    ({"top_p": 0}, "greater than 0"),
    ({"top_p": 1.5}, "less than or equal to 1"),
    ({"top_k": -2}, "greater than or equal to -1"),
    ({"min_p": 1.1}, "less than or equal to 1"),
    ({"presence_penalty": 2.5}, "less than or equal to 2"),
    ({"frequency_penalty": -2.5}, "greater than or equal to -2"),
    ({"repetition_penalty": 0}, "greater than 0"),
    ({"max_tokens": 0}, "greater than or equal to 1"),
    ({"max_tokens": 1.5}, "valid integer"),
    ({"min_tokens": -1}, "greater than or equal to 0"),
    ({"n": 0}, "greater than or equal to 1"),
    ({"n": 129}, "less than or equal to 128"),
    ({"seed": 2**63}, "less than 9223372036854775808"),
    ({"seed": "1"}, "valid integer"),
    ({"stop": 5}, "valid string or .*valid list; 5 came"),
    ({"stop": ["a", 5]}, r"at \[1\]: .*valid string"),
    ({"stop": ["a"] * 17}, "17 texts came, want at most 16"),
    ({"stop": ["a", ""]}, "empty text came"),
    ({"stop_token_ids": ["a"]}, "valid integer"),
    ({"logit_bias": {"x": 1}}, "key 'x' came, want token ids from 0 to 260"),
    ({"logit_bias": {"261": 1}}, "key '261' came"),
    ({"logit_bias": {"-1": 1}}, "key '-1' came"),
    ({"logit_bias": {"5": 101}}, "less than or equal to 100"),
    ({"stream_options": {"include_usage": True}}, "came without stream"),
    ({"stream_options": {"other": 1}, "stream": True}, "not permitted"),
    ({"stream": "yes"}, "valid boolean"),
    ({"model": 5}, "valid string"),
]


@pytest.mark.parametrize(("fields", "text"), VALUES, ids=lambda v: str(v)[:40])
def test_values_out_of_range(served: Running, fields: dict[str, Any], text: str) -> None:
    name = next(iter(fields))
    for response in (served.chat(**fields), served.complete(**fields)):
        refused(response, 400, f"^{name}: .*{text}", param=name, code="invalid_value")


UNSERVED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "audio": {"voice": "alloy"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "store": True,
    "web_search_options": {},
    "suffix": "end",
    "best_of": 3,
}


@pytest.mark.parametrize("name", UNSERVED)
def test_what_is_not_served_is_refused_by_name(served: Running, name: str) -> None:
    for response in (served.chat(**{name: UNSERVED[name]}), served.complete(**{name: 3})):
        text = f"^{name}: is not supported"
        refused(response, 400, text, param=name, code="unsupported_parameter")


def test_unknown_fields_are_refused_by_name(served: Running) -> None:
    refused(served.chat(max_token=3), 400, "^max_token: no such", param="max_token",
            code="unknown_parameter")  # fmt: skip
    refused(served.complete(messages=USER), 400, "^messages: no such", param="messages",
            code="unknown_parameter")  # fmt: skip


def test_missing_fields(served: Running) -> None:
    for path, body, name in (
        ("chat/completions", {"messages": USER}, "model"),
        ("chat/completions", {"model": MODEL}, "messages"),
        ("completions", {"model": MODEL}, "prompt"),
        ("completions", {"model": None, "prompt": "a"}, "model"),
    ):
        response = served.post(f"/v1/{path}", body)
        refused(response, 400, f"^{name}: is missing", param=name,
                code="missing_required_parameter")  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "where", "text"),
    [
        ([], "messages", "at least 1 item"),
        ("hi", "messages", "valid list"),
        (["hi"], "messages", r"at \[0\]: .*dictionary"),
        ([{"content": "a"}], "messages[0].role", "None came, want one of system, developer"),
        ([{"role": "tool", "content": "a"}], "messages[0].role", "'tool' came"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "came"),
        ([*USER, {"role": "user"}], "messages[1].content", "None came, want a text"),
        ([{"role": "user", "content": 5}], "messages[0].content", "5 came"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
            "'image_url' came; only text parts",
        ),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0].type", "None came"),
        (
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            "messages[0].content[0].text",
            "5 came, want a text",
        ),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}],
            "messages[0].tool_calls",
            "is not supported",
        ),
        ([{"role": "user", "content": "a", "extra": 1}], "messages[0].extra", "not supported"),
        ([{"role": "user", "content": "a", "name": 1}], "messages[0].name", "not supported"),
    ],
)
def test_messages(served: Running, messages: object, where: str, text: str) -> None:
    refused(served.chat(messages=messages), 400, text, param=where, code="invalid_value")


def test_what_the_template_refuses(served: Running) -> None:
    response = served.chat(messages=[{"role": "developer", "content": "a"}])
    refused(response, 400, "template refuses these messages: who is system", code="invalid_value")


def test_a_model_without_a_chat_template() -> None:
    with running(make_engine(template=False)) as bare:
        refused(bare.chat(), 400, "no chat template", code="invalid_value")
        assert bare.complete().status_code == 200


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "is empty"),
        ([], "is an empty list"),
        (["a", ""], "is empty"),
        ([[]], "is empty"),
        ([5, 261], "token 261 came, want token ids from 0 to 260"),
        ([-1], "token -1 came"),
        ([[5], [10**12]], "token 1000000000000 came"),
        (5, "5 came"),
        ([1, "a"], r"at \[1\]"),
        ([True], "came"),
        (["a"] * 65, "65 prompts x n = 2 came, want at most 128"),
    ],
)
def test_prompts(served: Running, prompt: object, text: str) -> None:
    response = served.complete(prompt=prompt, n=2)
    refused(response, 400, f"^prompt: .*{text}", param="prompt", code="invalid_value")


def test_rules_between_fields(served: Running) -> None:
    for response, name, text in (
        (served.chat(max_tokens=3, max_completion_tokens=4), "max_tokens", "send one of them"),
        (served.chat(top_logprobs=2), "top_logprobs", "came without logprobs"),
        (served.chat(logprobs=True, top_logprobs=21), "top_logprobs", "less than or equal to 20"),
        (served.chat(logprobs=3), "logprobs", "valid boolean"),
        (served.complete(logprobs=6), "logprobs", "less than or equal to 5"),
        (served.complete(logprobs=True), "logprobs", "valid integer"),
        (served.complete(logprobs=0, echo=True), "echo", "log-probabilities are not computed"),
    ):
        refused(response, 400, f"^{name}: .*{text}", param=name, code="invalid_value")
    short = served.chat(min_tokens=5)
    refused(short, 400, "min_tokens is 5, want at most max_tokens = 4", code="invalid_value")


def test_too_long_for_the_context(served: Running) -> None:
    code = "context_length_exceeded"
    text = "^prompt: 250 tokens of prompt and 7 tokens of output do not fit.*256 tokens together"
    refused(served.complete(prompt="x" * 250, max_tokens=7), 400, text, param="prompt", code=code)
    exact = served.complete(prompt="x" * 250, max_tokens=7, temperature=9)
    assert "temperature" in exact.json()["error"]["message"]  # ranges come first, unlike lengths
    messages = [{"role": "user", "content": "x" * 254}]
    text = "^messages: 256 tokens of prompt and room for an answer do not fit"
    body = {"model": MODEL, "messages": messages}
    refused(served.post("/v1/chat/completions", body), 400, text, param="messages", code=code)
    text = "^prompt: 2001 characters came, want at most 2000"
    refused(served.complete(prompt="x" * 2001), 400, text, param="prompt", code=code)
    messages = [{"role": "user", "content": "x" * 1000}, {"role": "user", "content": "x" * 1001}]
    text = "^messages: 2001 characters"
    refused(served.chat(messages=messages), 400, text, param="messages", code=code)


def test_the_longest_that_fits_is_served() -> None:
    with running(make_engine(next_token=lambda history: 5, max_context=32)) as made:
        assert made.complete(prompt="x" * 30, max_tokens=2).status_code == 200
        assert made.complete(prompt="x" * 31, max_tokens=2).status_code == 400


def test_too_long_for_the_cache() -> None:
    with running(make_engine(num_pages=4)) as made:
        text = "17 tokens together"  # 16 places; the last token's entry is never needed
        refused(made.complete(prompt="x" * 14, max_tokens=4), 400, text, param="prompt",
                code="context_length_exceeded")  # fmt: skip
        assert made.complete(prompt="x" * 14, max_tokens=3).status_code == 200
        assert made.get("/v1/models").json()["data"][0]["max_model_len"] == 17


def test_the_default_bound_on_characters_follows_the_context() -> None:
    with running(make_engine(max_context=10)) as made:
        fits, over = (made.complete(prompt="x" * n) for n in (640, 641))
        assert "tokens of prompt" in fits.json()["error"]["message"]
        assert "641 characters came, want at most 640" in over.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is not JSON: EOF"),
        (b"{", "the body is not JSON"),
        (b'{"temperature": NaN}', "the body is not JSON"),
        (b'{"model": "\xff"}', "the body is not JSON"),
        (b'{"model": "\\ud800"}', "the body is not JSON"),
        (b"[" * 5_000, "the body is not JSON"),
        (b"[]", "the body is a JSON list, want an object"),
        (b"null", "NoneType, want an object"),
    ],
    ids=lambda v: v[:20] if isinstance(v, bytes) else "",
)
def test_bodies_that_are_not_json_objects(served: Running, body: bytes, text: str) -> None:
    refused(served.post("/v1/completions", body), 400, text, code="invalid_json")


def test_infinity_by_a_large_exponent(served: Running) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a"}).encode()[:-1] + b', "min_p": 1e999}'
    response = served.post("/v1/completions", body)
    refused(response, 400, "^min_p: .*finite", param="min_p", code="invalid_value")


def test_content_types(served: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        response = served.post("/v1/completions", {}, headers={"Content-Type": kind})
        refused(response, 415, f"{kind} came, want application/json",
                code="unsupported_media_type")  # fmt: skip
    response = served.post("/v1/completions", {}, headers={"Content-Encoding": "gzip"})
    refused(response, 415, "gzip came", code="unsupported_media_type")
    good = served.post(
        "/v1/completions", {}, headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert good.status_code == 400  # got as far as the fields


def test_bodies_too_large(served: Running) -> None:
    text = "too large, want at most 20000 bytes"
    response = served.complete(prompt="x" * 20_000)
    refused(response, 413, text, code="body_too_large")

    def chunks(count: int) -> Iterator[bytes]:
        for _ in range(count):
            time.sleep(0.002)  # or they would arrive as one
            yield b"x" * 1000

    for count in (21, 60):  # without a content-length, within and beyond what is read and dropped
        response = httpx.post(
            served.url + "/v1/completions",
            content=chunks(count),
            headers={"Content-Type": "application/json"},
            timeout=20,
        )
        refused(response, 413, text, code="body_too_large")
    assert served.complete(prompt="x" * 1900, max_tokens=1).status_code == 400  # not by its size


def test_a_polite_client_is_told_before_it_sends(served: Running) -> None:
    with raw_post(
        served.port, "/v1/completions", b"", length=10**9, extra="Expect: 100-continue\r\n"
    ) as connection:
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_never_arrives(served: Running) -> None:
    with raw_post(served.port, "/v1/completions", b'{"mod', length=100) as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.5 s" in answer


def test_routes_and_methods(served: Running) -> None:
    refused(served.get("/v1/nothing"), 404, "no such route: /v1/nothing", kind="not_found_error")
    refused(served.get("/"), 404, "no such route: /", kind="not_found_error")
    refused(served.get("/docs"), 404, "no such route", kind="not_found_error")
    response = served.get("/v1/completions")
    refused(response, 405, "/v1/completions does not take GET; use POST")
    assert response.headers["allow"] == "POST"
    refused(served.post("/health", {}), 405, "use GET")


def test_models(served: Running) -> None:
    client = served.client()
    (model,) = client.models.list().data
    assert model.id == MODEL and model.owned_by == "sparkwell" and model.object == "model"
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'other/model' is not served here"):
        client.models.retrieve("other/model")
    for response in (served.chat(model="gpt-4"), served.complete(model="gpt-4")):
        refused(response, 404, "'gpt-4' is not served here; 'fake/echo' is", param="model",
                code="model_not_found", kind="not_found_error")  # fmt: skip


def test_the_client_raises_its_own_exceptions(served: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=MODEL, messages=USER, n=1000)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")


def test_keys() -> None:
    with running(make_engine(next_token=spell("ok")), api_key="sesame-ß") as made:
        refusal = {"code": "invalid_api_key", "kind": "authentication_error"}
        keys = ["", "Bearer", "Bearer wrong", "Bearer sesame-s", "Basic sesame-ß", "Bearer é"]
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/metrics"):
            for key in keys:
                response = made.get(path, headers={"Authorization": key.encode()})
                refused(response, 401, "API key is missing or wrong", **refusal)
                assert response.headers["www-authenticate"] == "Bearer"
        refused(made.chat(), 401, "API key", **refusal)
        refused(made.complete(prompt=5), 401, "API key", **refusal)  # before anything is read
        assert made.get("/health").json() == {"status": "ok"}
        good = {"Authorization": "bearer sesame-ß".encode()}
        assert made.get("/metrics", headers=good).status_code == 200
        assert made.get("/v1/models", headers=good).status_code == 200
    with running(make_engine(next_token=spell("ok")), api_key="sesame") as made:
        assert made.client().models.list().data[0].id == MODEL
        assert made.client().completions.create(model=MODEL, prompt=":").choices[0].text == "ok"


def test_a_full_queue() -> None:
    engine = make_engine(
        next_token=spell("a", end=False), delay=0.05, max_waiting=2, max_requests=1
    )
    with running(engine) as made, made.client() as client:
        asked = {"model": MODEL, "prompt": "a:", "stream": True, "max_tokens": 200}
        open_streams = [client.completions.create(**asked)]
        eventually(lambda: engine.stats().running == 1, "the first runs")
        response = made.complete(n=4)
        refused(response, 429, "2 requests are waiting, which is the limit",
                code="queue_full", kind="rate_limit_error")  # fmt: skip
        assert response.headers["retry-after"] == "1"
        # the choices that had found a place in the queue left it with the others
        eventually(lambda: engine.stats().waiting == 0, "the queue is empty")
        for stream in open_streams:
            stream.close()
        eventually(lambda: idle(engine), "all pages are free")


def test_a_runner_that_fails() -> None:
    engine = make_engine(next_token=spell("abc", end=False), fail_on=(0, 4))
    failure = "the model failed: RuntimeError: step"
    with running(engine) as made:
        refused(made.chat(), 500, f"{failure} 0", code="generation_failed", kind="server_error")
        client = made.client()
        texts = []
        with pytest.raises(openai.APIError, match=f"{failure} 4"):
            for chunk in client.completions.create(model=MODEL, prompt=":", stream=True):
                texts.append(chunk.choices[0].text)
        assert "".join(texts) == "abc"
        assert made.complete(prompt=":").json()["choices"][0]["text"] == "abca"
        eventually(lambda: idle(engine), "all pages are free")


def test_an_error_nobody_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    with running(engine) as made:
        monkeypatch.setattr(engine.tokenizer, "encode", lambda text: 1 / 0)
        refused(made.complete(), 500, "^internal error", kind="server_error")
        monkeypatch.undo()
        assert made.complete().status_code == 200


def test_limits_that_let_nothing_in() -> None:
    for name in ("max_body_bytes", "body_seconds", "max_prompt_chars"):
        with pytest.raises(BadInput, match=f"{name} is 0, want more than 0"):
            Limits(**{name: 0})


def test_a_client_that_speaks_no_http(served: Running) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert served.get("/health").status_code == 200
