"""Runs code compiled for another target on the GPU at hand.

Triton lowers a kernel for the other target as always; only the PTX it ends with is made to load
here: its target line, and what only newer GPUs have, by exact emulation.  So layouts, addresses,
synchronisation and selection are the other target's own.  What cannot be emulated is refused, and
so is more shared memory than the other target has.
"""

import hashlib
import inspect
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from triton import knobs
from triton.backends.nvidia.compiler import get_ptx_version_from_options

from sparkwell.errors import BadInput, SparkwellError, Unsupported
from sparkwell.hardware.targets import Feature, Target, target
from sparkwell.ops.device import as_target, device_of
from sparkwell.verify import emulate
from sparkwell.verify.compile import Unit, compiled

# What a GPU may lack and still run another target's code, as `rewrite` or ptxas makes up for it.
EMULATED = Feature.FP4_BLOCK_MMA | Feature.FP4_CONVERT | Feature.TMA_GATHER | Feature.FP8_MMA_SYNC
ROW_BYTES = 128  # of a gathered row in shared memory: the widest swizzle, the one form emulated


class WouldNotLoad(SparkwellError):
    """A kernel that takes more shared memory than its target has: a defect, not a limit here."""


class CannotRunHere(Unsupported):
    """Code that this GPU cannot run and that nothing here emulates; it may be right."""


# ---------------------------------------------------------------- instructions

_ARGUMENTS = r"\s+(?P<args>[^;]*);"
_MMA = re.compile(r"mma\.sync\.aligned\.(?P<shape>m16n8k\d+)\.row\.col\.(?P<rest>kind::[\w.:]+)")
_RULES: list[tuple[re.Pattern[str], Callable[[str, list[list[str]]], str]]] = []


def _rule(opcode: str) -> Callable[[Callable[[str, list[list[str]]], str]], None]:
    """Registers how an instruction is made up for: (opcode, operands) -> statements."""

    def add(function: Callable[[str, list[list[str]]], str]) -> None:
        _RULES.append((re.compile(rf"(?<![\w.%])(?P<opcode>{opcode}){_ARGUMENTS}"), function))

    return add


def _operands(text: str) -> list[list[str]]:
    """'{a, b}, c' -> [['a', 'b'], ['c']]; what stands in brackets stays one operand."""
    found = re.finditer(r"\{([^}]*)\}|\[([^\]]*)\]|([^,{}\[\]\s]+)", text)
    return [
        [m[2].strip()] if m[2] is not None else [x.strip() for x in (m[1] or m[3]).split(",")]
        for m in found
    ]


@_rule(r"mma\.sync\.aligned\.\w+\.row\.col\.kind::[\w.:]+")
def _matrix_product(opcode: str, operands: list[list[str]]) -> str:
    match = _MMA.fullmatch(opcode)
    words = re.split(r"[.:]+", match["rest"]) if match else []
    formats = tuple(word for word in words if re.fullmatch(r"e\dm\d", word))
    scaled = "block_scale" in words
    scales = words[-1] if words and words[-1] in ("ue4m3", "ue8m0") else None
    if match is None or len(formats) != 2 or scaled != (scales is not None):
        raise _refused(opcode, "an unknown form")
    nibbles = match["shape"] == "m16n8k64" and formats == ("e2m1", "e2m1")
    if not nibbles and match["shape"] != "m16n8k32":
        raise _refused(opcode, "an unknown shape")
    vector = 1
    if nibbles:
        vector = 4 if "4X" in words else 2
    d, a, b, c, *rest = operands
    selectors: dict[str, Any] = {}
    if scaled:
        try:
            (scale_a,), (byte_a, thread_a), (scale_b,), (byte_b, thread_b) = rest
            selectors = {"byte_a": int(byte_a), "thread_a": int(thread_a)}
            selectors |= {"byte_b": int(byte_b), "thread_b": int(thread_b)}
        except ValueError:
            raise _refused(opcode, "scale selectors that are no constants") from None
        selectors |= {"scale_a": scale_a, "scale_b": scale_b}
    pair = (formats[0], formats[1])
    return emulate.block_scaled_product(
        d, a, b, c, formats=pair, vector=vector, scales=scales, **selectors
    )


@_rule(r"cvt\.rn\.satfinite\.e2m1x2\.f32")
def _to_e2m1(opcode: str, operands: list[list[str]]) -> str:
    (d,), (high,), (low,) = operands
    return emulate.to_e2m1(d, high, low)


@_rule(r"(?:add|sub|mul|fma)[\w.]*\.f32x2")
def _packed(opcode: str, operands: list[list[str]]) -> str:
    return emulate.packed(opcode.removesuffix(".f32x2"), [operand[0] for operand in operands])


@_rule(r"cvt\.rn\.bf16x2\.e[45]m[23]x2")
def _widened(opcode: str, operands: list[list[str]]) -> str:
    (d,), (codes,) = operands
    return emulate.to_bf16(d, codes, opcode.rpartition(".")[2])


@_rule(r"(?:add|sub|fma)[\w.]*\.f32\.b?f16")
def _mixed(opcode: str, operands: list[list[str]]) -> str:
    opcode, _, half = opcode.rpartition(".")
    return emulate.mixed(opcode, half, [operand[0] for operand in operands])


@_rule(r"(?:max|min)[\w.]*\.f32(?=\s+[^,;]+,[^,;]+,[^,;]+,)")
def _of_three(opcode: str, operands: list[list[str]]) -> str:
    return emulate.of_three(opcode, [operand[0] for operand in operands])


@_rule(r"cp\.async\.bulk\.tensor\.2d\.tile::gather4[\w.:]*")
def _gather(opcode: str, operands: list[list[str]]) -> str:
    """Four loads of one row each: the tensor map's box is one row already."""
    head = "cp.async.bulk.tensor.2d.tile::gather4.shared::cta.global.mbarrier::complete_tx::bytes"
    if opcode != head:
        raise _refused(opcode, "an unknown form")
    (to,), (tensor,), (barrier,) = operands
    place = re.fullmatch(r"(%\w+), \{(.*)\}", tensor)
    assert place is not None, tensor
    column, *rows = (word.strip() for word in place[2].split(","))
    base, _, offset = (word.strip() for word in to.partition("+"))
    plain = head.replace(".tile::gather4", "")
    return "\n".join(
        f"{plain} [{base} + {int(offset or 0) + ROW_BYTES * j}], "
        f"[{place[1]}, {{{column}, {row}}}], [{barrier}];"
        for j, row in enumerate(rows)
    )


_REFUSED = re.compile(
    r"tcgen05\.|wgmma\.|\.kind::|\.f32x2|e2m1|e3m2|e2m3|ue8m0|ue4m3|\.b8x16|::gather4|::scatter4"
    r"|\.v8\.b32|\.v4\.b64|redux\.sync\.\w+(?:\.\w+)*\.f32|clusterlaunchcontrol"
)


def _refused(instruction: str, why: str) -> CannotRunHere:
    return CannotRunHere(
        "retarget",
        instruction.strip(),
        {"emulation": why},
        "run it on a GPU of the target itself; verify without --run compiles it",
    )


def rewrite(ptx: str, sm: int, version: str) -> str:
    """PTX that loads on `sm` and does the same.  version: what its assembler reads, as "9.0".

    Raises Unsupported for an instruction that is neither there nor emulated.
    """
    suffix = target(sm).suffixes[-1]
    ptx = re.sub(r"^\.version .*$", f".version {version}", ptx, count=1, flags=re.MULTILINE)
    ptx = re.sub(r"^\.target \w+", f".target sm_{sm}{suffix}", ptx, count=1, flags=re.MULTILINE)
    for pattern, emulation in _RULES:
        ptx = pattern.sub(lambda m, do=emulation: _replaced(m, do), ptx)  # type: ignore[misc]
    for line in ptx.splitlines():
        code = line.split("//")[0].strip()
        if _REFUSED.search(code) and not code.startswith((".file", ".loc", ".b8", '"')):
            raise _refused(code, f"sm_{sm} has no such instruction")
    return ptx


def _replaced(match: re.Match[str], do: Callable[[str, list[list[str]]], str]) -> str:
    """The emulation; a predicate before the instruction guards each of its statements."""
    text = do(match["opcode"], _operands(match["args"]))
    start = match.string.rfind("\n", 0, match.start()) + 1
    before = re.split(r"[;{]", match.string[start : match.start()])[-1].strip()
    if not before.startswith("@"):
        return text
    if text.startswith("{"):
        raise _refused(match[0], "a predicated form")
    first, *others = text.split("\n")
    return "\n".join([first, *(f"{before} {line}" for line in others)])


# ---------------------------------------------------------------- the GPU at hand


def runs_here(wanted: Target, here: Target) -> str | None:
    """Why code for `wanted` cannot run on `here`; None where it can."""
    lacking = here.missing(wanted.features & ~EMULATED)
    if lacking:
        names = ", ".join(str(feature.name) for feature in lacking)
        return f"{here.name} has no {names}"
    emulated = bool(wanted.features & ~here.features & EMULATED)
    if emulated and here.missing(Feature.TMA | Feature.FP8_CONVERT):
        return f"the emulations are written for Hopper and later, this is {here.name}"
    return None


def target_here() -> Target:
    """The target of the GPU at hand.  Raises BadInput without one."""
    if not torch.cuda.is_available():
        raise BadInput("running kernels needs an NVIDIA GPU; without one verify compiles them")
    return device_of(torch.device("cuda")).target


@contextmanager
def retargeted(name: str | int) -> Iterator[Target]:
    """Within this context kernels are chosen and compiled for `name` and run on the GPU at hand.

    Where the GPU is of that target it runs its own code.  Raises BadInput without a GPU or for an
    unknown name, Unsupported for a target whose code cannot run here.
    """
    here, wanted = target_here(), target(name)
    if wanted == here:
        with as_target(here.sm):
            yield here
        return
    if why := runs_here(wanted, here):
        raise _refused(f"code for {wanted.name} on {here.name}", why)
    with as_target(wanted.sm), _lowering(wanted, here):
        yield wanted


@contextmanager
def _lowering(wanted: Target, here: Target) -> Iterator[None]:
    """Within this context Triton lowers for `wanted` and assembles for `here`."""
    before = (knobs.runtime.override_arch, knobs.runtime.add_stages_inspection_hook)
    knobs.runtime.override_arch = f"sm{wanted.sm}"
    knobs.runtime.add_stages_inspection_hook = _hook(wanted, here)
    try:
        yield
    finally:
        knobs.runtime.override_arch, knobs.runtime.add_stages_inspection_hook = before


def prepare(unit: Unit, sm: int) -> None:
    """Compile for a GPU of `sm` what the unit's target runs, into Triton's cache.  Needs no GPU.

    Failures pass: they come again, with their case, when it runs.
    """
    wanted, here = target(unit.sm), target(sm)
    if wanted == here:
        compiled(unit)
        return
    # With a hook installed the launcher counts it as one more argument, in Triton's key too.
    attributes = (*unit.attributes, ((len(unit.signature),), []))
    unit = replace(unit, attributes=attributes)
    with as_target(wanted.sm, sms=1), _lowering(wanted, here), redirect_stdout(io.StringIO()):
        compiled(unit, sm)


def _hook(wanted: Target, here: Target) -> Callable[..., tuple[str, str] | None]:
    """What Triton asks for its stages: the one that makes PTX is replaced."""
    sources = inspect.getsource(inspect.getmodule(rewrite)) + inspect.getsource(emulate)  # type: ignore[arg-type]
    key = f"{wanted.name}-on-{here.name}-{hashlib.sha256(sources.encode()).hexdigest()}"

    def stages_of(
        backend: Any = None,
        stages: Any = None,
        options: Any = None,
        language: Any = None,
        capability: Any = None,
    ) -> tuple[str, str] | None:
        if backend is None:  # asked before each launch
            chosen = device_of(torch.device("cuda")).target
            if chosen != wanted:  # `as_target` does not reach a thread that runs already
                raise _refused(f"a kernel chosen for {chosen.name}", f"code is for {wanted.name}")
            return key, key

        def make_ptx(source: Any, metadata: dict[str, Any]) -> str:
            taken, limit = metadata["shared"], wanted.shared_bytes_per_block
            if taken > limit:
                why = f"takes {taken} bytes of shared memory a block, {wanted.name} has {limit}"
                raise WouldNotLoad(f"a kernel for {wanted.name} {why}")
            ptx = backend.make_ptx(source, metadata, options, wanted.sm)
            version = get_ptx_version_from_options(options, here.sm)
            return rewrite(ptx, here.sm, f"{version // 10}.{version % 10}")

        stages["ptx"] = make_ptx
        return None

    return stages_of


__all__ = [
    "CannotRunHere",
    "WouldNotLoad",
    "prepare",
    "retargeted",
    "rewrite",
    "runs_here",
    "target_here",
]
