"""The scheduler's decisions, one by one."""

import pytest

from engine.fake_runner import FakeRunner
from sparkwell.engine.pages import PagePool
from sparkwell.engine.request import Request, SamplingParams, State
from sparkwell.engine.scheduler import Scheduler, StepPlan
from sparkwell.errors import BadInput


def make(
    pages: int = 20, size: int = 4, *, budget: int = 16, requests: int = 4
) -> tuple[Scheduler, FakeRunner]:
    pool = PagePool(pages, size)
    scheduler = Scheduler(pool, max_batch_tokens=budget, max_requests=requests)
    return scheduler, FakeRunner(size)


def add(scheduler: Scheduler, request_id: int, prompt: list[int], new: int = 100) -> Request:
    limit = min(len(prompt) + new, scheduler.max_tokens)
    request = Request(request_id, prompt, SamplingParams(), limit=limit)
    scheduler.add(request)
    return request


def step(scheduler: Scheduler, runner: FakeRunner) -> StepPlan:
    plan = scheduler.plan()
    drawn = runner.run(plan)
    scheduler.commit(plan)
    for work in plan.work:
        if work.samples:
            work.request.append(drawn[work.request.id].token_id)
    return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    return [(w.request.id, w.start, w.count, w.samples) for w in plan.work]


def test_a_prompt_is_computed_in_chunks_and_then_token_by_token() -> None:
    scheduler, runner = make(budget=5, requests=2)
    request = add(scheduler, 0, list(range(12)))
    assert shape(step(scheduler, runner)) == [(0, 0, 5, False)]
    assert request.output_ids == []
    assert shape(step(scheduler, runner)) == [(0, 5, 5, False)]
    assert shape(step(scheduler, runner)) == [(0, 10, 2, True)]
    assert shape(step(scheduler, runner)) == [(0, 12, 1, True)]
    assert len(request.output_ids) == 2 and request.num_computed == 13


def test_decodes_come_first_then_running_prefills_then_the_queue() -> None:
    scheduler, runner = make(budget=6, requests=3)
    add(scheduler, 0, [1, 2])
    step(scheduler, runner)
    add(scheduler, 1, list(range(10, 20)))
    assert shape(step(scheduler, runner)) == [(0, 2, 1, True), (1, 0, 5, False)]
    add(scheduler, 2, [7, 7, 7])
    assert shape(step(scheduler, runner)) == [(0, 3, 1, True), (1, 5, 5, True)]
    plan = step(scheduler, runner)
    assert shape(plan) == [(0, 4, 1, True), (1, 10, 1, True), (2, 0, 3, True)]
    assert plan.num_tokens == 5


def test_no_more_than_max_requests_run() -> None:
    scheduler, runner = make(requests=2)
    for i in range(4):
        add(scheduler, i, [i + 1])
    assert [w.request.id for w in step(scheduler, runner).work] == [0, 1]
    scheduler.remove(scheduler.running[0])
    assert [w.request.id for w in step(scheduler, runner).work] == [1, 2]
    assert list(scheduler.waiting) == [3]


def test_a_later_prompt_shares_the_full_pages_of_an_earlier_one() -> None:
    scheduler, runner = make()
    prompt = list(range(10))
    first = add(scheduler, 0, prompt)
    step(scheduler, runner)
    second = add(scheduler, 1, [*prompt, 77, 78])
    plan = step(scheduler, runner)
    assert shape(plan)[1] == (1, 8, 4, True)
    assert second.pages[:2] == first.pages[:2] and second.pages[2] != first.pages[2]
    assert second.cached_tokens == 8 and scheduler.prefix_hit_tokens == 8
    assert scheduler.prompt_tokens == 22
    assert [scheduler.pool.owners(p) for p in second.pages] == [2, 2, 1]


def test_the_last_token_is_always_computed() -> None:
    scheduler, runner = make()
    add(scheduler, 0, list(range(8)))
    step(scheduler, runner)
    again = add(scheduler, 1, list(range(8)))
    assert shape(step(scheduler, runner))[1] == (1, 4, 4, True)
    assert again.cached_tokens == 4
    longer = add(scheduler, 2, [*range(8), 9])
    assert shape(step(scheduler, runner))[2] == (2, 8, 1, True)
    assert longer.cached_tokens == 8


def test_pages_are_offered_only_after_they_were_computed() -> None:
    scheduler, runner = make(budget=6)
    prompt = list(range(12))
    add(scheduler, 0, prompt)
    plan = scheduler.plan()
    twin = add(scheduler, 1, prompt)
    runner.run(plan)
    scheduler.commit(plan)  # 6 of 12 tokens: one full page
    assert twin.cached_tokens == 0
    step(scheduler, runner)
    step(scheduler, runner)
    assert twin.cached_tokens == 8  # the third page holds the last token


def test_generated_text_is_reused_by_the_next_turn() -> None:
    scheduler, runner = make()
    first = add(scheduler, 0, [1, 2, 3])
    for _ in range(7):
        step(scheduler, runner)
    history = list(first.all_ids)
    assert first.num_computed == 9
    scheduler.remove(first)
    assert (scheduler.pool.num_used, scheduler.pool.num_cached) == (0, 2)
    turn = add(scheduler, 1, [*history, 50, 51])
    step(scheduler, runner)
    assert turn.cached_tokens == 8


def test_the_newest_gives_way_when_pages_run_out_and_comes_back_first() -> None:
    scheduler, runner = make(pages=4, size=2, requests=3, budget=8)
    old = add(scheduler, 0, [1, 2], new=5)
    step(scheduler, runner)
    new = add(scheduler, 1, [5], new=3)
    step(scheduler, runner)  # pages: old 2, new 1, one free
    step(scheduler, runner)
    late = add(scheduler, 2, [9], new=2)
    assert scheduler.preemptions == 0 and len(scheduler.running) == 2
    plan = step(scheduler, runner)
    assert [w.request.id for w in plan.work] == [0]
    assert scheduler.preemptions == 1
    assert (new.state, new.pages, new.num_computed) == (State.WAITING, [], 0)
    assert len(new.output_ids) == 2  # what was drawn is kept
    assert list(scheduler.waiting) == [1, 2] and late.pages == []
    scheduler.remove(old)
    plan = step(scheduler, runner)
    # Its full page was published before it gave way, so only the last token is computed again.
    assert shape(plan)[0] == (1, 2, 1, True)
    assert new.cached_tokens == 0  # of the prompt, when it was first admitted
    assert scheduler.prefix_hit_tokens == 0


def test_a_newcomer_leaves_a_page_for_each_running_request() -> None:
    scheduler, runner = make(pages=4, size=2, requests=4)
    add(scheduler, 0, [1, 2, 3])
    add(scheduler, 1, [5, 6, 7])
    step(scheduler, runner)
    assert list(scheduler.running) == [0]  # 2 + 2 pages would leave none
    assert list(scheduler.waiting) == [1]
    scheduler.remove(scheduler.running[0])
    add(scheduler, 2, [9])
    step(scheduler, runner)
    assert list(scheduler.running) == [1, 2]


def test_cached_pages_it_will_share_are_not_counted_as_room() -> None:
    scheduler, runner = make(pages=4, size=2, requests=2)
    first = add(scheduler, 0, [1, 2, 3, 4])
    step(scheduler, runner)
    scheduler.remove(first)
    running = add(scheduler, 1, [9])
    step(scheduler, runner)
    assert (scheduler.pool.num_cached, scheduler.pool.num_free) == (2, 1)
    follower = add(scheduler, 2, [1, 2, 3, 4, 5])  # shares both cached pages, needs the free one
    assert shape(step(scheduler, runner)) == [(1, 1, 1, True)]
    assert follower.state is State.WAITING
    scheduler.remove(running)
    assert shape(step(scheduler, runner)) == [(2, 4, 1, True)]


def test_planning_again_after_a_failed_step_changes_nothing() -> None:
    scheduler, runner = make()
    request = add(scheduler, 0, list(range(6)))
    first = scheduler.plan()
    pages = list(request.pages)
    assert shape(scheduler.plan()) == shape(first) == [(0, 0, 6, True)]
    assert request.pages == pages and scheduler.pool.num_used == 2
    assert scheduler.pool.lookup(request.page_keys) == []  # nothing published


def test_removing_waiting_and_running_requests_gives_everything_back() -> None:
    scheduler, runner = make(requests=1)
    running, waiting = add(scheduler, 0, [1, 2, 3]), add(scheduler, 1, [4])
    step(scheduler, runner)
    for request in (waiting, running):
        scheduler.remove(request)
        assert request.state is State.FINISHED and request.pages == []
    assert scheduler.pool.num_used == 0 and scheduler.plan().work == ()


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler, _ = make(pages=2, size=4)
    scheduler.check(9)  # eight cached tokens and one that is only drawn
    message = "a request of 10 tokens .* needs 3 cache pages of 4 tokens, the cache has 2; lower"
    with pytest.raises(BadInput, match=message):
        scheduler.check(10)
    with pytest.raises(BadInput, match=message):
        scheduler.add(Request(0, [1] * 5, SamplingParams(), limit=10))
    assert not scheduler.waiting


def test_the_largest_request_that_fits_runs_to_its_end() -> None:
    scheduler, runner = make(pages=2, size=4)
    request = add(scheduler, 0, [1, 2, 3], new=6)
    while len(request.all_ids) < request.limit:
        assert step(scheduler, runner).work
    assert len(request.all_ids) == 9 and scheduler.preemptions == 0


@pytest.mark.parametrize(("budget", "requests"), [(4, 5), (4, 0)])
def test_limits_that_contradict_each_other_are_refused(budget: int, requests: int) -> None:
    match = f"max_requests is {requests} and max_batch_tokens is {budget}, want 1 <= max_requests"
    with pytest.raises(BadInput, match=match):
        make(budget=budget, requests=requests)
