"""Whether x is quantized for the experts' products, decided by shapes and formats: no torch."""

from collections.abc import Callable

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.moe.schedule import FP4_STEP, GROUP, Problem, regular

Pair = tuple[Problem, Problem]


def narrow(
    pair: Pair, made_for: str, target: Target, asked: str, each: float, few: Callable[[], int]
) -> str | None:
    """Type of both products' operands where x is quantized for them: "fp8", "fp4"; None: it is not.

    pair: the product that widens x and the one that brings it back.  made_for: activations that
    the weights were made for.  each: rows of an expert; "auto" wants more of them than `few`, the
    rows that take as long as reading a weight.
    Raises Unsupported where that was asked for and the weights or the GPU do not allow it.
    """
    wanted = {"fp8-group": "w8a8", "nvfp4": "w4a4"}.get(made_for) if asked == "auto" else asked
    if wanted not in ("w8a8", "w4a4"):
        return None
    why = _lacking(wanted, pair, target)
    if asked == "auto":
        units = Feature.FP8_MMA if wanted == "w8a8" else Feature.FP4_BLOCK_MMA
        if why or target.missing(units) or each <= few():
            return None
    if why:
        raise Unsupported(
            "experts",
            f"{wanted} on {target.name}, {pair[0]}, {pair[1]}",
            {wanted: why},
            'use another arithmetic, or "auto"',
        )
    return "fp8" if wanted == "w8a8" else "fp4"


def _lacking(wanted: str, pair: Pair, target: Target) -> str | None:
    """Why no kernel multiplies so; None where one does."""
    if wanted == "w4a4" and target.missing(Feature.FP4_BLOCK_MMA):
        return "the target has no matrix units that take block scales"
    step = GROUP if wanted == "w8a8" else FP4_STEP
    kind = "fp8-block" if wanted == "w8a8" else "nvfp4"
    if all(regular(p) and p.kind == kind and p.k % step == p.group % GROUP == 0 for p in pair):
        return None
    blocks = f" and blocks of {GROUP} n" if wanted == "w8a8" else ""
    return f"wants rows at multiples of 16 bytes, k of {step} n{blocks} columns"
