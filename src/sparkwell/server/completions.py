"""POST /v1/completions."""

from collections.abc import Iterator, Sequence
from typing import Any

from sparkwell.engine.request import Output, TokenLogprob
from sparkwell.server.answer import Answer, Chunk
from sparkwell.server.logprobs import CompletionLogprobsBuilder
from sparkwell.server.protocol import MAX_CHOICES, CompletionRequest, invalid, parse
from sparkwell.server.responses import CompletionChoice
from sparkwell.server.service import Service


def prepare(service: Service, body: bytes) -> tuple[CompletionRequest, list[list[int]]]:
    """The request and the tokens of each prompt.  Slow for long ones: not for the event loop.

    Raises: ApiError 400, 404.
    """
    request = parse(CompletionRequest, body, service.engine.vocab_size)
    service.check_model(request.model)
    prompts = _listed(request.prompt)
    if not prompts:
        raise invalid("prompt", "is an empty list, want at least one prompt")
    if len(prompts) * request.n > MAX_CHOICES:
        problem = f"{len(prompts)} prompts x n = {request.n} came, want at most {MAX_CHOICES}"
        raise invalid("prompt", problem)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    for text in texts:
        service.limits.check_chars(len(text), service.max_tokens, "prompt")
    tokenizer = service.engine.tokenizer
    tokens = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    for ids in tokens:
        service.check_length(len(ids), request, "prompt")
        strange = next((t for t in ids if not 0 <= t < service.engine.vocab_size), None)
        if strange is not None:
            most = service.engine.vocab_size - 1
            raise invalid("prompt", f"token {strange} came, want token ids from 0 to {most}")
    return request, tokens


def _listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return prompt  # type: ignore[return-value]


class CompletionAnswer(Answer):
    """Words the outputs as a text completion; a stream's pieces and the whole look alike."""

    def __init__(
        self, service: Service, request: CompletionRequest, prompts: list[list[int]]
    ) -> None:
        tokenizer, n = service.engine.tokenizer, request.n
        shown = [""] * len(prompts)
        if request.echo:
            given = _listed(request.prompt)
            shown = [p if isinstance(p, str) else tokenizer.decode(p) for p in given]
        self._echoed = [text for text in shown for _ in range(n)]
        super().__init__(request, service.head("cmpl", "text_completion"), self._echoed)
        self._builders = None
        if request.logprobs is not None:
            with_top = request.logprobs > 0
            self._builders = [
                CompletionLogprobsBuilder(service.names, tokenizer, ids, with_top=with_top)
                for ids in prompts
                for _ in range(n)
            ]

    def opening(self) -> Iterator[Chunk]:
        """The prompts, where they are to be echoed."""
        for choice, text in enumerate(self._echoed):
            if text:
                yield CompletionChoice(index=choice, text=text).model_dump()

    def pieces(self, choice: int, output: Output) -> Iterator[Chunk]:
        """The output's text and log-probabilities, with what ended the choice."""
        if output.text or output.logprobs or output.finish_reason is not None:
            yield self.whole(choice, output.text, output.logprobs or (), output.finish_reason)

    def whole(self, choice: int, text: str, entries: Sequence[TokenLogprob], reason: Any) -> Chunk:
        """A choice, or the next piece of it."""
        logprobs = None if self._builders is None else self._builders[choice].take(entries)
        return CompletionChoice(
            index=choice, text=text, logprobs=logprobs, finish_reason=reason
        ).model_dump()
