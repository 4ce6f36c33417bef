"""Submit, step, cancel and fail in any order: what must hold after every one of them."""

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.fake_runner import FakeRunner, history_of, mix
from sparkwell.engine.pages import PagePool
from sparkwell.engine.request import Request, SamplingParams, State
from sparkwell.engine.scheduler import Scheduler, StepPlan

VOCAB = 7
COMMON = [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0] * 2
PROMPTS = st.builds(  # long common prefixes, at the same place or not
    lambda head, length, tail: COMMON[head : head + length] + tail,
    st.sampled_from([0, 0, 0, 3]),
    st.integers(0, 16),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3),
)  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler the way the engine does, on a runner that accounts for the cache."""

    @initialize(
        pages=st.integers(3, 12), size=st.integers(1, 4),
        requests=st.integers(1, 4), spare=st.integers(0, 8),
    )  # fmt: skip
    def build(self, pages: int, size: int, requests: int, spare: int) -> None:
        self.pool = PagePool(pages, size)
        self.scheduler = Scheduler(
            self.pool, max_batch_tokens=requests + spare, max_requests=requests
        )
        self.runner = FakeRunner(size, vocab_size=VOCAB)
        self.requests: list[Request] = []
        self.ended: set[int] = set()

    @property
    def live(self) -> list[Request]:
        return [r for r in self.requests if r.state is not State.FINISHED]

    @rule(prompt=PROMPTS, new=st.integers(1, 10))
    def submit(self, prompt: list[int], new: int) -> None:
        prompt = prompt[: self.scheduler.max_tokens - 1]
        limit = min(len(prompt) + new, self.scheduler.max_tokens)
        params = SamplingParams(temperature=0)
        request = Request(len(self.requests), prompt, params, limit=limit)
        self.requests.append(request)
        self.scheduler.add(request)

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        waited = set(self.scheduler.waiting)
        plan = self.scheduler.plan()
        self.check_plan(plan, waited)
        drawn = self.runner.run(plan)
        assert drawn.keys() == {w.request.id for w in plan.work if w.samples}
        self.scheduler.commit(plan)
        for work in plan.work:
            request = work.request
            assert request.num_computed == work.start + work.count
            if work.samples:
                request.append(drawn[request.id].token_id)
                if len(request.all_ids) == request.limit:
                    self.scheduler.remove(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.live)))

    @precondition(lambda self: self.live)
    @rule(drop=st.booleans())
    def fail_a_step(self, drop: bool) -> None:
        plan = self.scheduler.plan()
        for work in plan.work:  # an unfinished step may have written anything in its own cells
            for position in range(work.start, work.start + work.count):
                cell = self.runner._cell(work.request, position)
                self.runner.cells[cell] = (-1, -1)
        if drop:
            for request in list(self.scheduler.running.values()):
                self.scheduler.remove(request)

    def check_plan(self, plan: StepPlan, waited: set[int]) -> None:
        ids = [work.request.id for work in plan.work]
        assert len(set(ids)) == len(ids)
        assert min(r.id for r in self.live) in ids, "the oldest request stands still"
        assert 1 <= plan.num_tokens <= self.scheduler.max_batch_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_requests
        written: set[int] = set()
        for work in plan.work:
            request, size = work.request, self.pool.page_size
            assert request.state is State.RUNNING
            assert work.start == request.num_computed and work.count >= 1
            assert work.samples == (work.start + work.count == len(request.all_ids))
            assert len(request.pages) * size >= work.start + work.count
            first, last = work.start // size, (work.start + work.count - 1) // size
            for page in request.pages[first : last + 1]:
                assert self.pool.owners(page) == 1, "a shared page is written"
                assert not self.pool.is_published(page), "a published page is written"
                assert page not in written
                written.add(page)
        # Nobody is preempted to start in the same step, or others in its place.
        if set(self.scheduler.waiting) - waited:
            assert not waited & set(self.scheduler.running)
        self.check_nothing_is_left_out(plan)

    def check_nothing_is_left_out(self, plan: StepPlan) -> None:
        """Whoever is not in the plan, or not entirely, is kept out by a limit."""
        spare = self.scheduler.max_batch_tokens - plan.num_tokens
        planned = {work.request.id: work for work in plan.work}
        for request in self.scheduler.running.values():
            if request.id not in planned or not planned[request.id].samples:
                assert spare == 0 and request.remaining > 1
        if self.scheduler.waiting and spare:
            running = len(self.scheduler.running)
            head = next(iter(self.scheduler.waiting.values()))
            need = self.pool.pages_for(len(head.all_ids))
            full = running == self.scheduler.max_requests
            assert full or self.pool.num_available - need < running

    @invariant()
    def pages_are_owned_by_those_who_list_them(self) -> None:
        if not self.requests:
            return
        owners = Counter(page for r in self.requests for page in r.pages)
        pages = range(self.pool.num_pages)
        assert all(self.pool.owners(page) == owners[page] for page in pages)
        idle = [page for page in pages if not owners[page]]
        published = sum(self.pool.is_published(page) for page in idle)
        assert self.pool.num_used == len(owners)
        assert (self.pool.num_cached, self.pool.num_free) == (published, len(idle) - published)

    @invariant()
    def queues_hold_the_live_requests_by_age(self) -> None:
        if not self.requests:
            return
        running, waiting = list(self.scheduler.running), list(self.scheduler.waiting)
        assert running + waiting == [r.id for r in self.live]
        assert all(self.scheduler.running[i].state is State.RUNNING for i in running)
        assert all(self.scheduler.waiting[i].state is State.WAITING for i in waiting)
        for request in self.requests:
            if request.state is not State.RUNNING:
                assert request.pages == []
            else:
                assert len(request.pages) * self.pool.page_size >= request.num_computed

    @invariant()
    def a_shared_page_stands_for_one_prefix(self) -> None:
        if not self.requests:
            return
        size = self.pool.page_size
        meaning: dict[int, tuple[int, ...]] = {}
        for request in self.scheduler.running.values():
            for index, page in enumerate(request.pages):
                if self.pool.owners(page) > 1:
                    prefix = tuple(request.all_ids[: (index + 1) * size])
                    assert len(prefix) == (index + 1) * size <= request.num_computed
                    assert meaning.setdefault(page, prefix) == prefix

    @invariant()
    def published_pages_are_computed_throughout(self) -> None:
        if not self.requests:
            return
        size = self.pool.page_size
        for page in filter(self.pool.is_published, range(self.pool.num_pages)):
            cells = [self.runner.cells[page, offset] for offset in range(size)]
            first = cells[0][0]
            assert first % size == 0
            assert [position for position, _ in cells] == list(range(first, first + size))

    @invariant()
    def answers_are_what_the_history_gives(self) -> None:
        for request in self.requests:
            if request.state is State.FINISHED and request.id not in self.ended:
                self.ended.add(request.id)
                history = history_of(request.prompt_ids)
                for token in request.output_ids:
                    assert token == mix(mix(history, 0), 0) % VOCAB
                    history = mix(history, token)

    def teardown(self) -> None:
        """Everybody ends within as many steps as there are tokens, and gives everything back."""
        if not getattr(self, "requests", None):
            return
        for _ in range(sum(r.limit for r in self.live)):
            if not self.live:
                break
            self.step()
        assert not self.live and not self.scheduler.running and not self.scheduler.waiting
        assert self.scheduler.plan().work == ()
        assert self.pool.num_used == 0
        assert self.pool.num_cached + self.pool.num_free == self.pool.num_pages


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
