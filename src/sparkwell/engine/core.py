"""The engine: takes requests from any thread, runs steps on its own, hands out text as it comes."""

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sparkwell.engine.answer import Answer
from sparkwell.engine.request import (
    FinishReason,
    OnOutput,
    Output,
    Request,
    Sampled,
    SamplingParams,
)
from sparkwell.engine.scheduler import Scheduler, StepPlan
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadInput, SparkwellError

log = logging.getLogger(__name__)

_GRACE = 10.0  # seconds the last step gets to return once everything is cancelled


class QueueFull(SparkwellError, RuntimeError):
    """As many requests wait as the engine accepts.  Try again when some have finished."""


class EngineClosed(SparkwellError, RuntimeError):
    """The engine takes no more requests: it is shutting down, or it broke."""


class Runner(Protocol):
    """Computes a step."""

    def run(self, plan: StepPlan) -> dict[int, Sampled]:
        """Request id -> drawn token, for every work with samples=True."""
        ...


@dataclass(frozen=True)
class EngineStats:
    """Counts at one moment (waiting ... pages_cached) and since the start (the others).

    finished: finish reason -> requests.  prompt_tokens counts admitted requests, and
    prefix_hit_tokens those of them that were found in the cache.
    """

    waiting: int
    running: int
    pages_total: int
    pages_used: int
    pages_cached: int
    preemptions: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    prefix_hit_tokens: int
    finished: dict[str, int]


class Engine:
    """Runs requests step by step, on its own thread after `start`, or by the caller's `step`.

    runner: computes the steps; scheduler: plans them; tokenizer: for text and end tokens.
    max_context: most tokens of prompt and output together; max_waiting: queue length.
    vocab_size: token ids the model knows; the tokenizer's if None.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        max_waiting: int = 1024,
        vocab_size: int | None = None,
    ) -> None:
        if max_context < 2 or max_waiting < 1:
            raise BadInput(
                f"Engine: max_context is {max_context} and max_waiting is {max_waiting}, "
                f"want >= 2 (a prompt and an output token) and >= 1"
            )
        self.runner, self.scheduler, self.tokenizer = runner, scheduler, tokenizer
        self.max_context, self.max_waiting = max_context, max_waiting
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._live: dict[int, Answer] = {}
        self._steps = self._generated = 0
        self._finished: Counter[str] = Counter()
        # _wake guards what other threads touch: the commands, the counters of ids, the flags.
        self._wake = threading.Condition()
        self._commands: deque[Answer | int] = deque()  # a new request, or the id of one to cancel
        self._submitted = 0  # new requests among the commands
        self._next_id = 0
        self._closed: str | None = None  # why no request is taken any more
        self._abort = False
        self._step_lock = threading.Lock()  # one step at a time, whoever drives
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ callers, any thread

    def start(self) -> None:
        """Run on a thread of its own from now on; does nothing if it does so already."""
        with self._wake:
            self._refuse_if_closed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
                self._thread.start()

    @property
    def is_started(self) -> bool:
        """Whether the engine has its own thread, so that nobody has to call `step`."""
        return self._thread is not None

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """Most tokens prompt and output may reach together.

        Raises: BadInput for a prompt that is empty, holds unknown tokens or leaves no room for an
        output token; for a request that does not fit the cache; for tokens in `params` that the
        model does not know.
        """
        self._check_tokens(prompt_ids, params)
        most = min(self.max_context, self.scheduler.max_tokens)
        if len(prompt_ids) >= most:
            raise BadInput(
                f"the prompt has {len(prompt_ids)} tokens, want at most {most - 1}: the context "
                f"limit is {self.max_context} tokens, the cache holds {self.scheduler.max_tokens}; "
                f"shorten the prompt"
            )
        if params.max_tokens is None:
            return most
        limit = min(len(prompt_ids) + params.max_tokens, self.max_context)
        self.scheduler.check(limit)
        return limit

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, on_output: OnOutput
    ) -> int:
        """Queue a request and return its id.

        on_output: called with each Output, from the engine's thread (or from `step`); it must not
            block.  If it raises, the request is dropped.
        Raises: BadInput as `check` does; QueueFull; EngineClosed after `shutdown`.
        """
        limit = self.check(prompt_ids, params)
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.tokenizer.eos_ids
        seed = random.SystemRandom().getrandbits(64) if params.seed is None else params.seed
        with self._wake:
            self._refuse_if_closed()
            if self._num_waiting() >= self.max_waiting:
                raise QueueFull(
                    f"{self.max_waiting} requests are waiting, which is the limit (max_waiting); "
                    f"try again later"
                )
            request = Request(
                self._next_id, prompt_ids, params, limit=limit, seed=seed, stop_ids=stop_ids
            )
            self._next_id += 1
            self._commands.append(Answer(request, on_output, self.tokenizer))
            self._submitted += 1
            self._wake.notify_all()
        return request.id

    def cancel(self, request_id: int) -> None:
        """End a request with finish_reason "cancelled"; nothing happens if it has ended already."""
        with self._wake:
            self._commands.append(request_id)
            self._wake.notify_all()
        # Nobody may be going to step: take effect now, unless a step is under way (maybe ours).
        if not self.is_started and self._step_lock.acquire(blocking=False):
            try:
                self._apply_commands()
            finally:
                self._step_lock.release()

    def stats(self) -> EngineStats:
        """Counts for operators; cheap."""
        with self._wake:
            waiting = self._num_waiting()
        pool = self.scheduler.pool
        return EngineStats(
            waiting=waiting,
            running=len(self.scheduler.running),
            pages_total=pool.num_pages,
            pages_used=pool.num_used,
            pages_cached=pool.num_cached,
            preemptions=self.scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self.scheduler.prompt_tokens,
            generated_tokens=self._generated,
            prefix_hit_tokens=self.scheduler.prefix_hit_tokens,
            finished=dict(self._finished),
        )

    def shutdown(self, drain: bool = True, timeout: float = 30.0) -> None:
        """Take no more requests; finish the others for up to `timeout` seconds, then cancel them.

        drain=False cancels at once.  Not to be called from on_output.
        """
        deadline = time.monotonic() + (timeout if drain else 0.0)
        with self._wake:
            self._closed = self._closed or "it is shutting down"
            thread = self._thread
            self._wake.notify_all()
        if thread is None:
            while drain and time.monotonic() < deadline and self.step():
                pass
            self._end_all("cancelled")
            return
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            with self._wake:
                self._abort = True
                self._wake.notify_all()
            thread.join(_GRACE)
        if thread.is_alive():
            log.error("shutdown: a step has not returned for %.0f s; leaving it behind", _GRACE)

    # ------------------------------------------------------------------ the engine's thread

    def step(self) -> bool:
        """Take what was submitted or cancelled, compute one step, hand out its tokens.

        False if there was nothing to compute.
        """
        with self._step_lock:
            self._apply_commands()
            plan = self.scheduler.plan()
            if not plan.work:
                return False
            try:
                drawn = self._draw(plan)
            except Exception as error:  # whatever a runner raises, the next requests may succeed
                log.exception("a step of %d tokens failed", plan.num_tokens)
                self._fail_running(f"{type(error).__name__}: {error}")
                return True
            self._steps += 1
            self.scheduler.commit(plan)
            self._generated += len(drawn)
            for request, token in drawn:
                answer = self._live[request.id]
                self._deliver(answer, answer.take(token))
            return True

    def _loop(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._commands or self._live or self._closed):
                        self._wake.wait()
                    done = self._closed and not (self._commands or self._live)
                    abort = self._abort
                if abort or done:
                    break
                self.step()
        except Exception:
            log.exception("the engine broke")
            with self._wake:
                self._closed = "it broke; the log says why"
            self._end_all("error", error="the engine broke; its log says why")
        else:
            self._end_all("cancelled")

    def _draw(self, plan: StepPlan) -> list[tuple[Request, Sampled]]:
        """Run the step, and hold the runner to its protocol before anything is committed."""
        sampled = self.runner.run(plan)
        drawn = [(w.request, sampled[w.request.id]) for w in plan.work if w.samples]
        for request, token in drawn:
            assert token.token_id >= 0, f"the runner drew token {token.token_id}"
            asked = request.params.logprobs is not None
            assert not asked or token.logprob is not None, "the runner gave no log-probability"
        return drawn

    def _apply_commands(self) -> None:
        while True:
            with self._wake:  # a request never is in neither queue, or the limit would not hold
                if not self._commands:
                    return
                command = self._commands.popleft()
                if isinstance(command, Answer):
                    self._submitted -= 1
                    self._live[command.request.id] = command
                    self.scheduler.add(command.request)
                    continue
                answer = self._live.get(command)
            if answer is not None:
                self._deliver(answer, answer.end("cancelled"))

    def _deliver(self, answer: Answer, output: Output) -> None:
        """Hand an output out; a finished request has given back its pages before it is told so."""
        if output.finish_reason is not None:
            self._forget(answer, output.finish_reason)
        try:
            answer.on_output(output)
        except Exception:  # whatever a caller's function raises, the other requests go on
            log.exception("on_output of request %d failed; it is dropped", output.request_id)
            if output.finish_reason is None:
                self._forget(answer, "error")

    def _end_all(self, reason: FinishReason, error: str | None = None) -> None:
        with self._step_lock:
            self._apply_commands()
            for answer in list(self._live.values()):
                self._deliver(answer, answer.end(reason, error))

    def _fail_running(self, error: str) -> None:
        for request in list(self.scheduler.running.values()):
            answer = self._live[request.id]
            self._deliver(answer, answer.end("error", error))

    def _forget(self, answer: Answer, reason: FinishReason) -> None:
        self.scheduler.remove(answer.request)
        del self._live[answer.request.id]
        self._finished[reason] += 1

    # ------------------------------------------------------------------ checks

    def _num_waiting(self) -> int:
        return self._submitted + len(self.scheduler.waiting)

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise EngineClosed(f"the engine takes no more requests: {self._closed}")

    def _check_tokens(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if len(prompt_ids) == 0:
            raise BadInput("the prompt has no tokens, want at least one")
        named = (
            ("the prompt", prompt_ids),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        )
        for what, ids in named:
            for token in (min(ids), max(ids)) if ids else ():
                if not 0 <= token < self.vocab_size:
                    raise BadInput(
                        f"{what} names token {token}, the model knows 0 to {self.vocab_size - 1}"
                    )
        if params.logprobs is not None and params.logprobs > self.vocab_size:
            raise BadInput(
                f"logprobs is {params.logprobs}, the model knows {self.vocab_size} tokens"
            )
