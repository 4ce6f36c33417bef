"""`sparkwell inspect`: how a checkpoint is quantized, what it takes, what is wrong with it."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED
from sparkwell.cli.output import configure_logging, loading, note, write
from sparkwell.errors import BadCheckpoint

if TYPE_CHECKING:
    from sparkwell.checkpoints.holdings import Row
    from sparkwell.checkpoints.inspection import Finding, Inspection
    from sparkwell.checkpoints.reader import Checkpoint

UNREADABLE = 2
NAMES_SHOWN = 3  # of the tensors that have one problem; --json lists all
ACTIVATIONS = {
    "none": "",
    "fp8-token": "fp8 per token",
    "fp8-tensor": "fp8 per tensor",
    "fp8-group": "fp8 per 128",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
}

Layers = Annotated[bool, typer.Option("--layers", help="Every layer by itself.")]
Fast = Annotated[bool, typer.Option("--fast", help="Read headers only, no scales.")]
CheckpointName = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder, Hub id (owner/name[@revision]) or packaged name (bard).",
        show_default=False,
    ),
]


def inspect(
    checkpoint: CheckpointName,
    layers: Layers = False,
    fast: Fast = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show how a checkpoint is quantized, and what is wrong with it; loads no weight.

    Exits with 0 where it is sound, 1 where problems were found, 2 where it cannot be read.
    """
    configure_logging()
    from sparkwell.checkpoints.inspection import inspect as look
    from sparkwell.checkpoints.locate import locate

    try:
        with loading(checkpoint) as progress:
            folder = locate(checkpoint, progress=progress)
        with _reading() as progress:
            found = look(folder, _expected, fast=fast, progress=progress)
    except BadCheckpoint as error:
        if debug:
            raise
        note(f"error: {error}")
        raise typer.Exit(UNREADABLE) from None
    if as_json:
        write(json.dumps(report(found, each_layer=layers), ensure_ascii=False) + "\n")
    else:
        _show(found, layers)
    if not found.sound:
        raise typer.Exit(FAILED)


def _expected(
    checkpoint: "Checkpoint",
) -> tuple[Mapping[str, tuple[int, ...]], Callable[[str], bool]]:
    from sparkwell.checkpoints.config import parse_config
    from sparkwell.models.load import expected_tensors, ignored_tensors

    config = parse_config(checkpoint.config, file=checkpoint.folder / "config.json")
    return expected_tensors(config), ignored_tensors(config)


@contextlib.contextmanager
def _reading() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar over the scales' bytes, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("reading scales"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---------------------------------------------------------------- as JSON


def report(found: "Inspection", *, each_layer: bool = False) -> dict[str, Any]:
    """The JSON object; keys and entries always stand in this order.

    checkpoint, architecture, dialect (quant_method, or null), kv_cache (the config's words, or
    null), read ("scales" or "headers"), sound; tensors, parameters, bytes, bits_per_weight of all;
    schemes: [scheme, activations, weights, parameters, bytes, bits_per_weight], largest first;
    layers: the same of the parts that are stored alike, with layers (numbers) and parts (names), or
    of each layer;
    findings: [severity ("problem" or "note"), problem, count, tensors, file, came, wanted, do],
    problems first; `problem` is a fixed text, and came, wanted and do are the first tensor's.
    """
    from sparkwell.checkpoints.holdings import by_part, by_scheme, holdings

    checkpoint, declared = found.checkpoint, found.found.declared
    held = holdings(checkpoint, found.found)
    parameters, nbytes = sum(one.parameters for one in held), sum(one.nbytes for one in held)
    return {
        "checkpoint": str(checkpoint.folder),
        "architecture": checkpoint.config.get("model_type"),
        "dialect": declared.method,
        "kv_cache": declared.cache,
        "read": found.read,
        "sound": found.sound,
        "tensors": len(checkpoint.tensors),
        "parameters": parameters,
        "bytes": nbytes,
        "bits_per_weight": _bits(nbytes, parameters),
        "schemes": [_row(row) for row in by_scheme(held)],
        "layers": [
            {"layers": list(row.layers), "parts": list(row.parts), **_row(row)}
            for row in by_part(held, each_layer=each_layer)
        ],
        "findings": [_finding(finding) for finding in found.findings],
    }


def _row(row: "Row") -> dict[str, Any]:
    return {
        "scheme": row.scheme,
        "activations": row.activations,
        "weights": row.weights,
        "parameters": row.parameters,
        "bytes": row.nbytes,
        "bits_per_weight": _bits(row.nbytes, row.parameters),
    }


def _finding(finding: "Finding") -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "problem": finding.problem,
        "count": max(1, len(finding.tensors)),
        "tensors": list(finding.tensors),
        "file": finding.file,
        "came": finding.came,
        "wanted": finding.wanted,
        "do": finding.do,
    }


def _bits(nbytes: int, parameters: int) -> float:
    return round(8 * nbytes / parameters, 3) if parameters else 0.0


# ---------------------------------------------------------------- as text


def _show(found: "Inspection", each_layer: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sparkwell.checkpoints.holdings import braced, by_part, by_scheme, holdings, ranges

    console = Console(highlight=False)
    checkpoint, method = found.checkpoint, found.found.declared.method
    held = holdings(checkpoint, found.found)
    console.print(
        f"{Path(checkpoint.folder).name}: {checkpoint.config.get('model_type')}, "
        f"{len(checkpoint.tensors)} tensors, {method or 'not quantized'}",
        markup=False,
    )
    made_for = any(one.activations != "none" for one in held)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name, settings in COLUMNS:
        if made_for or name != "activations":
            table.add_column(name, **settings)
    for row in by_part(held, each_layer=each_layer):
        table.add_row(ranges(row.layers), braced(row.parts), *_cells(row, made_for))
    table.add_section()
    for row in by_scheme(held):
        table.add_row("all", "", *_cells(row, made_for))
    console.print(table)
    parameters, nbytes = sum(one.parameters for one in held), sum(one.nbytes for one in held)
    console.print(
        f"{parameters / 1e6:,.1f} M parameters in {_size(nbytes)}, {_bits(nbytes, parameters):.2f} "
        f"bits each"
    )
    for finding in found.findings:
        style = STYLES[finding.severity]
        console.print(_words(finding), markup=False, style=style, soft_wrap=True)
    console.print(_verdict(found), style="green" if found.sound else "red")


COLUMNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("layers", {"no_wrap": True}),
    ("parts", {"overflow": "fold", "ratio": 1}),
    ("stored as", {"no_wrap": True}),
    ("activations", {"no_wrap": True}),
    ("weights", {"justify": "right", "no_wrap": True}),
    ("size", {"justify": "right", "no_wrap": True}),
    ("bits", {"justify": "right", "no_wrap": True}),
)
STYLES = {"problem": "red", "note": "yellow"}


def _cells(row: "Row", made_for: bool) -> tuple[str, ...]:
    activations = (ACTIVATIONS[row.activations],) if made_for else ()
    figures = (str(row.weights), _size(row.nbytes), f"{row.bits:.2f}")
    return (row.scheme, *activations, *figures)


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


def _words(finding: "Finding") -> str:
    """The finding in the lines of an error."""
    few = ", ".join(finding.tensors[:NAMES_SHOWN])
    more = len(finding.tensors) - NAMES_SHOWN
    lines = [f"{finding.severity}: {finding.problem}"]
    lines += [f"  file    {finding.file}"] if finding.file else []
    lines += [f"  tensor  {few}" + (f" and {more} more" if more > 0 else "")] if few else []
    lines += [f"  came    {finding.came}", f"  wanted  {finding.wanted}", f"  do      {finding.do}"]
    return "\n".join(lines)


def _verdict(found: "Inspection") -> str:
    problems = sum(finding.severity == "problem" for finding in found.findings)
    read = "headers and scales" if found.read == "scales" else "headers; scales were not read"
    if not problems:
        return f"sound, by its {read}"
    return f"{problems} problem{'s' if problems > 1 else ''} found, by its {read}"
