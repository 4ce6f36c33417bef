"""`sparkwell bench`: kernels beside peers, soaks, models, perplexities, documents of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED, guarded
from sparkwell.cli.output import configure_logging, counting, note, write
from sparkwell.errors import BadInput

bench = typer.Typer(
    help="Time kernels beside their peers; soak them; measure perplexity.", no_args_is_help=True
)

Out = Annotated[Path | None, typer.Option(help="File that records are appended to.")]
Commit = Annotated[str | None, typer.Option(help="What records name.  Default: git's answer.")]
Words = list[str] | None


def kernels(
    op: Annotated[Words, typer.Option("--op", help="An op, or how it starts: mla.")] = None,
    case: Annotated[Words, typer.Option("--case", help="Part of a case's name.")] = None,
    peers: Annotated[
        Path | None, typer.Option(help="File of loaders.  Default: installed packages.")
    ] = None,
    out: Out = None,
    commit: Commit = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time the speed table's cases on this GPU, each once its result is the reference's."""
    command = _command()
    say = note if as_json else _line
    options_ = {"peers": peers, "out": out, "commit": commit, "say": say}
    _end(command.kernels(op or (), case or (), **options_), as_json)


def soak(
    replays: Annotated[int, typer.Option(min=0, help="Of sparse decode.")] = 1_000_000,
    steps: Annotated[int, typer.Option(min=0, help="Of the whole attention step.")] = 100_000,
    layers: Annotated[int, typer.Option(min=0, help="Of linear layers and of experts.")] = 30_000,
    out: Out = None,
    commit: Commit = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Replay one CUDA graph with changing inputs; the same inputs must give the same bits."""
    command = _command()
    say = note if as_json else _line
    _end(command.soaks(replays, steps, layers, out=out, commit=commit, say=say), as_json)


def modelled(
    gpu: Annotated[
        list[str], typer.Option("--gpu", help="A product; may be repeated.", show_default=False)
    ],
    out: Out = None,
    commit: Commit = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """What linear layers take at least on GPUs that are not here, by their compiled code."""
    command = _command()
    say = note if as_json else _line
    _end(command.model(gpu, out=out, commit=commit, say=say), as_json)


def perplexity(
    model: options.Model,
    text: Annotated[Path, typer.Option(help="File of held-out text, UTF-8.", show_default=False)],
    scheme: Annotated[
        Words, typer.Option(help="As of generate; may be repeated, the first is the base.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens that stand alone.")] = 512,
    windows: Annotated[int | None, typer.Option(min=1, help="So many at most.")] = None,
    device: options.Device = "auto",
    arithmetic: Annotated[
        str,
        typer.Option(help="scheme: activations quantized as it says; auto: where the GPU gains."),
    ] = "scheme",
    threads: options.Threads = None,
    out: Out = None,
    commit: Commit = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """How well a model predicts a text, in one or several schemes, and what each of them costs."""
    command = _command()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with counting("windows") as progress:
        entries = command.perplexity(
            model,
            text,
            scheme or (),
            window=window,
            most=windows,
            device=device,
            arithmetic=arithmetic,
            out=out,
            commit=commit,
            say=note if as_json else _line,
            progress=progress,
        )
    _end((entries, []), as_json)


def table(
    records: Annotated[Path, typer.Option(help="Folder of records.")] = Path("bench/records"),
    of: Annotated[str, typer.Option(help="speed, perplexity or modelled.")] = "speed",
    to: Annotated[Path | None, typer.Option("--write", help="File to write.")] = None,
    debug: options.Debug = False,
) -> None:
    """Make a document of speeds, perplexities or modelled times from records."""
    text = _command().table(records, to, of)
    if to is None:
        write(text)


for verb in (kernels, soak, modelled, perplexity, table):
    bench.command()(guarded(verb))


def _command() -> Any:
    configure_logging()
    try:
        from sparkwell.bench import command
    except ImportError as error:  # Triton is for Linux only
        raise BadInput(f"bench needs Triton: {error}; install it where it exists") from None
    return command


def _line(text: str) -> None:
    write(text + "\n")


def _end(found: tuple[list[dict[str, Any]], list[str]], as_json: bool) -> None:
    entries, failures = found
    if as_json:
        write(json.dumps({"records": entries, "failures": failures}) + "\n")
    if failures:
        raise typer.Exit(FAILED)
