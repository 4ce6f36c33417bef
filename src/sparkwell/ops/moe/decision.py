"""Whether x is quantized for the experts' products, decided by shapes and formats: no torch."""

from collections.abc import Callable

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import Feature, Target
from sparkwell.ops.moe.schedule import FP4_STEP, GROUP, Problem, regular

Pair = tuple[Problem, Problem]
MADE_FOR = {"fp8-group": "w8a8", "nvfp4": "w4a4"}  # activations: arithmetic that takes them
UNITS = {"w8a8": Feature.FP8_MMA, "w4a4": Feature.FP4_BLOCK_MMA}  # that gain by it


def narrow(
    pair: Pair, made_for: str, target: Target, asked: str, each: float, few: Callable[[], int]
) -> str | None:
    """Type of both products' operands where x is quantized for them: "fp8", "fp4"; None: it is not.

    pair: the product that widens x and the one that brings it back.  made_for: activations that
    the weights were made for.  each: rows of an expert; "auto" wants more of them than `few`, the
    rows that take as long as reading a weight.
    Raises Unsupported where that was asked for and the weights or the GPU do not allow it.
    """
    wanted = MADE_FOR.get(made_for) if asked == "auto" else asked
    if wanted not in UNITS:
        return None
    why = _lacking(wanted, pair, target)
    if asked == "auto" and (why or target.missing(UNITS[wanted]) or each <= few()):
        return None
    if why:
        raise Unsupported(
            "experts",
            f"{wanted} on {target.name}, gate_up {_words(pair[0])}, down {_words(pair[1])}",
            {wanted: why},
            'use another arithmetic, or "auto"',
        )
    return "fp8" if wanted == "w8a8" else "fp4"


def in_words(bits: int, made_for: str, target: Target, few: Callable[[], int]) -> str:
    """What "auto" does with weights of so many bits: for a log.  few: as `narrow` has it."""
    plain, wanted = f"w{bits}a16", MADE_FOR.get(made_for)
    if wanted is None:
        return f"{plain} (made for activations {made_for!r})"
    if missing := target.missing(UNITS[wanted]):
        names = ", ".join(str(feature.name) for feature in missing)
        return f"{plain} (not {wanted}: {target.name} has no {names})"
    step = GROUP if wanted == "w8a8" else FP4_STEP
    fits = f"where both products have a multiple of {step} columns"
    return f"{plain} up to {few()} rows an expert, {wanted} above {fits}"


def _lacking(wanted: str, pair: Pair, target: Target) -> str | None:
    """Why no kernel multiplies so; None where one does."""
    if wanted == "w4a4" and target.missing(Feature.FP4_BLOCK_MMA):
        return "the target has no matrix units that take block scales"
    step = GROUP if wanted == "w8a8" else FP4_STEP
    kind = "fp8-block" if wanted == "w8a8" else "nvfp4"
    for name, p in zip(("gate_up", "down"), pair, strict=True):
        if p.kind != kind:
            return f"{name} is {p.kind}, wants {kind}"
        if p.k % step:
            return f"an expert's row of {name} has {p.k} columns, wants a multiple of {step}"
        if p.group % GROUP:
            return f"a scale of {name} serves {p.group} columns, wants a multiple of {GROUP}"
        if not regular(p):
            return f"{name}: wants bf16 or fp16 x and rows at multiples of 16 bytes"
    return None


def _words(p: Problem) -> str:
    return f"{p.kind} [E, {2 * p.n if p.gated else p.n}, {p.k}] by {p.type}"
