"""A real server on a loopback port over a fake runner, and raw HTTP to talk to it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from engine.fake_runner import FakeRunner
from engine.fake_tokenizer import byte_tokenizer
from sparkwell.engine.core import Engine
from sparkwell.engine.pages import PagePool
from sparkwell.engine.scheduler import Scheduler
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.server.limits import Limits
from sparkwell.server.serve import Server, listen, make_server

MODEL = "fake/echo"
PAGE = 4
VOCAB = 261
BACKEND = byte_tokenizer()  # building it takes a while, and nobody changes it
END = 258


def tokenizer() -> Tokenizer:
    return Tokenizer(BACKEND, frozenset({END}))


def spell(text: str, *, end: bool = True) -> Callable[[Sequence[int]], int]:
    """A next_token that writes `text`, by position after the prompt.

    The prompt has to end with the assistant's mark or with ":", and the text has neither.
    """
    ids = BACKEND.encode(text, add_special_tokens=False)
    marks = {260, BACKEND.encode(":", add_special_tokens=False)[0]}

    def next_token(history: Sequence[int]) -> int:
        start = max(i for i, token in enumerate(history) if token in marks)
        written = len(history) - start - 1
        if written < len(ids):
            return ids[written]
        return END if end else ids[written % len(ids)]

    return next_token


def make_engine(
    *,
    next_token: Callable[[Sequence[int]], int] | None = None,
    delay: float = 0.0,
    fail_on: tuple[int, ...] = (),
    num_pages: int = 512,
    max_context: int = 256,
    max_waiting: int = 1024,
    max_requests: int = 64,
    template: bool = True,
) -> Engine:
    runner = FakeRunner(PAGE, vocab_size=256, next_token=next_token, delay=delay, fail_on=fail_on)
    scheduler = Scheduler(
        PagePool(num_pages, PAGE), max_batch_tokens=2048, max_requests=max_requests
    )
    text = tokenizer() if template else Tokenizer(byte_tokenizer(template=None), frozenset({END}))
    return Engine(runner, scheduler, text, max_context=max_context, max_waiting=max_waiting)


@dataclass
class Running:
    """A server that answers."""

    engine: Engine
    server: Server
    thread: threading.Thread
    port: int
    api_key: str | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **kwargs: Any) -> openai.OpenAI:
        key = self.api_key or "none"
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **kwargs)

    def async_client(self) -> openai.AsyncOpenAI:
        key = self.api_key or "none"
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: object, **kwargs: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | kwargs.pop("headers", {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.url + path, content=content, headers=headers, timeout=20, **kwargs)

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        return self.post("/v1/chat/completions", body | fields)

    def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "hi:", "max_tokens": 4}
        return self.post("/v1/completions", body | fields)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, **kwargs)

    def metric(self, name: str) -> float:
        text = self.get("/metrics").text
        return float(next(row for row in text.splitlines() if row.startswith(name)).split()[-1])

    def stop(self, timeout: float = 20.0) -> None:
        self.server.should_exit = True
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def running(
    engine: Engine,
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    shutdown_timeout: float = 5.0,
    model_name: str = MODEL,
) -> Iterator[Running]:
    """Serve `engine` on a free port while inside."""
    server = make_server(
        engine,
        model_name=model_name,
        api_key=api_key,
        limits=limits,
        shutdown_timeout=shutdown_timeout,
    )
    listener = listen("127.0.0.1", 0)
    engine.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    made = Running(engine, server, thread, listener.getsockname()[1], api_key)
    try:
        eventually(lambda: server.started, "the server starts")
        yield made
    finally:
        made.stop()
        engine.shutdown(drain=False)
        listener.close()


def eventually(true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {what}"
        time.sleep(0.01)


def idle(engine: Engine) -> bool:
    """Nothing waits, nothing runs, no page is owned."""
    stats = engine.stats()
    return (stats.waiting, stats.running, stats.pages_used) == (0, 0, 0)


def raw_post(
    port: int, path: str, body: bytes, *, length: int | None = None, extra: str = ""
) -> socket.socket:
    """An HTTP request by hand; the caller reads, or hangs up."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    size = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n{extra}\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes or 20 s pass."""
    parts = []
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
