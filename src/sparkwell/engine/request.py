"""What a caller asks of the engine, what a request carries through it, and what comes back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sparkwell.errors import BadInput

FinishReason = Literal["stop", "length", "cancelled", "error"]
SEED_RANGE = 2**64  # seeds are taken modulo this: the sampler's counter is 64 bits wide


def _require(condition: bool, name: str, came: object, wanted: str) -> None:
    if not condition:
        raise BadInput(f"SamplingParams: {name} is {came!r}, want {wanted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn and when to stop.

    max_tokens: new tokens at most, >= 1; None: up to the context limit.
    min_tokens: no stop token, and no stop string, before so many new tokens.
    temperature: logits are divided by it; 0 takes the largest logit.
    top_k, top_p, min_p: keep the k likeliest tokens (0: all), the likeliest tokens of total
        probability top_p, the tokens at least min_p times as likely as the likeliest.
    repetition_penalty: > 1 makes tokens of the prompt and the output less likely.
    presence_penalty, frequency_penalty: subtracted once, and once per occurrence in the output.
    seed: the same seed draws the same tokens; None: a random one for each request.
    stop: texts that end the output; they are cut off unless include_stop_str.
    stop_token_ids: tokens that end the output, besides the model's own end tokens.
    ignore_eos: the model's own end tokens do not end the output.
    logprobs: alternatives reported for each token; 0: the drawn token alone; None: nothing.
    logit_bias: token id -> added to its logit.

    Raises: BadInput for a value outside its range.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    include_stop_str: bool = False

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_distribution()
        self._check_stops()
        # Copies: a list or dict that its owner changes later must not change a running request.
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_lengths(self) -> None:
        most = self.max_tokens
        _require(most is None or (_is_int(most) and most >= 1), "max_tokens", most, ">= 1, or None")
        least = self.min_tokens
        _require(_is_int(least) and least >= 0, "min_tokens", least, "an integer >= 0")
        _require(most is None or least <= most, "min_tokens", least, f"at most max_tokens = {most}")
        count = self.logprobs
        _require(
            count is None or (_is_int(count) and count >= 0), "logprobs", count, ">= 0, or None"
        )

    def _check_distribution(self) -> None:
        t, k, p, m = self.temperature, self.top_k, self.top_p, self.min_p
        _require(_is_finite(t) and t >= 0, "temperature", t, "finite and >= 0 (0: greedy)")
        _require(_is_int(k) and k >= 0, "top_k", k, "an integer >= 0 (0: off)")
        _require(_is_finite(p) and 0 < p <= 1, "top_p", p, "0 < top_p <= 1 (1: off)")
        _require(_is_finite(m) and 0 <= m <= 1, "min_p", m, "0 <= min_p <= 1 (0: off)")
        r = self.repetition_penalty
        _require(_is_finite(r) and r > 0, "repetition_penalty", r, "finite and > 0 (1: off)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(_is_finite(value) and -2 <= value <= 2, name, value, "between -2 and 2")
        seed = self.seed
        inside = _is_int(seed) and -SEED_RANGE // 2 <= (seed or 0) < SEED_RANGE
        _require(seed is None or inside, "seed", seed, "an integer of 64 bits, or None")
        for token, bias in self.logit_bias.items():
            good = _is_int(token) and token >= 0 and _is_finite(bias)
            _require(good, "logit_bias", {token: bias}, "token id >= 0 -> finite number")

    def _check_stops(self) -> None:
        _require(not isinstance(self.stop, str), "stop", self.stop, "a tuple of texts, as ('END',)")
        for text in self.stop:
            _require(isinstance(text, str) and text != "", "stop", text, "texts that are not empty")
        for token in self.stop_token_ids:
            _require(_is_int(token) and token >= 0, "stop_token_ids", token, "token ids >= 0")


@dataclass(frozen=True)
class Sampled:
    """A drawn token; log-probability and likeliest alternatives where the request asks for them."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenLogprob:
    """One drawn token: log-probability under the raw logits, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Timing:
    """When a request arrived, drew its first token and finished: time.monotonic seconds."""

    arrival: float
    first_token: float | None
    finished: float | None


@dataclass(frozen=True)
class Output:
    """What one step adds to a request.  The last one carries a finish_reason.

    text, token_ids, logprobs: the new ones only; text lags behind token_ids while it could still
        turn into a stop string or is half a character.
    stop_reason: the stop string or stop token that ended it; None for the model's own end token.
    prompt_tokens, cached_tokens, output_tokens: totals so far; cached_tokens of the prompt were
        found in the cache.
    """

    request_id: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    error: str | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    timing: Timing


OnOutput = Callable[[Output], None]


class State(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One request: its tokens, and how many of them are computed and in which pages.

    prompt_ids: the prompt; output_ids: the tokens drawn so far; all_ids: both in a row.
    limit: most tokens prompt and output may reach together.
    stop_ids: tokens that end it; seed: 64 bits.
    num_computed: leading tokens of all_ids whose cache entries exist.
    pages: physical page of each page_size tokens, in order; they cover num_computed at least.
    cached_tokens: leading prompt tokens that were found in the cache when it was first admitted.
    """

    def __init__(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        limit: int,
        seed: int = 0,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.id = request_id
        self.prompt_ids = tuple(prompt_ids)
        self.params = params
        self.limit = limit
        self.seed = seed % SEED_RANGE
        self.stop_ids = stop_ids
        self.output_ids: list[int] = []
        self.all_ids: list[int] = list(prompt_ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.page_keys: list[bytes] = []  # content key of each full page, as far as asked for
        self.cached_tokens = 0
        self.admitted = False  # has run before: a preempted request keeps its cached_tokens
        self.state = State.WAITING

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next one can be drawn."""
        return len(self.all_ids) - self.num_computed

    @property
    def suppressed(self) -> frozenset[int]:
        """Tokens that must not be drawn next: the stop tokens, before min_tokens."""
        return self.stop_ids if len(self.output_ids) < self.params.min_tokens else frozenset()

    def append(self, token_id: int) -> None:
        """Add a drawn token."""
        self.output_ids.append(token_id)
        self.all_ids.append(token_id)
