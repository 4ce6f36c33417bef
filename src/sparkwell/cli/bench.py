"""`sparkwell bench`: kernels beside their peers, soaks, and the document made of both."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED, guarded
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.errors import BadInput

bench = typer.Typer(help="Time kernels beside their peers; soak them.", no_args_is_help=True)

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
    out: Out = None,
    commit: Commit = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Replay one CUDA graph with changing inputs; the same inputs must give the same bits."""
    command = _command()
    say = note if as_json else _line
    _end(command.soaks(replays, steps, out=out, commit=commit, say=say), as_json)


def table(
    records: Annotated[Path, typer.Option(help="Folder of records.")] = Path("bench/records"),
    to: Annotated[Path | None, typer.Option("--write", help="File to write.")] = None,
    debug: options.Debug = False,
) -> None:
    """Make the document of speeds from records."""
    text = _command().table(records, to)
    if to is None:
        write(text)


for verb in (kernels, soak, table):
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
