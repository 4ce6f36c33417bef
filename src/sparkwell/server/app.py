"""The HTTP application: OpenAI's routes over one engine."""

import hmac
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparkwell import __version__
from sparkwell.engine.core import Engine
from sparkwell.server import chat, completions
from sparkwell.server.answer import Answer, EventStream, at_once
from sparkwell.server.errors import ApiError, install
from sparkwell.server.generation import Generation
from sparkwell.server.limits import Limits, read_body
from sparkwell.server.metrics import CONTENT_TYPE, Metrics
from sparkwell.server.responses import Model
from sparkwell.server.service import Service


def create_app(
    engine: Engine, *, model_name: str, api_key: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """OpenAI's API over a started engine.

    model_name: what clients put into `model`; api_key: asked of every route but /health (metrics
        tell how a service is used, so they are no more public than the service); None: of none.
    The service is at app.state.service; its lifecycle lets a server refuse and break off work.
    """
    service = Service(engine, model_name, limits or Limits(), f"sparkwell-{__version__}")
    app = FastAPI(title="Sparkwell", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    install(app)
    app.add_middleware(_CountResponses, metrics=service.metrics)
    app.include_router(_health(service))
    guard = [] if api_key is None else [Depends(_key_guard(api_key))]
    app.include_router(_metrics(service), dependencies=guard)
    app.include_router(_models(service), dependencies=guard)
    app.include_router(_generation(service), dependencies=guard)
    return app


def _key_guard(api_key: str) -> Callable[[Request], Awaitable[None]]:
    expected = api_key.encode()

    async def require_key(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Header values are bytes that the framework has read as Latin-1.
        matches = hmac.compare_digest(given.strip().encode("latin-1"), expected)
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return require_key


def _health(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        service.lifecycle.refuse_if_draining()
        return JSONResponse({"status": "ok"})

    return router


def _metrics(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _models(service: Service) -> APIRouter:
    router = APIRouter()
    model = Model(
        id=service.model_name, created=service.created, max_model_len=service.max_tokens
    ).model_dump()

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(model)

    return router


def _generation(service: Service) -> APIRouter:
    router = APIRouter()

    async def answer_with(request: Request, generation: Generation, answer: Answer) -> Response:
        if answer.request.stream:
            return EventStream(request, service.lifecycle, generation, answer)
        return await at_once(request, service.lifecycle, generation, answer)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        service.lifecycle.refuse_if_draining()
        body = await read_body(request, service.limits)
        asked, prompts = await run_in_threadpool(chat.prepare, service, body)
        answer = chat.ChatAnswer(service, asked)
        return await answer_with(request, service.start(asked, prompts), answer)

    @router.post("/v1/completions")
    async def text_completions(request: Request) -> Response:
        service.lifecycle.refuse_if_draining()
        body = await read_body(request, service.limits)
        asked, prompts = await run_in_threadpool(completions.prepare, service, body)
        answer = completions.CompletionAnswer(service, asked, prompts)
        return await answer_with(request, service.start(asked, prompts), answer)

    return router


class _CountResponses:
    """ASGI middleware: counts every answer by route pattern and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        status = 500  # an exception that gets this far is answered so by the framework

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        finally:
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.response(route, status)
