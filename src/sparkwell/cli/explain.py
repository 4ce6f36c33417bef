"""`sparkwell explain`: what an error message or an instruction means, and what to do."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.errors import BadInput

if TYPE_CHECKING:
    from sparkwell.explain.match import Found

USAGE = 2
SHOWN = 3  # entries; --json has all
Text = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT...", help="Error message or instruction.  Default: read it from stdin.",
        show_default=False,
    ),
]  # fmt: skip


def explain(text: Text = None, as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Say what an error message or a GPU instruction means: cause, cure and sources.

    Exits with 0 where it is known, 1 where it is not (with what is near), 2 without a text.
    """
    configure_logging()
    from sparkwell.explain import match

    given = " ".join(text) if text else _read()
    try:
        found = match.explain(given)
    except BadInput as error:
        if debug:
            raise
        note(f"error: {error}")
        raise typer.Exit(USAGE) from None
    close = () if found else match.near(given)
    if as_json:
        write(json.dumps(report(found, close), ensure_ascii=False) + "\n")
    elif found:
        for one in found[:SHOWN]:
            write(_words(one) + "\n\n")
        if len(found) > SHOWN:
            write("also: " + ", ".join(one.entry.name for one in found[SHOWN:]) + "\n")
    if not found:
        if not as_json:
            about = f"near: {', '.join(close)}" if close else "nor is anything near"
            note(f"not known; {about}")
        raise typer.Exit(FAILED)


def _read() -> str:
    from sparkwell.explain.match import MOST_TEXT

    return "" if sys.stdin.isatty() else sys.stdin.read(MOST_TEXT)


def report(found: "tuple[Found, ...]", near: tuple[str, ...]) -> dict[str, Any]:
    """entries: [name, matched, cause, cure, targets, sources], best first; near: names, where there
    are none.  targets: with and without the feature that an instruction is, else null."""
    return {
        "entries": [
            {
                "name": one.entry.name,
                "matched": one.text,
                "cause": one.entry.cause,
                "cure": list(one.entry.cure),
                "targets": None
                if one.entry.feature is None
                else {"with": list(one.entry.having), "without": list(one.entry.lacking)},
                "sources": list(one.entry.sources),
            }
            for one in found
        ],
        "near": list(near),
    }


def _words(found: "Found") -> str:
    entry = found.entry
    lines = [entry.name, f"  matched  {found.text}", f"  cause    {entry.cause}"]
    lines += [f"  cure     {cure}" for cure in entry.cure]
    if entry.feature is not None:
        lines.append(f"  on       {', '.join(entry.having)}")
        lines.append(f"  not on   {', '.join(entry.lacking)}")
    return "\n".join([*lines, f"  sources  {'; '.join(entry.sources)}"])
