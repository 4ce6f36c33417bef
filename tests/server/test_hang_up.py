"""Clients that leave, servers that stop, and both at once in numbers."""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest
from openai import AsyncStream
from openai.types import Completion

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
from sparkwell.engine.core import Engine
from sparkwell.errors import BadInput
from sparkwell.server.serve import is_loopback, listen

ENDLESS = {"model": MODEL, "prompt": "go:", "max_tokens": 200}


def slow_engine(**kwargs: int) -> Engine:
    return make_engine(next_token=spell("abc", end=False), delay=0.02, **kwargs)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_hangs_up_frees_its_pages(stream: bool, n: int) -> None:
    engine = slow_engine()
    with running(engine) as served:
        body = json.dumps(ENDLESS | {"stream": stream, "n": n}).encode()
        connection = raw_post(served.port, "/v1/completions", body)
        eventually(lambda: engine.stats().running == n, "all choices run")
        assert engine.stats().pages_used >= n
        if stream:
            connection.recv(100)
        connection.close()
        eventually(lambda: idle(engine), "all pages are free")
        assert engine.stats().finished == {"cancelled": n}
        assert engine.stats().generated_tokens < 200 * n
        assert served.complete(prompt=":").json()["choices"][0]["text"] == "abca"


def test_a_client_that_hangs_up_while_it_waits() -> None:
    engine = slow_engine(max_requests=1)
    with running(engine) as served:
        first = raw_post(served.port, "/v1/completions", json.dumps(ENDLESS).encode())
        eventually(lambda: engine.stats().running == 1, "one runs")
        second = raw_post(served.port, "/v1/completions", json.dumps(ENDLESS).encode())
        eventually(lambda: engine.stats().waiting == 1, "one waits")
        second.close()
        eventually(lambda: engine.stats().waiting == 0, "none waits")
        assert engine.stats().running == 1
        first.close()
        eventually(lambda: idle(engine), "all pages are free")


def test_a_client_that_hangs_up_in_the_middle_of_its_body() -> None:
    engine = slow_engine()
    with running(engine) as served:
        raw_post(served.port, "/v1/completions", b'{"model"', length=1000).close()
        eventually(lambda: '"/v1/completions",status="499"' in served.get("/metrics").text, "499")
        assert engine.stats().prompt_tokens == 0


def test_a_client_that_never_reads_holds_up_nobody() -> None:
    engine = make_engine(next_token=spell("abc", end=False), max_context=2000, num_pages=4000)
    with running(engine) as served:
        body = json.dumps(ENDLESS | {"stream": True, "max_tokens": 1900, "n": 4}).encode()
        with raw_post(served.port, "/v1/completions", body):
            eventually(lambda: engine.stats().generated_tokens == 4 * 1900, "computed to the end")
            assert served.complete(prompt=":").json()["choices"][0]["text"] == "abca"
        eventually(lambda: idle(engine), "all pages are free")


def begin_stop(served: Running) -> None:
    served.server.should_exit = True
    eventually(lambda: served.server._lifecycle.draining, "the server begins to stop")


def test_a_stopping_server_finishes_what_runs() -> None:
    engine = slow_engine()
    with running(engine, shutdown_timeout=10) as served, served.client() as client:
        texts: list[str] = []
        bodies: list[httpx.Response] = []
        stream = client.completions.create(**ENDLESS | {"max_tokens": 40}, stream=True)
        texts.append(next(stream).choices[0].text)
        whole = threading.Thread(
            target=lambda: bodies.append(served.complete(prompt="x:", max_tokens=40))
        )
        whole.start()
        eventually(lambda: engine.stats().running == 2, "both run")
        begin_stop(served)
        eventually(lambda: not accepts(served.port), "no connection is taken")
        texts += [chunk.choices[0].text for chunk in stream]
        assert "".join(texts) == ("abc" * 14)[:40]
        whole.join()
        assert bodies[0].json()["choices"][0]["text"] == ("abc" * 14)[:40]
        served.stop()
    assert engine.stats().finished == {"length": 2}


def accepts(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.ConnectError:
        return False


def test_a_stopping_server_ends_what_takes_too_long() -> None:
    engine = slow_engine()
    with running(engine, shutdown_timeout=0.3) as served:
        body = json.dumps(ENDLESS).encode()
        whole = raw_post(served.port, "/v1/completions", body)
        client = served.client()
        stream = client.completions.create(**ENDLESS, stream=True)
        next(stream)
        eventually(lambda: engine.stats().running == 2, "both run")
        start = time.monotonic()
        begin_stop(served)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)
        answer = read_all(whole)
        assert answer.startswith(b"HTTP/1.1 503") and b'"code":"shutting_down"' in answer
        assert b"retry-after: 1" in answer.lower()
        served.stop()
        assert time.monotonic() - start < 3
        eventually(lambda: idle(engine), "all pages are free")
        assert engine.stats().finished == {"cancelled": 2}


def test_a_draining_server_takes_no_new_work() -> None:
    engine = slow_engine()
    with running(engine) as served:
        served.server._lifecycle.draining = True
        for response in (served.complete(), served.chat(), served.get("/health")):
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "service_unavailable_error"
            assert response.json()["error"]["code"] == "shutting_down"
        assert served.get("/metrics").status_code == 200
        served.server._lifecycle.draining = False
        engine.shutdown(drain=False)  # an engine that has closed says the same
        assert served.complete().json()["error"]["code"] == "shutting_down"


def test_an_engine_that_closes_ends_what_runs_with_503() -> None:
    engine = slow_engine()
    with running(engine) as served:
        connection = raw_post(served.port, "/v1/completions", json.dumps(ENDLESS).encode())
        eventually(lambda: engine.stats().generated_tokens > 2, "it runs")
        engine.shutdown(drain=False)
        assert connection.recv(65536).startswith(b"HTTP/1.1 503")
        connection.close()
        assert served.metric("sparkwell_e2e_request_latency_seconds_count") == 0


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1 port {port}: .*in use"):
            listen("127.0.0.1", port)
    with pytest.raises(BadInput, match="port 70000"):
        listen("127.0.0.1", 70000)
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [
        True
    ] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example")] == [False] * 4


async def _load(served: Running, streams: int) -> tuple[list[str], int]:
    """Texts of the streams that were read to the end; how many were left in the middle."""
    client = served.async_client()
    left = 0

    async def one(i: int) -> str | None:
        nonlocal left
        asked = {"model": MODEL, "prompt": f"{i % 7} go:", "seed": 5, "max_tokens": 40}
        stream: AsyncStream[Completion] = await client.completions.create(**asked, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            if i % 3 == 0 and len(text) >= 2 + i % 11:
                left += 1
                await stream.close()
                return None
        return text

    async with client:
        results = await asyncio.gather(*(one(i) for i in range(streams)))
    return [text for text in results if text is not None], left


def test_200_streams_a_third_of_them_left_in_the_middle() -> None:
    """On a cache so small that requests are preempted, with a runner that checks every entry."""
    engine = make_engine(num_pages=120, max_requests=32, next_token=spell("abcdefg", end=False))
    with running(engine) as served:
        before = served.complete(prompt="fresh:", max_tokens=30).json()["choices"]
        texts, left = asyncio.run(_load(served, 200))
        assert left == 67
        assert texts == [("abcdefg" * 6)[:40]] * 133
        eventually(lambda: idle(engine), "all pages are free")
        stats = engine.stats()
        assert stats.preemptions > 0
        assert "error" not in stats.finished
        assert sum(stats.finished.values()) == 201
        assert served.complete(prompt="fresh:", max_tokens=30).json()["choices"] == before
