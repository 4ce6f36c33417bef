"""The requests of OpenAI's chat and completions endpoints, with the usual extensions (top_k, ...).

A field is used, or it is refused by name: what would change the answer is never dropped silently.
null means a field's default, as OpenAI's own schema has it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparkwell.engine.request import SamplingParams
from sparkwell.server.errors import ApiError

MAX_STOPS = 16  # OpenAI takes 4
MAX_CHOICES = 128  # prompts x n of one HTTP request
MAX_CHAT_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5

_INT64 = 2**63

# Fields that only label a request: they never change what is generated.
LABELS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)

# Fields not served, with the values that ask for nothing.  null always passes.
NO_OP: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (),  # passes where it equals n, see below
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class StreamOptions(BaseModel):
    """stream_options: what a stream carries besides the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(BaseModel):
    """What both endpoints share.  max_tokens None: the endpoint's default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list, max_length=MAX_STOPS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def token_limit(self) -> int | None:
        """Most new tokens of one choice; None: up to the context limit."""
        return self.max_tokens

    def num_alternatives(self) -> int | None:
        """SamplingParams.logprobs."""
        return None

    def check(self, vocab_size: int) -> None:
        """Rules between fields.  Raises: ApiError 400."""
        if len(self.stops) > MAX_STOPS:
            raise invalid("stop", f"{len(self.stops)} texts came, want at most {MAX_STOPS}")
        if "" in self.stops:
            raise invalid("stop", "an empty text came, want texts of at least one character")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "came without stream; set stream to true or drop it")
        for token in self.logit_bias:
            if not (token.isascii() and token.isdigit() and int(token) < vocab_size):
                wanted = f"want token ids from 0 to {vocab_size - 1} as keys"
                raise invalid("logit_bias", f"key {token!r} came, {wanted}")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts, whichever way they came."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, choice: int) -> SamplingParams:
        """The engine's parameters for choice 0 ... n-1: each draws with a seed of its own."""
        seed = self.seed
        return SamplingParams(
            max_tokens=self.token_limit(),
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # -1 means off elsewhere
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if seed is None else (seed + choice + _INT64) % (2 * _INT64) - _INT64,
            stop=self.stops,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=self.num_alternatives(),
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            include_stop_str=self.include_stop_str_in_output,
        )


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions.  messages are taken apart in chat.py."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_CHAT_LOGPROBS)

    def token_limit(self) -> int | None:
        """max_completion_tokens, or max_tokens as it was called before."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def num_alternatives(self) -> int | None:
        """top_logprobs alternatives beside each drawn token."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self, vocab_size: int) -> None:
        """Rules between fields.  Raises: ApiError 400."""
        super().check(vocab_size)
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise invalid("max_tokens", "differs from max_completion_tokens; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "came without logprobs; set logprobs to true or drop it")


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_COMPLETION_LOGPROBS)

    def token_limit(self) -> int | None:
        """max_tokens; 16 where none came, as in OpenAI's API."""
        return 16 if self.max_tokens is None else self.max_tokens

    def num_alternatives(self) -> int | None:
        """logprobs alternatives beside each drawn token."""
        return self.logprobs

    def check(self, vocab_size: int) -> None:
        """Rules between fields.  Raises: ApiError 400."""
        super().check(vocab_size)
        if self.echo and self.logprobs is not None:
            raise invalid(
                "echo",
                "came with logprobs, but a prompt's log-probabilities are not computed; drop one",
            )


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


def invalid(param: str, problem: str, *, code: str = "invalid_value") -> ApiError:
    """400 for one field: `param: problem`."""
    return ApiError(400, f"{param}: {problem}", param=param, code=code)


def parse(kind: type[AnyRequest], body: bytes, vocab_size: int) -> AnyRequest:
    """A request from the bytes of its JSON.

    Raises: ApiError 400 naming the field for bad JSON, for unknown and unserved fields, and for
    values of the wrong type or outside their range.
    """
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        came = type(data).__name__
        raise ApiError(400, f"the body is a JSON {came}, want an object", code="invalid_json")
    given = {name: value for name, value in data.items() if value is not None}
    fields = {}
    for name, value in given.items():
        if name in kind.model_fields:
            fields[name] = value
        elif name == "best_of" and value == given.get("n", 1):
            continue
        elif name in NO_OP:
            if value not in NO_OP[name]:
                problem = "is not supported by this server; drop it"
                raise invalid(name, problem, code="unsupported_parameter")
        elif name not in LABELS:
            raise invalid(name, "no such field", code="unknown_parameter")
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        raise _first_problem(error) from None
    request.check(vocab_size)
    return request


def _first_problem(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    name = problems[0]["loc"][0]
    same = [problem for problem in problems if problem["loc"][0] == name]
    if same[0]["type"] == "missing":
        return invalid(str(name), "is missing", code="missing_required_parameter")
    wanted = " or ".join(dict.fromkeys(_place(p["loc"][1:]) + p["msg"] for p in same[:4]))
    return invalid(str(name), f"{wanted}; {_shortly(same[0]['input'])} came")


def _place(loc: Sequence[int | str]) -> str:
    """[2] and the like inside the field; the names of a union's members say nothing."""
    index = "".join(f"[{part}]" for part in loc if isinstance(part, int))
    return f"at {index}: " if index else ""


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
