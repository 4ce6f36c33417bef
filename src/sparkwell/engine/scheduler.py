"""Continuous batching: which tokens of which requests the next step computes, and in which pages.

Order: running requests stand by age, and so does the queue behind them; a request is only admitted
from the queue's head and only the newest running one is ever preempted, to the queue's head.  So
the oldest request always advances, and every request ends.
"""

from collections import OrderedDict
from dataclasses import dataclass

from sparkwell.engine.pages import ROOT_KEY, PagePool, page_key
from sparkwell.engine.request import Request, State
from sparkwell.errors import BadInput


@dataclass(frozen=True)
class Work:
    """Compute request.all_ids[start : start + count]; request.pages covers start + count tokens.

    samples: these are the last known tokens, so a new one is drawn from the last row.
    """

    request: Request
    start: int
    count: int
    samples: bool


@dataclass(frozen=True)
class StepPlan:
    """One forward pass: at most one piece of work for each request."""

    work: tuple[Work, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the forward pass."""
        return sum(work.count for work in self.work)


def check_limits(max_batch_tokens: int, max_requests: int) -> None:
    """Raises BadInput unless 1 <= max_requests <= max_batch_tokens.

    With fewer rows than requests, decodes could crowd out a prefill for good.
    """
    if not 1 <= max_requests <= max_batch_tokens:
        raise BadInput(
            f"max_requests is {max_requests} and max_batch_tokens is {max_batch_tokens}, want "
            f"1 <= max_requests <= max_batch_tokens"
        )


class Scheduler:
    """Chunked prefill beside decodes under a token budget; preemption by recomputation.

    pool: the cache pages; max_batch_tokens: rows of one step, >= max_requests;
        max_requests: running at a time, >= 1.
    Raises: BadInput for limits that contradict each other.
    """

    def __init__(
        self, pool: PagePool, *, max_batch_tokens: int = 2048, max_requests: int = 64
    ) -> None:
        check_limits(max_batch_tokens, max_requests)
        self.pool = pool
        self.max_batch_tokens, self.max_requests = max_batch_tokens, max_requests
        self.waiting: OrderedDict[int, Request] = OrderedDict()
        self.running: OrderedDict[int, Request] = OrderedDict()
        self.preemptions = 0
        self.prompt_tokens = 0  # of all requests admitted so far
        self.prefix_hit_tokens = 0  # those of them found in the cache

    @property
    def max_tokens(self) -> int:
        """Most tokens one request can reach: the last one drawn needs no cache entry."""
        return self.pool.num_pages * self.pool.page_size + 1

    def check(self, limit: int) -> None:
        """Raises BadInput for a request that could not finish even alone.

        limit: prompt and output tokens together.
        """
        if limit > self.max_tokens:
            raise BadInput(
                f"a request of {limit} tokens (prompt and max_tokens) needs "
                f"{self.pool.pages_for(limit - 1)} cache pages of {self.pool.page_size} tokens, "
                f"the cache has {self.pool.num_pages}; lower max_tokens or raise num_pages"
            )

    def add(self, request: Request) -> None:
        """Queue a request.  Raises: BadInput if it can never fit."""
        self.check(request.limit)
        self.waiting[request.id] = request

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands, and give back its pages."""
        self.waiting.pop(request.id, None)
        self.running.pop(request.id, None)
        self._drop_pages(request)
        request.state = State.FINISHED

    def plan(self) -> StepPlan:
        """The next step: decodes, then running prefills, then waiting requests in order.

        Empty only when there is no request.  Planning again without `commit` in between is allowed
        (a failed step): pages stay as they are.
        """
        work: list[Work] = []
        budget = self.max_batch_tokens
        for request in list(self.running.values()):  # oldest first: a victim is always behind
            if request.state is State.RUNNING and request.remaining == 1 and self._grow(request):
                work.append(Work(request, request.num_computed, 1, samples=True))
                budget -= 1
        for request in self.running.values():
            if request.remaining > 1 and budget > 0:
                work.append(self._chunk(request, budget))
                budget -= work[-1].count
        # One preempted above is not back at once: it left its pages for one page of an older one.
        while self.waiting and budget > 0:
            request = next(iter(self.waiting.values()))
            if len(self.running) == self.max_requests or not self._admit(request):
                break
            work.append(self._chunk(request, budget))
            budget -= work[-1].count
        return StepPlan(tuple(work))

    def commit(self, plan: StepPlan) -> None:
        """The step was computed: count its tokens, publish the pages that became full."""
        size = self.pool.page_size
        for work in plan.work:
            request = work.request
            first = work.start // size
            request.num_computed = work.start + work.count
            full = request.num_computed // size
            self._name_pages(request, full)
            for index in range(first, full):
                self.pool.publish(request.pages[index], request.page_keys[index])

    def _chunk(self, request: Request, budget: int) -> Work:
        count = min(request.remaining, budget)
        return Work(request, request.num_computed, count, samples=count == request.remaining)

    def _grow(self, request: Request) -> bool:
        """A page for the request's next token; preempts the newest until there is one.

        False if the request itself was the newest.
        """
        while len(request.pages) < self.pool.pages_for(request.num_computed + 1):
            page = self.pool.allocate()
            if page is not None:
                request.pages.append(page)
                continue
            victim = next(reversed(self.running.values()))
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Back to the queue's head; its tokens are kept, their cache entries computed again."""
        del self.running[request.id]
        self._drop_pages(request)
        request.num_computed = 0
        request.state = State.WAITING
        self.waiting[request.id] = request
        self.waiting.move_to_end(request.id, last=False)
        self.preemptions += 1

    def _admit(self, request: Request) -> bool:
        """Start the queue's head if the pages for all its known tokens are there.

        One page for each running request stays unclaimed, or the newcomer would be preempted by
        the next decode that crosses a page's end.
        """
        # The last token is always computed: its row gives the logits of the next one.
        reusable = (len(request.all_ids) - 1) // self.pool.page_size
        self._name_pages(request, reusable)
        hits = self.pool.lookup(request.page_keys[:reusable])
        idle = sum(self.pool.owners(page) == 0 for page in hits)
        fresh = self.pool.pages_for(len(request.all_ids)) - len(hits)
        if self.pool.num_available - idle - fresh < len(self.running):
            return False
        for page in hits:
            self.pool.share(page)
        request.pages = list(hits)
        for _ in range(fresh):
            new = self.pool.allocate()
            assert new is not None
            request.pages.append(new)
        request.num_computed = len(hits) * self.pool.page_size
        if not request.admitted:
            request.admitted = True
            request.cached_tokens = request.num_computed
            self.prompt_tokens += len(request.prompt_ids)
            self.prefix_hit_tokens += request.cached_tokens
        del self.waiting[request.id]
        self.running[request.id] = request
        request.state = State.RUNNING
        return True

    def _name_pages(self, request: Request, count: int) -> None:
        """Make the content keys of the request's first `count` pages, which must be full."""
        size, keys = self.pool.page_size, request.page_keys
        while len(keys) < count:
            start = len(keys) * size
            parent = keys[-1] if keys else ROOT_KEY
            keys.append(page_key(parent, request.all_ids[start : start + size]))

    def _drop_pages(self, request: Request) -> None:
        self.pool.release(request.pages)
        request.pages = []
