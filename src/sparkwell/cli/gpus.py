"""`sparkwell gpus`: what each GPU has and lacks, with the source of every figure."""

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkwell.cli import options
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.cli.tables import plain_table, print_whole
from sparkwell.errors import BadInput

if TYPE_CHECKING:
    from sparkwell.hardware.figures import Figure
    from sparkwell.hardware.gpus import Gpu
    from sparkwell.hardware.targets import Target

USAGE = 2
KIB, GB = 1024, 1e9
Named = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="Product (dgx-spark) or target (sm_121).", show_default=False
    ),
]


def gpus(name: Named = None, as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the GPUs, or show one: memory, rates, instructions it has and lacks, and sources.

    Exits with 0, or with 2 for a name that is not known.
    """
    configure_logging()
    try:
        product, target = (None, None) if name is None else _find(name)
    except BadInput as error:
        if debug:
            raise
        note(f"error: {error}")
        raise typer.Exit(USAGE) from None
    if as_json:
        found: Any
        if target is None:
            from sparkwell.hardware.gpus import GPUS

            found = {"gpus": [product_json(one) for one in GPUS]}
        else:
            found = {"target": target_json(target)}
            if product is not None:
                found = {"gpu": product_json(product), **found}
        write(json.dumps(found) + "\n")
    elif target is None:
        _list()
    else:
        _one(product, target)


def _find(name: str) -> "tuple[Gpu | None, Target]":
    """A product and its target, or a target alone.  Raises BadInput with what is known of both."""
    from sparkwell.hardware.gpus import gpu
    from sparkwell.hardware.targets import TARGETS, target

    try:
        product = gpu(name)
    except BadInput as error:
        try:
            return None, target(name)
        except BadInput:
            known = ", ".join(one.name for one in TARGETS)
            raise BadInput(f"{error}, or a target: {known}") from None
    return product, product.target


# ---------------------------------------------------------------- as JSON


def product_json(gpu: "Gpu") -> dict[str, Any]:
    """name, title, target, aliases, shared_memory; sms, l2, memory, bandwidth and others that are
    known, peaks and measured: [value, unit, source, weak]."""
    return {
        "name": gpu.name,
        "title": gpu.title,
        "target": gpu.target.name,
        "aliases": list(gpu.aliases),
        "shared_memory": gpu.shared_memory,
        **{key: _figure(value) for key, value in _own(gpu)},
        "peaks": {key: _figure(value) for key, value in gpu.peaks.items()},
        "measured": {key: _figure(value) for key, value in gpu.measured.items()},
    }


def _own(gpu: "Gpu") -> "list[tuple[str, Figure]]":
    """The figures of a product that stand by themselves, where they are known."""
    from sparkwell.hardware.figures import Figure

    values = [(field.name, getattr(gpu, field.name)) for field in fields(gpu)]
    return [(name, value) for name, value in values if isinstance(value, Figure)]


def _figure(figure: "Figure") -> dict[str, Any]:
    return {
        "value": figure.value, "unit": figure.unit, "source": figure.source, "weak": figure.weak,
    }  # fmt: skip


def target_json(target: "Target") -> dict[str, Any]:
    """Limits, what code it runs, and each feature with whether it is there."""
    from sparkwell.hardware.targets import MEANINGS, SOURCES

    return {
        "name": target.name,
        "architecture": target.architecture,
        "parts": target.parts,
        "tensor_path": str(target.tensor_path),
        "suffixes": list(target.suffixes),
        "shared_bytes_per_block": target.shared_bytes_per_block,
        "shared_bytes_per_sm": target.shared_bytes_per_sm,
        "blocks_per_sm": target.blocks_per_sm,
        "warps_per_sm": target.warps_per_sm,
        "weak": sorted(target.weak),
        "features": {
            str(feature.name): {
                "has": not target.missing(feature), "meaning": meaning, "source": source,
            }
            for feature, (meaning, source) in MEANINGS.items()
        },
        "sources": SOURCES,
    }  # fmt: skip


# ---------------------------------------------------------------- as text


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _list() -> None:
    from sparkwell.hardware.gpus import GPUS

    console = _console()
    numbers = ("SMs", "GB", "GB/s", "BF16", "FP8", "FP4", "KiB/block")
    table = plain_table("name", "title", "target", *numbers, "products by", right=numbers)
    for gpu in GPUS:
        peaks = [_tera(gpu.peaks.get(key)) for key in ("bf16", "fp8", "fp4")]
        table.add_row(
            gpu.name, gpu.title, gpu.target.name, _plain(gpu.sms, 1), _plain(gpu.memory, GB),
            _plain(gpu.bandwidth, GB), *peaks, str(gpu.target.shared_bytes_per_block // KIB),
            str(gpu.target.tensor_path),
        )  # fmt: skip
    print_whole(console, table)
    console.print(
        "Peaks: dense TFLOP/s with FP32 sums.  ~: from memory, derived, or contradicted somewhere.",
        markup=False,
    )
    console.print("sparkwell gpus NAME shows one with its sources.", markup=False)


def _plain(figure: "Figure", unit: float) -> str:
    return f"{'~' if figure.weak else ''}{figure.value / unit:.0f}"


def _tera(figure: "Figure | None") -> str:
    return "-" if figure is None else _plain(figure, 1e12)


def _one(product: "Gpu | None", target: "Target") -> None:
    console = _console()
    if product is not None:
        shared = ", memory shared with the host" if product.shared_memory else ""
        console.print(f"{product.title}: {product.target.name}{shared}", style="bold", markup=False)
        table = plain_table("figure", "value", "source", right=("value",))
        for name, figure in _figures(product):
            table.add_row(name, _words(figure), figure.source)
        print_whole(console, table)
    console.print(
        f"{target.name}: {target.architecture} ({target.parts}); matrix products by "
        f"{target.tensor_path}",
        style="bold",
        markup=False,
    )
    table = plain_table("limit", "value", right=("value",))
    for field in ("shared_bytes_per_block", "shared_bytes_per_sm", "blocks_per_sm", "warps_per_sm"):
        value = getattr(target, field)
        kib = field.startswith("shared")
        name = field.replace("bytes_", "").replace("_", " ")
        mark = "~" if field in target.weak else ""
        table.add_row(name, f"{mark}{value // KIB} KiB" if kib else f"{mark}{value}")
    print_whole(console, table)
    _features(console, target)


def _figures(product: "Gpu") -> "list[tuple[str, Figure]]":
    found = [({"sms": "SMs", "l2": "L2"}.get(name, name), value) for name, value in _own(product)]
    found += [(f"peak {key}", value) for key, value in product.peaks.items()]
    return found + [(f"measured {key}", value) for key, value in product.measured.items()]


def _words(figure: "Figure") -> str:
    units = {
        "B": (2**20, "MiB"),
        "B/s": (GB, "GB/s"),
        "FLOP/s": (1e12, "TFLOP/s"),
        "Hz": (1e9, "GHz"),
    }
    size, unit = units.get(figure.unit, (1e12 if figure.unit == "OP/s" else 1, figure.unit))
    unit = "TOP/s" if figure.unit == "OP/s" else unit
    if figure.unit == "B" and figure.value >= 2**30:
        size, unit = 2**30, "GiB"
    return f"{'~' if figure.weak else ''}{figure.value / size:,.4g} {unit}"


def _features(console: Any, target: "Target") -> None:
    from sparkwell.hardware.targets import MEANINGS, SOURCES

    table = plain_table("feature", "here", "what it is")
    for feature, (meaning, _) in MEANINGS.items():
        has = not target.missing(feature)
        style = None if has else "red"
        table.add_row(str(feature.name), "yes" if has else "no", meaning, style=style)
    print_whole(console, table)
    sources = dict.fromkeys(source for _, source in MEANINGS.values())
    console.print(f"features: {'; '.join(sources)}", markup=False)
    console.print(f"limits: {'; '.join(dict.fromkeys(SOURCES.values()))}", markup=False)
    suffixes = ", ".join(f"{target.name}{suffix}" for suffix in target.suffixes)
    console.print(f"compilers make code for {suffixes}", markup=False)
