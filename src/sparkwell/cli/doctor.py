"""`sparkwell doctor`: which GPU kernels of a package run on a GPU, how, and why others do not."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkwell.cli import options
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.errors import SparkwellError

if TYPE_CHECKING:
    from sparkwell.doctor.asked import Asked
    from sparkwell.doctor.examine import Examined
    from sparkwell.doctor.images import Host
    from sparkwell.doctor.images import Level as Depth
    from sparkwell.doctor.own import Compiled
    from sparkwell.doctor.sources import Source

UNREADABLE = 2


class Level(StrEnum):
    """How deep to look."""

    HEADERS = "headers"
    KERNELS = "kernels"
    INSTRUCTIONS = "instructions"


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WHAT]...",
        help="Installed distributions, wheels, folders, libraries (.so, .dll), .cubin, .ptx, "
        ".fatbin.  Default: everything installed that carries GPU code.",
        show_default=False,
    ),
]
Gpus = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        help="A product or target, such as dgx-spark, rtx-4090, sm_121; may be repeated.  "
        "Default: this machine's.",
        show_default=False,
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="CPU beside the GPU: x86_64 or aarch64.  Default: that GPU's, else this machine's.",
        show_default=False,
    ),
]
Python = Annotated[
    str | None,
    typer.Option(
        "--python", help="With --download: Python version, like 3.12.", show_default=False
    ),
]


def doctor(
    what: Inputs = None,
    gpu: Gpus = None,
    host: HostOption = None,
    level: Annotated[
        Level, typer.Option(help="What is read of each image; deeper is slower.")
    ] = Level.KERNELS,
    every: Annotated[bool, typer.Option("--all", help="All targets, as a matrix.")] = False,
    why: Annotated[bool, typer.Option("--why", help="All rows, families and gates.")] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Look at the wheels pip would install.")
    ] = False,
    python: Python = None,
    compile_own: Annotated[
        bool, typer.Option("--compile", help="Compile our own kernels for the GPU, too.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say which GPU kernels of a package run on a GPU, how, and why others do not; needs no GPU.

    Exits with 0 where every kernel family runs, 1 where some do not, 2 where something cannot be
    read or was not understood.
    """
    configure_logging()
    from sparkwell.doctor.asked import all_targets, asked, read_host
    from sparkwell.doctor.images import Level as Depth
    from sparkwell.doctor.report import exit_code

    try:
        beside = read_host(host) if host else None
        gpus = all_targets(beside) if every else asked(gpu or (), beside)
        if download and not what:
            raise SparkwellError("--download wants the name of a distribution, like vllm==0.33.0")
        depth = Depth[level.name]
        found, errors = _examine(what or [], gpus, depth, _Fetch(download, python))
        compiled = _compile(gpus) if compile_own else ()
    except SparkwellError as error:
        if debug:
            raise
        note(f"error: {error}")
        raise typer.Exit(UNREADABLE) from None
    if as_json:
        _write_json(found, gpus, depth, errors, compiled)
    else:
        _show(found, gpus, depth, compiled, errors=errors, matrix=every, why=why)
    broken = any(one.failures for one in compiled)
    if code := max(exit_code(found, bool(errors)), int(broken)):
        raise typer.Exit(code)


class _Fetch:
    """Whether names mean wheels to download, and for which Python."""

    def __init__(self, wanted: bool, python: str | None) -> None:
        self.wanted, self.python = wanted, python


def _examine(
    what: Sequence[str], gpus: "Sequence[Asked]", depth: "Depth", fetch: _Fetch
) -> "tuple[list[Examined], list[str]]":
    """Everything that was asked about, and what is wrong with the rest."""
    from sparkwell.doctor.examine import examine
    from sparkwell.doctor.images import Level as Depths
    from sparkwell.doctor.sources import installed

    found: list[Examined] = []
    errors: list[str] = []
    with _looking() as progress:
        if not what:
            for one in installed():
                headers = examine(one, (), Depths.HEADERS, code=False, progress=progress)
                if headers.files:
                    found.append(examine(one, gpus, depth, progress=progress))
            return found, errors
        for text in what:
            for host_gpus in _by_host(gpus) if fetch.wanted else [gpus]:
                try:
                    source = _source(text, host_gpus, fetch)
                except SparkwellError as error:
                    errors.append(str(error))
                    continue
                found.append(examine(source, host_gpus, depth, progress=progress))
    return found, errors


def _by_host(gpus: "Sequence[Asked]") -> "list[list[Asked]]":
    """GPUs with the same host together: each host has its own wheel."""
    groups: dict[Host | None, list[Asked]] = {}
    for gpu in gpus:
        groups.setdefault(gpu.host, []).append(gpu)
    return list(groups.values())


def _source(text: str, gpus: "Sequence[Asked]", fetch: _Fetch) -> "Source":
    from sparkwell.doctor.asked import this_host
    from sparkwell.doctor.download import download
    from sparkwell.doctor.sources import from_name, from_path, looks_like_a_path

    path = Path(text)
    if looks_like_a_path(text) or (path.exists() and not fetch.wanted):
        return from_path(text, path)
    if fetch.wanted:
        wheel = download(text, gpus[0].host or this_host() or "x86_64", fetch.python)
        return from_path(wheel.name, wheel)
    return from_name(text)


def _compile(gpus: "Sequence[Asked]") -> "tuple[Compiled, ...]":
    from sparkwell.doctor.own import compile_own

    return compile_own(tuple(dict.fromkeys(gpu.target for gpu in gpus)))


@contextlib.contextmanager
def _looking() -> Iterator[Callable[[str], None]]:
    """The name of the file that is read, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda name: status.update(Text(f"reading {name[-80:]}"))


def _write_json(
    found: "Sequence[Examined]",
    gpus: "Sequence[Asked]",
    depth: "Depth",
    errors: Sequence[str],
    compiled: "Sequence[Compiled]",
) -> None:
    from dataclasses import asdict

    from sparkwell.doctor.report import as_json

    made = as_json(found, gpus, depth, errors) | {"own": [asdict(one) for one in compiled]}
    write(json.dumps(made, ensure_ascii=True) + "\n")


def _show(
    found: "Sequence[Examined]",
    gpus: "Sequence[Asked]",
    depth: "Depth",
    compiled: "Sequence[Compiled]",
    *,
    errors: Sequence[str],
    matrix: bool,
    why: bool,
) -> None:
    from rich.console import Console

    from sparkwell.doctor.table import show, show_matrix, show_own

    console = Console(highlight=False)
    if matrix:
        show_matrix(found, gpus, console)
    else:
        show(found, gpus, depth, console, why)
    if compiled:
        show_own(compiled, console)
    if not found and not errors:
        note("nothing that is installed carries GPU code")
    for text in errors:
        note(f"error: {text}")
