"""`sparkwell plan`: does a model fit on a GPU, what runs there, and how fast it can be at best."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.failures import FAILED
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.cli.tables import plain_table, print_whole
from sparkwell.errors import BadCheckpoint, BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from sparkwell.hardware.gpus import Gpu
    from sparkwell.plan.model import Model
    from sparkwell.plan.report import Asked, OnGpu, Row

USAGE = 2
LEGEND = "weights and tokens of one GPU; times: bound / predicted"
SHORT = {
    "memory bandwidth": "bandwidth",
    "launches and their first bytes": "launches",
    "sums over GPUs": "links",
}
Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, built-in name (glm-5.2, deepseek-v3.2, llama-3.1-8b, ...) or Hub id, of "
        "which only the config is fetched.",
        show_default=False,
    ),
]
Gpus = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu", help="Product, such as dgx-spark; several to compare.  Default: this machine's."
    ),
]


def plan(
    model: Name,
    gpu: Gpus = None,
    gpus: Annotated[
        str, typer.Option(help="How many share the model, or fit: as few as it takes.")
    ] = "1",
    scheme: Annotated[
        str | None,
        typer.Option(
            help="bf16, fp8, nvfp4, nvfp4-w4a4, nvfp4-w4a8, nvfp4-experts, nvfp4-fp8 or int4.  "
            "Default: compare them.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens of each request: 8192, 128k.")] = "8k",
    batch: Annotated[int, typer.Option(help="Requests at a time.")] = 1,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--input", help="Tokens of a prompt.  Default: the context.", show_default=False
        ),
    ] = None,
    kv_cache: Annotated[
        str, typer.Option(help="bf16, fp8, or auto: fp8 for models with an indexer.")
    ] = "auto",
    experts: Annotated[
        str, typer.Option(help="Over several GPUs: tp (cut), ep (whole ones), auto.")
    ] = "auto",
    why: Annotated[bool, typer.Option("--why", help="Why other kernels do not serve.")] = False,
    step_tokens: Annotated[
        int, typer.Option(help="Rows of one step: prompts are read in such pieces.")
    ] = 2048,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure: .svg, .png or .pdf.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Does a model fit on a GPU, which kernels run, how fast can it be: all predictions.

    Exits with 0 where it fits on every GPU named, 1 where it does not, 2 for what makes no sense.
    """
    configure_logging()
    from sparkwell.plan import report
    from sparkwell.plan.model import find_model

    try:
        length = report.number(context, "context")
        asked = report.Asked(
            context=length,
            batch=batch,
            input_len=report.number(prompt, "input") if prompt else length,
            scheme=scheme,
            gpus=_count(gpus),
            cache=kv_cache,
            experts=experts,
            step_tokens=step_tokens,
        )
        found = find_model(model)
        products = [_product(name) for name in gpu] if gpu else [_here()]
        plans = [report.plan(found, one, asked) for one in products]
        if plot is not None:
            from sparkwell.plan.plot import plot as draw

            draw(found, plans, asked, plot)
    except (BadInput, BadCheckpoint) as wrong:
        if debug:
            raise
        note(f"error: {wrong}")
        raise typer.Exit(USAGE) from None
    if as_json:
        write(json.dumps(report.as_json(found, plans, asked)) + "\n")
    else:
        _show(found, plans, asked, why)
    if not all(one.fits for one in plans):
        raise typer.Exit(FAILED)


def _count(text: str) -> int | None:
    if text == "fit":
        return None
    if re.fullmatch(r"[0-9]{1,6}", text) is None or int(text) < 1:
        raise BadInput(f"gpus is {text!r}, want a number of at least 1, or fit")
    return int(text)


def _product(name: str) -> "Gpu":
    from sparkwell.hardware.gpus import gpu

    return gpu(name)


def _here() -> "Gpu":
    from sparkwell.hardware.gpus import GPUS
    from sparkwell.hardware.probe import probe

    products = [device.product for device in probe().gpus if device.product is not None]
    if not products:
        known = ", ".join(one.name for one in GPUS)
        raise BadInput(f"no GPU of this machine is known; name one with --gpu: {known}")
    return products[0]


# ---------------------------------------------------------------- as text


def _show(model: "Model", plans: "list[OnGpu]", asked: "Asked", why: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(_heading(model), markup=False)
    for text in model.notes:
        console.print(f"note: {text}", markup=False, style="yellow")
    if len(plans) > 1:
        _compare(console, plans, asked)
    else:
        _one(console, plans[0], asked, why)
    console.print(_caveat(), markup=False, style="dim")


def _heading(model: "Model") -> str:
    c = model.config
    words = [f"{model.parameters / 1e9:.2f} B parameters", f"{c.num_layers} layers"]
    words.append("latent attention" if hasattr(c, "kv_lora_rank") else "grouped-query attention")
    if (index := getattr(c, "indexer", None)) is not None:
        words.append(f"{index.topk} keys of {sum(index.full_layers)} indexers")
    if c.moe:
        words.append(f"{c.moe.topk} of {c.moe.num_experts} experts")
    return f"{model.name} ({c.model_type}; {model.source}): {', '.join(words)}"


def _caveat() -> str:
    from sparkwell.plan.efficiency import error

    typical, worst = error()
    return (
        "Times are predictions.  Bounds: at the GPU's published rates.  Ops that were timed on an "
        f"H200 are predicted within {typical:.0%} there, {worst:.0%} at worst; others, and other "
        "GPUs, by assumption: see docs/plan.md."
    )


def _table(*columns: str) -> Any:
    left = ("scheme", "GPU", "layer", "kernel", "instruction", "binds", "arithmetic", "proven")
    return plain_table(*columns, right=tuple(name for name in columns if name not in left))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _pair(words: Callable[[float], str], bound: float, predicted: float) -> str:
    return f"{words(bound)} / {words(predicted)}"


def _tokens(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 10**6 else f"{count / 1e3:.0f} k"


def _requests(asked: "Asked") -> str:
    return f"{_many(asked.batch)} of {asked.context} tokens"


def _many(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _compare(console: "Console", plans: "list[OnGpu]", asked: "Asked") -> None:
    """One row a product: the scheme that was asked for, or its best."""
    console.print(f"\n{_requests(asked)}, prompts of {asked.input_len}; {LEGEND}:", markup=False)
    table = _table(
        "GPU", "GPUs", "scheme", "fits", "fewest", "weights", "of GB", "tokens", "TPOT ms",
        "tokens/s", "TTFT s", "binds",
    )  # fmt: skip
    for one in plans:
        row = one.chosen
        table.add_row(
            one.gpu.name, str(one.gpus), row.scheme.name, "yes" if row.fits else "no",
            str(one.fewest or "-"), f"{row.memory.weights / 1e9:.1f}",
            f"{row.memory.usable / 1e9:.0f}", _tokens(row.memory.tokens), *_times(row),
            style=None if row.fits else "red",
        )  # fmt: skip
    print_whole(console, table)
    for one in plans:
        _say_why(console, one)


def _times(row: "Row") -> tuple[str, ...]:
    tpot = _pair(_ms, row.tpot.bound, row.tpot.predicted)
    ttft = _pair(_seconds, row.ttft.bound, row.ttft.predicted)
    binds = row.tpot.binds
    return tpot, f"{row.tokens_per_s:.0f}", ttft, SHORT.get(binds, binds)


def _say_why(console: "Console", one: "OnGpu") -> None:
    for reason in one.chosen.why:
        if one.fewest is None:
            fewest = f"; no number of GPUs up to {MOST} does"
        else:
            fewest = f"; {one.fewest} would do" if one.fewest != one.gpus else ""
        text = f"{one.gpus} x {one.gpu.name}, {one.chosen.scheme.name}: {reason}{fewest}"
        console.print(text, markup=False, style="red")


MOST = 64


def _one(console: "Console", one: "OnGpu", asked: "Asked", why: bool) -> None:
    gpu = one.gpu
    rate = f"{gpu.bandwidth.value / 1e9:.0f} GB/s"
    peaks = ", ".join(f"{key.upper()} {peak.value / 1e12:.0f}" for key, peak in gpu.peaks.items())
    console.print(
        f"\n{one.gpus} x {gpu.title} ({gpu.target.name}): {rate}, TFLOP/s {peaks}\n"
        f"{_requests(asked)}, prompts of {asked.input_len}, cache {one.chosen.case.cache}: "
        f"{_cached(one.chosen)}\n{LEGEND}",
        markup=False,
    )
    _schemes(console, one)
    _kernels(console, one, why)
    _crossovers(console, one)
    _over(console, one)


def _cached(row: "Row") -> str:
    held = row.memory
    index = f" ({held.index_token:,} of them the indexer's)" if held.index_token else ""
    return f"{held.token:,} B a token and GPU{index}"


def _schemes(console: "Console", one: "OnGpu") -> None:
    from sparkwell.plan.report import concurrency, max_context

    table = _table(
        "scheme", "fits", "weights", "of GB", "tokens", "TPOT ms", "tokens/s", "TTFT s", "binds",
    )  # fmt: skip
    for row in one.rows:
        style = "bold" if row is one.best else None if row.fits else "red"
        table.add_row(
            row.scheme.name, "yes" if row.fits else "no", f"{row.memory.weights / 1e9:.1f}",
            f"{row.memory.usable / 1e9:.0f}", _tokens(row.memory.tokens), *_times(row), style=style,
        )  # fmt: skip
    print_whole(console, table)
    if one.best is not None:
        row = one.best
        made = row.scheme.loads and one.gpus == 1
        how = "--scheme makes it" if made else "wants such a checkpoint"
        console.print(
            f"best: {row.scheme.name} ({row.scheme.words}; {how}), bound by {row.tpot.binds}",
            markup=False, style="green",
        )  # fmt: skip
        console.print(
            f"caches hold {row.memory.tokens:,} tokens: contexts of up to {max_context(row):,} for "
            f"{_many(row.asked.batch)}, or {_many(concurrency(row))} of {row.asked.context:,}",
            markup=False,
        )
    _say_why(console, one)
    for text in one.chosen.case.share.notes:
        console.print(f"note: {text}", markup=False)


def _kernels(console: "Console", one: "OnGpu", why: bool) -> None:
    console.print(f"\nkernels of one decode step, {one.chosen.scheme.name}:", markup=False)
    table = _table("layer", "arithmetic", "kernel", "instruction", "proven")
    for op in one.kernels:
        kernel = f"{op.kernel.op}:{op.kernel.row}" if op.kernel.row else f"{op.kernel.op}: none"
        proven = op.kernel.proven or ("" if op.kernel.row == "torch" else "no record")
        table.add_row(
            op.layer, op.arithmetic, kernel, op.kernel.emits, proven,
            style=None if op.kernel.row else "red",
        )  # fmt: skip
    print_whole(console, table)
    for op in one.kernels:
        if why or not op.kernel.row:
            for name, reason in op.kernel.refused:
                console.print(f"  {op.layer}: not {name}: {reason}", markup=False, style="dim")


def _crossovers(console: "Console", one: "OnGpu") -> None:
    n, k = one.layer
    console.print(f"a linear layer of {n} x {k}, by rows of x:", markup=False)
    table = _table("arithmetic", "bandwidth-bound up to", "predicted fastest")
    for x in one.crossovers:
        first = f"{x.fastest[0]} to {x.fastest[1]}" if x.fastest else "-"
        table.add_row(x.arithmetic, "-" if x.ridge is None else str(x.ridge), x.lacks or first)
    print_whole(console, table)


def _over(console: "Console", one: "OnGpu") -> None:
    from sparkwell.plan.report import over_batch, over_input

    scheme = one.chosen.scheme.name
    table = _table("batch", "fits", "TPOT ms", "tokens/s", "binds")
    for x in over_batch(one.chosen):
        times, binds = _pair(_ms, x["tpot_bound_s"], x["tpot_s"]), SHORT.get(x["binds"], x["binds"])
        fits = "yes" if x["fits"] else "no"
        table.add_row(str(x["batch"]), fits, times, f"{x['tokens_per_s']:.0f}", binds)
    console.print(f"{scheme}, contexts of {one.chosen.asked.context}:", markup=False)
    print_whole(console, table)
    table = _table("input", "TTFT s", "tokens/s", "binds")
    for x in over_input(one.chosen):
        times = _pair(_seconds, x["ttft_bound_s"], x["ttft_s"])
        binds = SHORT.get(x["binds"], x["binds"])
        table.add_row(str(x["input"]), times, f"{x['tokens_per_s']:.0f}", binds)
    console.print(f"{scheme}, one prompt:", markup=False)
    print_whole(console, table)
