"""Serving until a signal comes, and stopping without breaking answers off."""

import asyncio
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from sparkwell.engine.core import Engine
from sparkwell.errors import BadInput
from sparkwell.server.app import create_app
from sparkwell.server.generation import Lifecycle
from sparkwell.server.limits import Limits

log = logging.getLogger(__name__)

_BACKLOG = 2048  # connections the system keeps until the loop takes them
_BACKSTOP = 5  # seconds for the last 503s to leave before connections are cut


class Server(uvicorn.Server):
    """uvicorn, with a shutdown that answers.

    On SIGTERM or SIGINT: no new connections and no new work (503); running requests may finish for
    `shutdown_timeout` seconds, those left then end with 503.  A second SIGINT stops at once.
    """

    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, shutdown_timeout: float
    ) -> None:
        super().__init__(config)
        self._lifecycle, self._timeout = lifecycle, shutdown_timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal.  uvicorn's own version raises it again in the end, which would turn a
        clean stop into a death by signal."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, then stop."""
        self._lifecycle.draining = True
        deadline = asyncio.create_task(self._break_off_later())
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _break_off_later(self) -> None:
        await asyncio.sleep(self._timeout)
        count = self._lifecycle.break_off_all()
        if count:
            log.warning("shutdown: %d requests had not finished in %g s", count, self._timeout)


def make_server(
    engine: Engine,
    *,
    model_name: str,
    api_key: str | None = None,
    limits: Limits | None = None,
    shutdown_timeout: float = 30.0,
) -> Server:
    """A server that is not listening yet; `run(sockets=[listen(...)])` starts it."""
    app = create_app(engine, model_name=model_name, api_key=api_key, limits=limits)
    config = uvicorn.Config(
        app,
        log_config=None,  # whoever runs the program configures logging
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(shutdown_timeout) + _BACKSTOP,
    )
    return Server(config, app.state.service.lifecycle, shutdown_timeout)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.  Raises: BadInput if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"cannot listen on {host} port {port}: {error}; choose another --host or --port"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    engine: Engine,
    *,
    model_name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
    shutdown_timeout: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.  Starts the engine, and shuts it down in the end.

    on_ready: called with the base URL once the socket listens.
    Raises: BadInput if the address cannot be had.
    """
    if api_key is None and not is_loopback(host):
        log.warning("%s is reachable from other machines and no API key is asked for", host)
    server = make_server(
        engine,
        model_name=model_name,
        api_key=api_key,
        limits=limits,
        shutdown_timeout=shutdown_timeout,
    )
    with listen(host, port) as listener:
        engine.start()
        try:
            if on_ready is not None:
                shown = f"[{host}]" if ":" in host else host
                on_ready(f"http://{shown}:{listener.getsockname()[1]}")
            server.run(sockets=[listener])
        finally:
            engine.shutdown(drain=False)
