"""A runner that computes nothing but keeps account of the cache as a model would.

Every (page, offset) remembers which token history was written there.  Before drawing, a request
reads the entries of all its tokens through its block table and finds exactly its own history, or
the step fails: a page reused too early, shared wrongly or overwritten shows at once.
"""

import time
from collections.abc import Callable, Sequence

from sparkwell.engine.core import Sampled
from sparkwell.engine.request import Request
from sparkwell.engine.scheduler import StepPlan, Work

_MODULUS = 2**61 - 1


def mix(history: int, token: int) -> int:
    """The history one token later; different histories collide once in 2**61."""
    return (history * 6364136223846793005 + (token + 1) * 1442695040888963407) % _MODULUS


def history_of(ids: Sequence[int]) -> int:
    history = 1
    for token in ids:
        history = mix(history, token)
    return history


class FakeRunner:
    """Draws a pure function of the request's whole history (and of its seed, if temperature > 0).

    next_token: history -> token id, in place of the pseudo-random one below vocab_size.
    delay: seconds each step takes; fail_on: step numbers (from 0) that raise.
    """

    def __init__(
        self,
        page_size: int,
        *,
        vocab_size: int = 256,
        next_token: Callable[[Sequence[int]], int] | None = None,
        delay: float = 0.0,
        fail_on: tuple[int, ...] = (),
    ) -> None:
        self.page_size, self.vocab_size = page_size, vocab_size
        self.next_token, self.delay, self.fail_on = next_token, delay, fail_on
        self.cells: dict[tuple[int, int], tuple[int, int]] = {}
        self.steps = 0
        self.tokens_computed = 0
        self._known: dict[int, list[int]] = {}  # request id -> history after each of its tokens

    def run(self, plan: StepPlan) -> dict[int, Sampled]:
        step, self.steps = self.steps, self.steps + 1
        if self.delay:
            time.sleep(self.delay)
        # As on a device: all rows of the batch are written, then all requests read.
        for work in plan.work:
            self._write(work)
        if step in self.fail_on:
            raise RuntimeError(f"step {step} was told to fail")
        for work in plan.work:
            self._read(work)
        return {work.request.id: self._draw(work.request) for work in plan.work if work.samples}

    def _histories(self, request: Request) -> list[int]:
        known = self._known.setdefault(request.id, [])
        for token in request.all_ids[len(known) :]:
            known.append(mix(known[-1] if known else 1, token))
        return known

    def _cell(self, request: Request, position: int) -> tuple[int, int]:
        return request.pages[position // self.page_size], position % self.page_size

    def _write(self, work: Work) -> None:
        histories = self._histories(work.request)
        self.tokens_computed += work.count
        for position in range(work.start, work.start + work.count):
            self.cells[self._cell(work.request, position)] = (position, histories[position])

    def _read(self, work: Work) -> None:
        request, histories = work.request, self._histories(work.request)
        for position in range(work.start + work.count):
            cell = self._cell(request, position)
            found = self.cells.get(cell)
            assert found == (position, histories[position]), (
                f"request {request.id} reads {found} at page {cell[0]} offset {cell[1]}, want "
                f"its own token {position}"
            )

    def _draw(self, request: Request) -> Sampled:
        if self.next_token is not None:
            token = self.next_token(request.all_ids)
        else:
            seed = request.seed if request.params.temperature > 0 else 0
            token = mix(mix(self._histories(request)[-1], seed), 0) % self.vocab_size
        if request.params.logprobs is None:
            return Sampled(token)
        count = request.params.logprobs
        others = tuple(((token + i) % self.vocab_size, -0.5 - i) for i in range(count))
        return Sampled(token, -0.5, others)
