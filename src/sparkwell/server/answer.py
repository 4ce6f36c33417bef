"""An answer under way: what both endpoints do with the engine's outputs, at once or as a stream."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sparkwell.engine.request import Output, TokenLogprob
from sparkwell.server.errors import ApiError, ClientGone
from sparkwell.server.generation import Generation, Lifecycle
from sparkwell.server.protocol import GenerationRequest
from sparkwell.server.responses import Usage, UsageCounter

Chunk = dict[str, Any]

_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy that gathers a response would hold the tokens back
}


class Answer(ABC):
    """Words the outputs as one endpoint does.

    request: what was asked; head: what the body and each chunk begin with; echoed: each choice's
        text so far.
    """

    def __init__(
        self, request: GenerationRequest, head: dict[str, object], echoed: Sequence[str]
    ) -> None:
        self.request, self.head = request, head
        self._texts = list(echoed)
        self._entries: list[list[TokenLogprob]] = [[] for _ in echoed]
        self._reasons: list[Any] = [None] * len(self._texts)

    @abstractmethod
    def opening(self) -> Iterator[Chunk]:
        """Chunk choices that come before any token."""

    @abstractmethod
    def pieces(self, choice: int, output: Output) -> Iterator[Chunk]:
        """Chunk choices for one output."""

    @abstractmethod
    def whole(self, choice: int, text: str, entries: Sequence[TokenLogprob], reason: Any) -> Chunk:
        """A choice of the body."""

    def take(self, choice: int, output: Output) -> None:
        """Gather one output for `body`."""
        self._texts[choice] += output.text
        self._entries[choice] += output.logprobs or ()
        self._reasons[choice] = output.finish_reason

    def body(self, usage: Usage) -> dict[str, object]:
        """The whole answer."""
        gathered = zip(self._texts, self._entries, self._reasons, strict=True)
        choices = [self.whole(choice, *parts) for choice, parts in enumerate(gathered)]
        return {**self.head, "choices": choices, "usage": usage.model_dump()}


async def at_once(
    request: Request, lifecycle: Lifecycle, generation: Generation, answer: Answer
) -> JSONResponse:
    """The whole answer as one body.  Raises: ApiError 500, 503; ClientGone."""
    usage = UsageCounter(answer.request.n)
    async with lifecycle.watch(request, generation):
        async for choice, output in generation.outputs():
            usage.see(choice, output)
            answer.take(choice, output)
    return JSONResponse(answer.body(usage.total()))


class EventStream(Response):
    """The answer as server-sent events, ended by [DONE].

    An error after the beginning becomes an event with OpenAI's error body, and no [DONE] follows.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, lifecycle: Lifecycle, generation: Generation, answer: Answer
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._request, self._lifecycle = request, lifecycle
        self._generation, self._answer = generation, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        async with self._lifecycle.watch(self._request, self._generation):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._chunks():
                    await send(_event(json.dumps(chunk, ensure_ascii=False)))
                await send(_event("[DONE]"))
            except ApiError as error:
                await send(_event(json.dumps(error.body(), ensure_ascii=False)))
            except ClientGone:
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[Chunk]:
        answer = self._answer
        wants_usage = answer.request.wants_usage_chunk
        usage = UsageCounter(answer.request.n)

        def chunk(choices: list[Chunk]) -> Chunk:
            made = {**answer.head, "choices": choices}
            return {**made, "usage": None} if wants_usage else made

        for piece in answer.opening():
            yield chunk([piece])
        async for choice, output in self._generation.outputs():
            usage.see(choice, output)
            for piece in answer.pieces(choice, output):
                yield chunk([piece])
        if wants_usage:
            yield {**chunk([]), "usage": usage.total().model_dump()}


def _event(data: str) -> dict[str, object]:
    return {
        "type": "http.response.body",
        "body": f"data: {data}\n\n".encode(),
        "more_body": True,
    }
