"""From the engine's thread to the event loop: the choices of one HTTP request as one stream."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from sparkwell.engine.core import Engine
from sparkwell.engine.request import Output, SamplingParams
from sparkwell.server.errors import ApiError, ClientGone, shutting_down
from sparkwell.server.metrics import Metrics

Job = tuple[Sequence[int], SamplingParams]  # prompt tokens and how to continue them


class Generation:
    """The running choices of one HTTP request.

    Outputs wait in a queue until the client has taken those before; it holds no more than the
    choices' max_tokens, since the engine's requests end there.  Whoever leaves `outputs` early, by
    an error, a hang-up or a cancelled task, cancels what still runs.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Output, float] | None] = asyncio.Queue()
        self._running: dict[int, int] = {}  # choice -> engine's request id
        self._broken: Exception | None = None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand every job to the engine, or none.  Raises: BadInput, QueueFull of the engine."""
        try:
            for choice, (prompt_ids, params) in enumerate(jobs):
                self._running[choice] = self._submit(choice, prompt_ids, params)
        except BaseException:
            self.cancel()
            raise

    def _submit(self, choice: int, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        def deliver(output: Output) -> None:
            item = (choice, output, time.monotonic())
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

        return self._engine.submit(prompt_ids, params, on_output=deliver)

    def cancel(self) -> None:
        """Stop whatever still runs, and give its pages back."""
        for request_id in self._running.values():
            self._engine.cancel(request_id)
        self._running.clear()

    def break_off(self, reason: Exception) -> None:
        """Cancel, and let `outputs` raise `reason`.  To be called on the event loop."""
        if self._broken is None:
            self._broken = reason
            self.cancel()
            self._queue.put_nowait(None)

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """(choice, output) in the order of arrival, until every choice has finished.

        Raises: ApiError 500 where the model failed, 503 where the server stopped the request;
        ClientGone after a hang-up.
        """
        latest: dict[int, float] = {}
        try:
            while self._running:
                item = await self._queue.get()
                if self._broken is not None:
                    raise self._broken
                assert item is not None
                choice, output, now = item
                if choice in latest and output.token_ids:
                    self._metrics.tokens(len(output.token_ids), now - latest[choice])
                if output.token_ids:
                    latest[choice] = now
                if output.finish_reason is not None:
                    del self._running[choice]
                    self._metrics.finished(output)
                _raise_for(output)
                yield choice, output
            if self._broken is not None:
                raise self._broken
        finally:
            self.cancel()


def _raise_for(output: Output) -> None:
    if output.finish_reason == "error":
        raise ApiError(500, f"the model failed: {output.error}", code="generation_failed")
    if output.finish_reason == "cancelled":
        raise shutting_down()


class Lifecycle:
    """Which generations are alive, and whether new ones may begin."""

    def __init__(self) -> None:
        self.draining = False
        self._alive: set[Generation] = set()

    @contextlib.asynccontextmanager
    async def watch(self, request: Request, generation: Generation) -> AsyncIterator[None]:
        """While inside, a client that hangs up breaks its generation off."""

        async def wait_for_hang_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            generation.break_off(ClientGone())

        watcher = asyncio.create_task(wait_for_hang_up())
        self._alive.add(generation)
        try:
            yield
        finally:
            self._alive.discard(generation)
            generation.cancel()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    def refuse_if_draining(self) -> None:
        """Raises: ApiError 503 once the server is stopping."""
        if self.draining:
            raise shutting_down()

    def break_off_all(self) -> int:
        """End every generation with a 503; how many there were.  To be called on the event loop."""
        alive = list(self._alive)
        for generation in alive:
            generation.break_off(shutting_down())
        return len(alive)
