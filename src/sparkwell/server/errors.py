"""What a client reads when a request fails: OpenAI's error body, and the exceptions behind it."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sparkwell.engine.core import EngineClosed, QueueFull
from sparkwell.errors import BadInput

log = logging.getLogger(__name__)

RETRY_AFTER = "1"  # seconds; a queue of generations moves within about that
CLIENT_GONE = 499  # what logs and metrics call an answer that nobody waits for

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A refused request.

    status: HTTP status; message: what came, what was wanted; param: the field at fault;
    code: OpenAI's machine-readable reason; headers: extra ones for the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, object]:
        """{"error": {message, type, param, code}}, as OpenAI's clients expect it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


class ClientGone(Exception):
    """The client hung up; whatever is answered now reaches nobody."""


def shutting_down() -> ApiError:
    """The answer to work that a stopping server does not begin, or breaks off."""
    return ApiError(
        503,
        "the server is shutting down; send the request again elsewhere or later",
        code="shutting_down",
        headers={"Retry-After": RETRY_AFTER},
    )


def install(app: FastAPI) -> None:
    """Answer every failure of the app in OpenAI's shape."""

    def respond(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def _refused(request: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(BadInput)
    async def _bad_input(request: Request, error: BadInput) -> JSONResponse:
        return respond(ApiError(400, str(error), code="invalid_value"))

    @app.exception_handler(QueueFull)
    async def _queue_full(request: Request, error: QueueFull) -> JSONResponse:
        headers = {"Retry-After": RETRY_AFTER}
        return respond(ApiError(429, str(error), code="queue_full", headers=headers))

    @app.exception_handler(EngineClosed)
    async def _closed(request: Request, error: EngineClosed) -> JSONResponse:
        return respond(shutting_down())

    @app.exception_handler(ClientGone)
    async def _gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return respond(ApiError(error.status_code, _http_message(request, error), headers=headers))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return respond(ApiError(500, "internal error; the server's log has the details"))


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"no such route: {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.url.path} does not take {request.method}; use {allowed}"
    return str(error.detail)
