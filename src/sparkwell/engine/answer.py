"""One request's way out: drawn tokens become text, and it is decided whether the answer is over."""

import time

from sparkwell.engine.request import (
    FinishReason,
    OnOutput,
    Output,
    Request,
    Sampled,
    Timing,
    TokenLogprob,
)
from sparkwell.engine.stops import StopStrings
from sparkwell.engine.tokenizer import Tokenizer


class Answer:
    """A request that is not finished, and what has been said of its answer so far.

    on_output: who gets the outputs; tokenizer: turns tokens into text.
    """

    def __init__(self, request: Request, on_output: OnOutput, tokenizer: Tokenizer) -> None:
        self.request, self.on_output = request, on_output
        self._text = tokenizer.detokenizer(request.prompt_ids)
        self._stops = StopStrings(request.params.stop, include=request.params.include_stop_str)
        self._arrival = time.monotonic()
        self._first_token: float | None = None

    def take(self, drawn: Sampled) -> Output:
        """One token more: what it adds, and finish_reason if it is the last one."""
        request, params = self.request, self.request.params
        request.append(drawn.token_id)
        if self._first_token is None:
            self._first_token = time.monotonic()
        early = len(request.output_ids) < params.min_tokens
        reason: FinishReason | None = None
        text, stop, stop_token = "", None, None
        if drawn.token_id in request.stop_ids and not early:
            reason = "stop"
            stop_token = drawn.token_id if drawn.token_id in params.stop_token_ids else None
        if reason is None or params.include_stop_str:
            text = self._text.push(drawn.token_id)
            if not early:  # stop strings begin and end after min_tokens, like stop tokens
                text, stop = self._stops.push(text)
        if stop is not None:
            return self._output("stop", text, drawn, stop)
        if reason is None and len(request.all_ids) >= request.limit:
            reason = "length"
        if reason is not None:
            text += self._stops.flush() + self._text.flush()
        return self._output(reason, text, drawn, stop_token)

    def end(self, reason: FinishReason, error: str | None = None) -> Output:
        """The answer ends without a further token.  Text held back is not shown any more."""
        return self._output(reason, "", error=error)

    def _output(
        self,
        reason: FinishReason | None,
        text: str,
        drawn: Sampled | None = None,
        stop_reason: str | int | None = None,
        error: str | None = None,
    ) -> Output:
        request = self.request
        logprobs: tuple[TokenLogprob, ...] | None = None
        if request.params.logprobs is not None:
            logprobs = ()
            if drawn is not None and drawn.logprob is not None:
                logprobs = (TokenLogprob(drawn.token_id, drawn.logprob, drawn.top),)
        finished = None if reason is None else time.monotonic()
        return Output(
            request_id=request.id,
            text=text,
            token_ids=() if drawn is None else (drawn.token_id,),
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            error=error,
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=request.cached_tokens,
            output_tokens=len(request.output_ids),
            timing=Timing(self._arrival, self._first_token, finished),
        )
