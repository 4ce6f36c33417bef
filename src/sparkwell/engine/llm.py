"""LLM: a model folder to completions, without a server."""

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sparkwell.engine.core import Engine, QueueFull, Runner
from sparkwell.engine.pages import PagePool
from sparkwell.engine.request import FinishReason, Output, SamplingParams, Timing, TokenLogprob
from sparkwell.engine.scheduler import Scheduler, check_limits
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadInput, SparkwellError

Prompt = str | Sequence[int]
BACKENDS = ("auto", "reference")  # the same thing while every operation runs its reference


class GenerationError(SparkwellError, RuntimeError):
    """A step failed, and with it the requests that were running.  The log has the traceback."""


class PagedRunner(Runner, Protocol):
    """What `build_runner` returns: a runner and the cache it allocated."""

    num_pages: int
    page_size: int


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    token_ids include the token that ended it; text does not include what ended it, unless asked.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_tokens: int
    cached_tokens: int
    timing: Timing
    stop_reason: str | int | None = None


class LLM:
    """A model ready to answer.

    model: folder, packaged name or Hub id; device, dtype, kv_cache_dtype, backend: "auto" chooses
        by machine and checkpoint; page_size: tokens in a cache page; num_pages: None: as many as
        the runner finds room for.
    max_batch_tokens: rows of one step; max_requests: running at a time.
    max_context: most tokens of prompt and output; None: what the model was made for.
    scheme: None: weights as they are stored; else what plain ones are quantized into while they are
        loaded: "bf16" (nothing), "fp8", "nvfp4", "nvfp4-w4a4" (activations, too).
    enforce_eager: launch the kernels of every step one by one; else decode steps are recorded as
        CUDA graphs when the model is loaded, which takes a while.
    progress: called with bytes done and bytes in all, while a model is downloaded and again while
        its weights are loaded; say: with lines about what follows.

    Raises: BadCheckpoint, Unsupported, BadInput.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        page_size: int = 64,
        num_pages: int | None = None,
        max_batch_tokens: int = 2048,
        max_requests: int = 64,
        max_context: int | None = None,
        backend: str = "auto",
        enforce_eager: bool = False,
        scheme: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        from sparkwell.checkpoints.config import parse_config, read_config
        from sparkwell.checkpoints.locate import locate
        from sparkwell.engine.runner import build_runner

        if backend not in BACKENDS:
            raise BadInput(f"backend is {backend!r}, want one of {', '.join(BACKENDS)}")
        check_limits(max_batch_tokens, max_requests)
        folder = locate(model, progress=progress)
        config = parse_config(read_config(folder), file=folder / "config.json")
        if max_context is not None and not 2 <= max_context <= config.max_position:
            raise BadInput(
                f"max_context is {max_context}, want 2 to {config.max_position}, the positions "
                f"that the model was made for"
            )
        max_context = config.max_position if max_context is None else max_context
        tokenizer = Tokenizer.load(folder)
        runner: PagedRunner = build_runner(
            folder,
            device=device,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            page_size=page_size,
            num_pages=num_pages,
            eos_ids=tokenizer.eos_ids,
            max_requests=max_requests,
            max_context=max_context,
            enforce_eager=enforce_eager,
            scheme=scheme,
            progress=progress,
            say=say,
        )
        pool = PagePool(runner.num_pages, runner.page_size)
        scheduler = Scheduler(pool, max_batch_tokens=max_batch_tokens, max_requests=max_requests)
        self.tokenizer = tokenizer
        self.engine = Engine(
            runner,
            scheduler,
            tokenizer,
            max_context=max_context,
            vocab_size=config.vocab_size,
        )

    @classmethod
    def from_engine(cls, engine: Engine, tokenizer: Tokenizer) -> "LLM":
        """The same interface over an engine that exists already."""
        llm = cls.__new__(cls)
        llm.engine, llm.tokenizer = engine, tokenizer
        return llm

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Completions in the order of the prompts, computed together.

        prompts: a text, a list of token ids, or a list of those; params: one for all, or one each.
        Raises: BadInput before anything is computed; GenerationError if a step fails.
        """
        ids = [self._ids(prompt) for prompt in _as_prompts(prompts)]
        each = _as_params(params, len(ids))
        for prompt, param in zip(ids, each, strict=True):
            self.engine.check(prompt, param)
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        gathered: dict[int, list[Output]] = {}  # in the order of the prompts
        open_ids: set[int] = set()
        waiting = list(zip(ids, each, strict=True))[::-1]
        try:
            while waiting or open_ids:
                while waiting:
                    try:
                        request_id = self.engine.submit(*waiting[-1], on_output=outputs.put)
                    except QueueFull:
                        if not open_ids:
                            raise
                        break
                    waiting.pop()
                    gathered[request_id] = []
                    open_ids.add(request_id)
                output = self._next(outputs)
                gathered[output.request_id].append(output)
                if output.finish_reason is not None:
                    open_ids.remove(output.request_id)
        finally:
            for request_id in open_ids:
                self.engine.cancel(request_id)
        return [_completion(pieces) for pieces in gathered.values()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Output]:
        """Outputs as they come; closing the iterator early cancels the request.

        Raises: BadInput at once; GenerationError after the last output if a step failed.
        """
        ids, params = self._ids(prompt), params or SamplingParams()
        self.engine.check(ids, params)
        return self._stream(ids, params)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None
    ) -> Completion:
        """The assistant's answer to a conversation.

        messages: each {"role": ..., "content": ...}.
        Raises: BadInput, also if the model has no chat template; GenerationError.
        """
        return self.generate(self.tokenizer.chat(messages), params or SamplingParams())[0]

    def close(self) -> None:
        """Cancel what runs; the engine takes no more requests."""
        self.engine.shutdown(drain=False)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(self, ids: list[int], params: SamplingParams) -> Iterator[Output]:
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        request_id = self.engine.submit(ids, params, on_output=outputs.put)
        try:
            while True:
                output = self._next(outputs)
                yield output
                if output.finish_reason is not None:
                    break
        finally:
            self.engine.cancel(request_id)  # nothing happens if it is finished
        _raise_if_failed(output)

    def _next(self, outputs: "queue.SimpleQueue[Output]") -> Output:
        """The next output, from the engine's thread if it has one, else by stepping it."""
        while True:
            try:
                return outputs.get(block=self.engine.is_started)
            except queue.Empty:
                self.engine.step()

    def _ids(self, prompt: Prompt) -> list[int]:
        if not _is_prompt(prompt):
            raise _wrong_prompt(prompt)
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts; one text or one list of token ids is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise _wrong_prompt(prompts)
    if prompts and _is_prompt(prompts):
        return [prompts]  # type: ignore[list-item]
    for item in prompts:
        if not _is_prompt(item):
            raise _wrong_prompt(item)
    return list(prompts)  # type: ignore[arg-type]


def _is_prompt(item: object) -> bool:
    if isinstance(item, bytes | bytearray):  # sequences of integers, but not of tokens
        return False
    return isinstance(item, str) or (isinstance(item, Sequence) and all(map(_is_token, item)))


def _is_token(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _wrong_prompt(came: object) -> BadInput:
    return BadInput(
        f"a prompt is {came!r:.100} ({type(came).__name__}), want a text, a list of token ids, "
        f"or a list of those"
    )


def _as_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if isinstance(params, str | Mapping) or not isinstance(params, Sequence):
        raise BadInput(
            f"params is a {type(params).__name__}, want SamplingParams or a list of them"
        )
    listed = list(params)
    if len(listed) != count:
        raise BadInput(f"{len(listed)} SamplingParams for {count} prompts, want one for each")
    for item in listed:
        if not isinstance(item, SamplingParams):
            raise BadInput(f"params holds {item!r:.100}, want SamplingParams")
    return listed


def _completion(outputs: list[Output]) -> Completion:
    last = outputs[-1]
    _raise_if_failed(last)
    assert last.finish_reason is not None
    logprobs = None
    if last.logprobs is not None:
        logprobs = tuple(entry for output in outputs for entry in output.logprobs or ())
    return Completion(
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        finish_reason=last.finish_reason,
        logprobs=logprobs,
        prompt_tokens=last.prompt_tokens,
        cached_tokens=last.cached_tokens,
        timing=last.timing,
        stop_reason=last.stop_reason,
    )


def _raise_if_failed(output: Output) -> None:
    if output.finish_reason == "error":
        raise GenerationError(f"request {output.request_id} failed: {output.error}")
