"""`sparkwell serve`: OpenAI's HTTP API."""

from typing import Annotated

import typer

from sparkwell.cli import options
from sparkwell.cli.model import open_model
from sparkwell.cli.output import configure_logging, note
from sparkwell.env import API_KEY
from sparkwell.errors import Unsupported


def serve(
    model: options.Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key asked of clients.  Others on this machine can read command lines: "
            f"{API_KEY.name} in the environment is the better place."
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model; MODEL if not given.")
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Running at a time.")] = 64,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in one step.")] = 2048,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Of one request.")] = 8 << 20,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds running requests get after SIGTERM.")
    ] = 30.0,
    device: options.Device = "auto",
    dtype: options.ComputeDtype = options.Dtype.AUTO,
    scheme: options.Scheme = None,
    kv_cache_dtype: options.KvCacheDtype = options.CacheDtype.AUTO,
    page_size: options.PageSize = 64,
    num_pages: options.NumPages = None,
    max_context: options.MaxContext = None,
    enforce_eager: options.EnforceEager = False,
    threads: options.Threads = None,
    log_level: Annotated[options.LogLevel | None, typer.Option(help="Of stderr.")] = None,
    debug: options.Debug = False,
) -> None:
    """Serve OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics."""
    configure_logging(log_level)
    try:
        from sparkwell.server.limits import Limits
        from sparkwell.server.serve import run
    except ModuleNotFoundError as error:
        raise Unsupported(
            "serve",
            f"module {error.name}",
            {"installation": "the server's packages are not installed"},
            "pip install 'sparkwell[serve]'",
        ) from error
    llm = open_model(
        model,
        threads=threads,
        device=device,
        dtype=dtype,
        scheme=scheme,
        kv_cache_dtype=kv_cache_dtype,
        page_size=page_size,
        num_pages=num_pages,
        max_batch_tokens=max_batch_tokens,
        max_requests=max_requests,
        max_context=max_context,
        enforce_eager=enforce_eager,
    )
    name = served_model_name or model
    run(
        llm.engine,
        model_name=name,
        host=host,
        port=port,
        api_key=api_key or API_KEY.get() or None,
        limits=Limits(max_body_bytes=max_body_bytes),
        shutdown_timeout=shutdown_timeout,
        on_ready=lambda url: note(f"{name} at {url}/v1"),
    )
