"""OpenAI's response bodies."""

from typing import Literal

from pydantic import BaseModel

from sparkwell.engine.request import Output

Finish = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """One alternative at a position.  bytes: null where the token has no text of its own."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """One drawn token with its alternatives, likeliest first."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """logprobs of a chat choice."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """logprobs of a completion choice; text_offset counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class PromptTokensDetails(BaseModel):
    """cached_tokens: prompt tokens whose cache entries were there already."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a whole HTTP request: each prompt counted once, every choice's output."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class UsageCounter:
    """Adds up Usage from the last output seen of each choice.

    n: choices of one prompt.  Prompt and cached tokens are those of its first choice, since its
    others find the prompt in the cache only because the first one has put it there.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._last: dict[int, Output] = {}

    def see(self, choice: int, output: Output) -> None:
        """Remember a choice's newest output."""
        self._last[choice] = output

    def total(self) -> Usage:
        """The counts so far."""
        first = [output for choice, output in self._last.items() if choice % self._n == 0]
        prompt = sum(output.prompt_tokens for output in first)
        cached = sum(output.cached_tokens for output in first)
        completion = sum(output.output_tokens for output in self._last.values())
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Delta(BaseModel):
    """What a chunk adds; fields that were not set are left out of the JSON."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(BaseModel):
    """One choice's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class CompletionChoice(BaseModel):
    """One of n continuations; in a stream, one part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Model(BaseModel):
    """One served model.  max_model_len: tokens of prompt and output together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sparkwell"
    max_model_len: int
