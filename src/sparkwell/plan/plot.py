"""A figure of what is planned: tokens a second over the batch, time to the first token over the
input."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparkwell.errors import BadInput
from sparkwell.plan.model import Model
from sparkwell.plan.report import (
    BATCHES,
    LENGTHS,
    Asked,
    OnGpu,
    Row,
    over_batch,
    over_input,
)

KINDS = (".svg", ".png", ".pdf")


def plot(model: Model, plans: Sequence[OnGpu], asked: Asked, to: Path) -> None:
    """Write the figure; a file that stands there stays as it is until the new one is whole.

    Raises BadInput for another kind of file, a folder that does not exist, or without matplotlib.
    """
    if to.suffix.lower() not in KINDS:
        raise BadInput(f"--plot {to}: want a name that ends in {', '.join(KINDS)}")
    if not to.parent.is_dir():
        raise BadInput(f"--plot {to}: there is no folder {to.parent}")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(
            f"--plot needs matplotlib: pip install 'sparkwell[plot]' ({error})"
        ) from None

    matplotlib.rcParams["svg.hashsalt"] = "sparkwell"  # the same figure is the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, row in _rows(plans):
        _curves(left, right, row, label)
    all_requests, first = "tokens a second, all requests", "seconds to the first token"
    _label(left, f"context {asked.context}", "requests at a time", all_requests, BATCHES)
    _label(right, "one prompt", "tokens of the prompt", first, LENGTHS)
    figure.suptitle(f"{model.name}: predictions (dashed: bounds at published rates)")
    _save(figure, to)


def _rows(plans: Sequence[OnGpu]) -> list[tuple[str, Row]]:
    """What has a line: the schemes of one GPU that fit, or each GPU's own choice."""
    if len(plans) > 1:
        rows = [one.chosen for one in plans]
        return [(f"{one.gpus} x {one.gpu.name}, {row.scheme.name}", row)
                for one, row in zip(plans, rows, strict=True)]  # fmt: skip
    (one,) = plans
    rows = [row for row in one.rows if row.fits] or [one.chosen]
    return [(f"{one.gpus} x {one.gpu.name}, {row.scheme.name}", row) for row in rows]


def _curves(left: Any, right: Any, row: Row, label: str) -> None:
    every = over_batch(row)
    batches = [x for x in every if x["fits"]] or every[:1]
    sizes = [x["batch"] for x in batches]
    (line,) = left.plot(sizes, [x["tokens_per_s"] for x in batches], marker="o", label=label)
    bound = [x["batch"] / x["tpot_bound_s"] for x in batches]
    left.plot(sizes, bound, linestyle="--", color=line.get_color(), linewidth=0.8)
    prompts = over_input(row)
    lengths = [x["input"] for x in prompts]
    right.plot(lengths, [x["ttft_s"] for x in prompts], marker="o", color=line.get_color())
    bound = [x["ttft_bound_s"] for x in prompts]
    right.plot(lengths, bound, linestyle="--", color=line.get_color(), linewidth=0.8)


def _label(axes: Any, title: str, x: str, y: str, ticks: Sequence[int]) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    words = [f"{tick // 1024}k" if tick % 1024 == 0 else str(tick) for tick in ticks]
    axes.set_xticks(ticks, words)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", linewidth=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _save(figure: Any, to: Path) -> None:
    """Beside it first, then in its place."""
    kind = to.suffix.lower().removeprefix(".")
    handle, name = tempfile.mkstemp(suffix=to.suffix, prefix=".plot-", dir=to.parent)
    os.close(handle)
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    try:
        figure.savefig(name, format=kind, metadata=dates.get(kind), dpi=150)
        os.chmod(name, 0o644)
        os.replace(name, to)
    except BaseException:
        os.unlink(name)
        raise
