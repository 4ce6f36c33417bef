"""`sparkwell verify`: kernels compiled for any target and checked, or run and compared."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.errors import BadInput

if TYPE_CHECKING:
    from sparkwell.verify.command import Options, Report
    from sparkwell.verify.records import Record

Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="Such as sm_121, or all.  Default: one a kind of tensor core."),
]
Ops = Annotated[
    list[str] | None, typer.Option("--op", help="An op, or a folder of ops.  Default: every one.")
]


def verify(
    target: Targets = None,
    op: Ops = None,
    run: Annotated[
        bool, typer.Option("--run", help="Run on this GPU, as the code of each target.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Compile for every case, not one a row.")
    ] = False,
    small: Annotated[bool, typer.Option("--small", help="Run the small cases only.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    record: Annotated[
        bool, typer.Option("--record", help="Append what was found to bench/records.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compile every kernel for every target and check it; needs no GPU, unless it is to run."""
    configure_logging()
    try:
        from sparkwell.verify.command import Options
    except ImportError as error:  # Triton is for Linux only
        raise BadInput(f"verify needs Triton: {error}; install it where it exists") from None

    wanted = Options(tuple(target or ()), tuple(op or ()), full, jobs or None, small)
    failed, records = (_run if run else _compile)(wanted, as_json)
    if record:
        from sparkwell.verify.records import append, surroundings

        append(one | surroundings() for one in records)
    if failed:
        raise typer.Exit(FAILED)


def _compile(wanted: "Options", as_json: bool) -> tuple[bool, "list[Record]"]:
    from sparkwell.verify.command import verify_compiled
    from sparkwell.verify.records import of_report

    report = verify_compiled(wanted, _progress)
    if as_json:
        write(report.as_json() + "\n")
    else:
        _show(report)
    return bool(report.failures), of_report(report, {})


def _run(wanted: "Options", as_json: bool) -> tuple[bool, "list[Record]"]:
    from sparkwell.verify.command import run_lines, verify_run
    from sparkwell.verify.records import of_outcomes
    from sparkwell.verify.run import FAILED as BAD

    outcomes = verify_run(
        wanted, lambda one: note(f"{one.op} {one.case} as {one.target}: {one.status}"), note
    )
    if as_json:
        write(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    else:
        write("\n".join(run_lines(outcomes)) + "\n")
    return any(one.status == BAD for one in outcomes), of_outcomes(outcomes, {})


def _progress(done: int, total: int) -> None:
    if done == total or sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"compiled {done} of {total}", end=end, file=sys.stderr, flush=True)


def _show(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    from sparkwell.verify.check import in_lines
    from sparkwell.verify.command import in_words, summary

    names = dict.fromkeys(cell.target for cell in report.cells)
    table = Table(box=None)
    for name in ("op", *names):
        table.add_column(name, no_wrap=True)
    for name in dict.fromkeys(cell.op for cell in report.cells):
        cells = [cell for cell in report.cells if cell.op == name]
        colours = ["red" if c.failures else "green" if c.rows else "yellow" for c in cells]
        words = [f"[{x}]{in_words(c)}[/]" for c, x in zip(cells, colours, strict=True)]
        table.add_row(name, *words)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for line in in_lines(report.failures):
        console.print(f"FAILED {line}", style="red", markup=False)
    console.print(summary(report), markup=False)
