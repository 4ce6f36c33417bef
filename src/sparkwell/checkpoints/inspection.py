"""What a checkpoint holds and what is wrong with it, without reading a single weight.

Headers and config tell formats, sizes, names and shapes; scales are read to find those that are no
numbers.  A problem is something that `load_model` refuses or that other programs stumble over; a
note is something to know, or wrong in a layer that nothing uses.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparkwell.checkpoints.header import TensorInfo
from sparkwell.checkpoints.reader import CUT_OFF, Checkpoint
from sparkwell.checkpoints.schemes import differences
from sparkwell.checkpoints.stored import PLAIN, Stored, mismatch
from sparkwell.checkpoints.survey import Survey, survey
from sparkwell.checkpoints.values import (
    NO_INPUT_SCALE,
    check_factor,
    check_scales,
)
from sparkwell.errors import BadCheckpoint
from sparkwell.hardware.targets import TARGETS, Feature

Severity = Literal["problem", "note"]
Progress = Callable[[int, int], None]  # bytes done, bytes in all
Shapes = Mapping[str, tuple[int, ...]]
Ignored = Callable[[str], bool]
Expected = Callable[[Checkpoint], tuple[Shapes, Ignored]]
FUSED = (  # what other programs multiply as one weight
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
READ = ("scales", "global", "input")
MISSING, SURPLUS, SHAPE = "missing tensor", "unexpected tensor", "tensor of a wrong shape"
DTYPE = "tensor of a wrong dtype"
OTHERS_FORMATS = "formats differ in weights that others fuse"
OTHERS_SCALES = "scales of the whole tensor differ in weights that others fuse"
OTHERS_INPUTS = "scales of the activations differ in weights that others fuse"
BELONG = "check that config.json and the weights belong to the same model and version"


@dataclass(frozen=True)
class Finding:
    """One thing found, and every tensor that has it; `came` is of the first of them."""

    severity: Severity
    problem: str
    tensors: tuple[str, ...]
    file: str
    came: str
    wanted: str
    do: str


@dataclass(frozen=True)
class Inspection:
    """Everything found.  read: "scales", or "headers" where values were not looked at."""

    checkpoint: Checkpoint
    found: Survey
    read: Literal["headers", "scales"]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return all(finding.severity != "problem" for finding in self.findings)


class _Findings:
    """Collects errors and notes; equal problems become one finding with all their tensors."""

    def __init__(self) -> None:
        self._all: dict[tuple[Severity, str], list[BadCheckpoint]] = defaultdict(list)

    def add(self, error: BadCheckpoint, severity: Severity = "problem") -> None:
        self._all[severity, error.problem].append(error)

    def listed(self) -> list[Finding]:
        """Problems before notes, each in the order in which it was met first."""
        findings = []
        for (severity, problem), errors in self._all.items():
            names = tuple(error.tensor for error in errors if error.tensor)
            first = errors[0]
            file = "" if first.file is None else str(first.file)
            findings.append(
                Finding(severity, problem, names, file, first.came, first.wanted, first.do)
            )
        return sorted(findings, key=lambda finding: finding.severity != "problem")

    def first(self) -> BadCheckpoint:
        """What was met first."""
        return next(iter(self._all.values()))[0]

    @property
    def files(self) -> set[str]:
        """Files that something was said of, as a whole."""
        return {str(e.file) for errors in self._all.values() for e in errors if e.tensor is None}


def inspect(
    folder: Path,
    expected: Expected,
    *,
    fast: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Look at the checkpoint in a folder.

    expected: what the model needs: name -> shape, and which surplus names are fine; raises
    BadCheckpoint where the config describes no model known here.
    fast: read no scales, headers only.
    Raises BadCheckpoint where nothing can be read.
    """
    findings = _Findings()
    opened = Checkpoint.open(folder, report=findings.add)
    if not opened.tensors:
        raise findings.first()
    try:
        wanted, ignored = expected(opened)
    except BadCheckpoint as error:
        known = "no model of architecture" not in error.problem
        findings.add(error, "problem" if known else "note")
        wanted, ignored = None, lambda name: False
    found = survey(opened)
    for wrong in found.errors:
        findings.add(wrong)
    if found.declared.method is not None:
        for module, wrong in found.broken.items():
            findings.add(wrong, "note" if ignored(f"{module}.weight") else "problem")
    if wanted is not None:
        _check_names(opened, found, wanted, ignored, findings)
    _check_input_scales(found, ignored, findings)
    if not fast:
        _check_values(opened, found, ignored, findings, progress)
    _remark(found, findings)
    return Inspection(opened, found, "headers" if fast else "scales", tuple(findings.listed()))


# ---------------------------------------------------------------- names and shapes


def _check_names(
    checkpoint: Checkpoint,
    found: Survey,
    wanted: Shapes,
    ignored: Ignored,
    findings: _Findings,
) -> None:
    held = found.shapes(checkpoint)
    broken = tuple(f"{module}." for module in found.broken)
    differ = differences(checkpoint, wanted, ignored=ignored)
    for problem, names in zip((MISSING, SURPLUS, SHAPE), differ.values(), strict=True):
        for name in names:
            if problem == MISSING and name.startswith(broken):
                continue  # said already
            came = str(list(held[name])) if name in held else "absent"
            want = str(list(wanted[name])) if name in wanted else "absent"
            stored = found.weights.get(name)
            info = checkpoint.tensors.get(name) or (stored and next(iter(stored.parts.values())))
            file = info.file if info else None
            findings.add(
                BadCheckpoint(problem, file=file, tensor=name, came=came, wanted=want, do=BELONG)
            )
    for name in wanted:
        info = checkpoint.tensors.get(name)
        if info is None or name in found.weights or name.startswith(broken):
            continue
        if info.dtype not in PLAIN:
            findings.add(mismatch(DTYPE, info, info.dtype, " or ".join(PLAIN)))


def _check_input_scales(found: Survey, ignored: Ignored, findings: _Findings) -> None:
    for name, stored in found.weights.items():
        promise = found.declared.promise(name.removesuffix(".weight"))
        static = promise is not None and promise.static and not ignored(name)
        if promise is not None and static and "input" not in stored.parts:
            info = next(iter(stored.parts.values()))
            findings.add(
                BadCheckpoint(
                    "scale of the activations is missing",
                    file=info.file,
                    tensor=name,
                    came=f"{stored.kind} without one",
                    wanted=f"a static scale, says {promise.said}",
                    do="calibrate again so that every expert is reached; here the scale is then "
                    "taken from the activations themselves",
                )
            )


# ---------------------------------------------------------------- values


def _check_values(
    checkpoint: Checkpoint,
    found: Survey,
    ignored: Ignored,
    findings: _Findings,
    progress: Progress | None,
) -> None:
    """Every scale of every weight, each tensor once; of fused weights, whether they agree."""
    todo = {
        info.name: (role, info, stored.name)
        for stored in found.weights.values()
        for role, info in stored.parts.items()
        if role in READ
    }
    total, done = sum(info.nbytes for _, info, _ in todo.values()), 0
    factors: dict[str, float] = {}
    damaged = findings.files

    def say(error: BadCheckpoint, weight: str) -> None:
        if error.problem != CUT_OFF or str(error.file) not in damaged:
            findings.add(error, "note" if ignored(weight) else "problem")

    for name, (role, info, weight) in todo.items():
        try:
            value = _check_part(checkpoint, role, info)
            if value is not None:
                factors[name] = value
        except BadCheckpoint as error:
            say(error, weight)
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    for stored in found.weights.values():
        try:
            if stored.check is not None and (remark := stored.check(stored, checkpoint)):
                findings.add(remark, "note")
        except BadCheckpoint as error:
            say(error, stored.name)
    _check_fused(found, factors, findings)


def _check_part(checkpoint: Checkpoint, role: str, info: TensorInfo) -> float | None:
    """The value, where it is a single one."""
    data = checkpoint.read(info.name)
    if role == "scales":
        check_scales(info, data)
        return None if data.numel() != 1 else float(data.float())
    value = float(data.float())
    if role == "input":
        check_factor(info, value, problem=NO_INPUT_SCALE)
    else:
        check_factor(info, value)
    return value


def _check_fused(found: Survey, factors: Mapping[str, float], findings: _Findings) -> None:
    """Notes weights which other programs fuse and which differ in format or in a whole's scale."""
    modules = {name.removesuffix(".weight"): stored for name, stored in found.weights.items()}
    first = {group[0]: group for group in FUSED}
    for name, stored in modules.items():
        parent, _, leaf = name.rpartition(".")
        group = first.get(leaf)
        if group is None:
            continue
        shards = [shard for other in group if (shard := modules.get(f"{parent}.{other}"))]
        if len(kinds := {f"{shard.kind}, {shard.activations}" for shard in shards}) > 1:
            findings.add(
                _unequal(OTHERS_FORMATS, stored, "scales", " and ".join(sorted(kinds))), "note"
            )
        for role, problem in (("global", OTHERS_SCALES), ("input", OTHERS_INPUTS)):
            if role == "global" and stored.kind == "fp8-rows":
                role = "scales"
            parts = [shard.parts[role].name for shard in shards if role in shard.parts]
            values = [factors[part] for part in parts if part in factors]
            if len(set(values)) > 1:
                came = f"{', '.join(f'{value:.6g}' for value in values)} for {', '.join(group)}"
                findings.add(_unequal(problem, stored, role, came), "note")


def _unequal(problem: str, stored: Stored, role: str, came: str) -> BadCheckpoint:
    info = stored.parts[role]
    wanted = "nothing: each keeps its own here, so results are exact"
    do = "know that programs which fuse them refuse this, or take one scale for all"
    return BadCheckpoint(problem, file=info.file, tensor=info.name, came=came, wanted=wanted, do=do)


# ---------------------------------------------------------------- notes


def _remark(found: Survey, findings: _Findings) -> None:
    declared = found.declared
    if found.cache_scales or declared.cache:
        said = declared.cache or "nothing in the config"
        findings.add(
            BadCheckpoint(
                "scales of a quantized KV cache are not used",
                file=declared.file,
                tensor=found.cache_scales[0].name if found.cache_scales else None,
                came=f"{said}; {len(found.cache_scales)} tensors",
                wanted="nothing: an FP8 cache takes its scales from what it stores",
                do="choose the cache's format with --kv-cache-dtype",
            ),
            "note",
        )
    if declared.integer_activations:
        findings.add(
            BadCheckpoint(
                "made for integer activations",
                file=declared.file,
                came=f"config_groups with input_activations of type int, in {declared.file.name}",
                wanted="activations as they are, or FP8 or FP4",
                do="nothing: the activations stay as they are (W4A16)",
            ),
            "note",
        )
    made_for = [stored for stored in found.weights.values() if stored.activations == "nvfp4"]
    if made_for:
        native = [row.name for row in TARGETS if not row.missing(Feature.FP4_BLOCK_MMA)]
        info = next(iter(made_for[0].parts.values()))
        findings.add(
            BadCheckpoint(
                "made for NVFP4 activations (W4A4)",
                file=info.file,
                tensor=None,
                came=f"{len(made_for)} weights",
                wanted=f"FP4 tensor cores with block scales: {', '.join(native)}",
                do="nothing: on other GPUs the activations stay as they are (W4A16)",
            ),
            "note",
        )
