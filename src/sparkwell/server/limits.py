"""How much a client may send, and reading a body within it."""

import asyncio
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from sparkwell.errors import BadInput
from sparkwell.server.errors import ApiError, ClientGone

# No tokenizer of a served family packs more characters into a token on average, save for long runs
# of one character; the bound only has to keep texts out that could never fit.
CHARS_PER_TOKEN = 64

_CLOSE = {"Connection": "close"}  # what is left of the body must not be read as the next request


@dataclass(frozen=True)
class Limits:
    """Bounds on what one HTTP request may cost before it is a request of the engine.

    max_body_bytes: of the JSON; body_seconds: to receive it in; max_prompt_chars: text that is
        tokenised, None: CHARS_PER_TOKEN x the context limit.

    Raises: BadInput for a bound that lets nothing in.
    """

    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    max_prompt_chars: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "body_seconds", "max_prompt_chars"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BadInput(f"Limits: {name} is {value}, want more than 0")

    def check_chars(self, count: int, max_context: int, param: str) -> None:
        """Raises: ApiError 400 for a text too long to be worth tokenising."""
        most = self.max_prompt_chars or CHARS_PER_TOKEN * max_context
        if count > most:
            raise ApiError(
                400,
                f"{param}: {count} characters came, want at most {most}: the context limit is "
                f"{max_context} tokens; shorten the text",
                param=param,
                code="context_length_exceeded",
            )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The request's JSON bytes.

    The size counts while it arrives, since a chunked body does not announce it.  A refused body is
    read on and thrown away up to the same size again: a client that is still writing would meet a
    reset connection instead of the answer.

    Raises: ApiError 415 for another content type, 413 beyond the limit, 408 if it takes too long;
    ClientGone.
    """
    _check_headers(request)
    declared = request.headers.get("content-length", "")
    too_long = declared.isdigit() and int(declared) > limits.max_body_bytes
    body = bytearray()
    size = 0
    waits_for_leave = request.headers.get("expect", "").lower() == "100-continue"
    try:
        async with asyncio.timeout(limits.body_seconds):
            if not (too_long and waits_for_leave):
                async for chunk in request.stream():
                    size += len(chunk)
                    too_long = too_long or size > limits.max_body_bytes
                    if size > 2 * limits.max_body_bytes:
                        break
                    if not too_long:
                        body += chunk
    except TimeoutError:
        if not too_long:
            problem = f"the body did not arrive within {limits.body_seconds:g} s"
            raise ApiError(408, problem, code="timeout", headers=_CLOSE) from None
    except ClientDisconnect:
        raise ClientGone from None
    if too_long:
        raise ApiError(
            413,
            f"the body is too large, want at most {limits.max_body_bytes} bytes",
            code="body_too_large",
            headers=_CLOSE,
        )
    return bytes(body)


def _check_headers(request: Request) -> None:
    # A browser sends JSON to another site only after asking that site, which never agrees here;
    # any other content type it would send unasked.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"content type {kind or 'none'} came, want application/json",
            code="unsupported_media_type",
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(
            415,
            f"content encoding {encoding} came, want the body as it is",
            code="unsupported_media_type",
        )
