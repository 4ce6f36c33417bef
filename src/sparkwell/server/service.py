"""What the endpoints share: the engine, the limits, and the way from a body to running choices."""

import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property

from sparkwell.engine.core import Engine
from sparkwell.server.errors import ApiError
from sparkwell.server.generation import Generation, Job, Lifecycle
from sparkwell.server.limits import Limits
from sparkwell.server.logprobs import TokenNames
from sparkwell.server.metrics import Metrics
from sparkwell.server.protocol import GenerationRequest


@dataclass
class Service:
    """One served model.

    model_name: what clients call it; fingerprint: system_fingerprint of every answer.
    """

    engine: Engine
    model_name: str
    limits: Limits
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    @cached_property
    def metrics(self) -> Metrics:
        """The registry behind /metrics."""
        return Metrics(self.engine)

    @cached_property
    def names(self) -> TokenNames:
        """Tokens' texts, for log-probabilities."""
        return TokenNames(self.engine.tokenizer)

    @property
    def max_tokens(self) -> int:
        """Most tokens of prompt and output together: the context limit, or the whole cache."""
        return min(self.engine.max_context, self.engine.scheduler.max_tokens)

    def check_model(self, name: str) -> None:
        """Raises: ApiError 404 for a model that is not served here."""
        if name != self.model_name:
            raise ApiError(
                404,
                f"model {name!r} is not served here; {self.model_name!r} is",
                param="model",
                code="model_not_found",
            )

    def check_length(self, prompt_tokens: int, request: GenerationRequest, param: str) -> None:
        """Raises: ApiError 400 where prompt and output cannot fit the context."""
        if prompt_tokens == 0:
            raise ApiError(400, f"{param}: is empty", param=param, code="invalid_value")
        wanted = request.token_limit()
        if prompt_tokens + (wanted or 1) > self.max_tokens:
            output = "room for an answer" if wanted is None else f"{wanted} tokens of output"
            raise ApiError(
                400,
                f"{param}: {prompt_tokens} tokens of prompt and {output} do not fit; prompt and "
                f"output may have {self.max_tokens} tokens together",
                param=param,
                code="context_length_exceeded",
            )

    def start(self, request: GenerationRequest, prompts: list[list[int]]) -> Generation:
        """n choices for each prompt, in that order.

        Raises: ApiError 503 while stopping; BadInput, QueueFull, EngineClosed of the engine.
        """
        self.lifecycle.refuse_if_draining()
        jobs: list[Job] = [
            (prompt, request.sampling(choice)) for prompt in prompts for choice in range(request.n)
        ]
        generation = Generation(self.engine, self.metrics)
        generation.submit(jobs)
        return generation

    def head(self, prefix: str, kind: str) -> dict[str, object]:
        """What every body and every chunk of one answer begins with."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model_name,
            "system_fingerprint": self.fingerprint,
        }
