"""What must hold for compiled kernels; each failure says where, what was wanted and what came."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sparkwell.hardware.targets import Target
from sparkwell.ops.schedule import NO_MMA
from sparkwell.verify.case import Case
from sparkwell.verify.compile import Built
from sparkwell.verify.matrix import Matrix, Table, Use, unreached

SLACK = 1024  # bytes by which shared memory may differ from its formula: barriers, reductions
STAGED = 8192  # more, in small cases: what odd strides keep from being loaded 16 bytes at a time
UNMODELLED = 4096  # bytes a kernel may take whose op states no formula
COPIES = r"^(LDGSTS|UTMALDG|UBLKCP)\b"  # cp.async, tensor copies, bulk copies: what pipelines are

# Kernels in which a read under way, as a barrier is told, is of what warps store, here of scales.
# Barriers order reads and stores (PTX ISA, memory consistency model); what copy engines write is of
# another proxy.
WRITTEN_BY_WARPS = frozenset({"fp8_products_kernel"})


@dataclass(frozen=True)
class Failure:
    """One thing that does not hold.  kernel, case: "" where the failure is about a row."""

    op: str
    row: str
    target: str
    case: str
    kernel: str
    wanted: str
    came: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.case, self.kernel) if part)
        return (
            f"{self.op} row {self.row} on {self.target}{f' ({where})' if where else ''}: "
            f"want {self.wanted}; got {self.came}"
        )


def in_lines(failures: Iterable[Failure]) -> list[str]:
    """A line each; one that is the same on several targets is said once."""
    targets: dict[Failure, list[str]] = {}
    for failure in failures:
        targets.setdefault(replace(failure, target=""), []).append(failure.target)
    return [str(replace(one, target=", ".join(names))) for one, names in targets.items()]


def check(uses: Iterable[Use], built: Mapping[str, Built]) -> list[Failure]:
    """Failures of each launch, and of all launches that one choice led to."""
    groups: dict[tuple[int, int, int], list[Use]] = {}
    for use in uses:
        groups.setdefault((id(use.case), use.target.sm, id(use.choice)), []).append(use)
    return [failure for group in groups.values() for failure in _check_choice(group, built)]


def _check_choice(group: Sequence[Use], built: Mapping[str, Built]) -> list[Failure]:
    """One choice may launch several kernels: main and combine.  The rows' words are about all."""
    failures = [failure for use in group for failure in _check_kernel(use, built[use.unit.key])]
    results = [built[use.unit.key] for use in group]
    if any(result.error for result in results):
        return failures
    use, row, formula = group[0], group[0].choice.row, group[0].choice.shared_bytes
    taken = max(result.shared for result in results)
    if formula is not None:
        least, most = _around(formula, use.case)
        if not least <= taken <= most:
            wanted = f"{least} to {most} bytes of shared memory, by the row's formula {formula}"
            failures.append(_failure(use, wanted, f"{taken}"))
    if formula is None and taken > UNMODELLED:
        wanted = f"a formula for shared memory above {UNMODELLED} bytes"
        failures.append(_failure(use, wanted, f"none, and {taken} bytes"))
    if row.emits != NO_MMA and not any(result.holds(row.emits) for result in results):
        failures.append(_failure(use, f"an instruction like {row.emits}", _tensor_core(results)))
    stages = row.schedule.num_stages
    if stages > 1 and not any(result.holds(COPIES) for result in results):
        failures.append(
            _failure(use, f"copies in flight, as num_stages is {stages}", f"none like {COPIES}")
        )
    return failures


def _around(formula: int, case: Case) -> tuple[int, int]:
    """Bytes a kernel may take by its formula, which is written for published shapes.

    Small cases are odd on purpose: buffers that a short loop never fills are left out.
    """
    if case.size == "small":
        return formula // 2 - SLACK, formula + STAGED
    return formula - SLACK, formula + SLACK


def _check_kernel(use: Use, result: Built) -> list[Failure]:
    kernel = use.unit.kernel.name
    if result.error is not None:
        return [_failure(use, "machine code", result.error, kernel)]
    failures = []
    limit = use.target.shared_bytes_per_block
    if result.shared > limit:
        wanted = f"at most {limit} bytes of shared memory a block"
        failures.append(_failure(use, wanted, f"{result.shared}", kernel))
    if result.spills:
        came = f"{result.spills} spill instructions, {result.stack} bytes of stack"
        failures.append(
            _failure(use, "no register spilled", f"{came}, {result.registers} registers", kernel)
        )
    if result.early and kernel not in WRITTEN_BY_WARPS:
        wanted = "reads of shared memory settled before a barrier is told"
        failures.append(_failure(use, wanted, "; ".join(result.early[:3]), kernel))
    return failures


def tensor_core(instructions: Mapping[str, int]) -> dict[str, int]:
    """Those that the tensor cores run: HMMA, QGMMA, UTCHMMA; not HFMA2.MMA, which has the word."""
    return {name: n for name, n in instructions.items() if name.split(".")[0].endswith("MMA")}


def _tensor_core(results: Sequence[Built]) -> str:
    found = {n.split(".")[0] for result in results for n in tensor_core(result.instructions or {})}
    if not found:
        return "no tensor-core instruction"
    return f"tensor-core instructions {', '.join(sorted(found))}"


def _failure(use: Use, wanted: str, came: str, kernel: str = "") -> Failure:
    row, case = use.choice.row.name, f"{use.case.op} {use.case.name}"
    return Failure(use.choice.op, row, use.target.name, case, kernel, wanted, came)


def check_reach(
    matrix: Matrix, tables: Sequence[Table], targets: Sequence[Target]
) -> list[Failure]:
    """Rows that no case reaches on a target they name, and cases that no target serves.

    The second needs all targets to be known, so it is said only of cases refused on every one of
    several.
    """
    failures = [
        Failure(table.name, row.name, one.name, "", "", "a case that reaches this row", "none")
        for table, row, one in unreached(matrix, tables, targets)
    ]
    failures += [
        Failure(
            bad.case.op, "-", bad.target.name, f"{bad.case.op} {bad.case.name}", "",
            "launches recorded from meta tensors", bad.why,
        )
        for bad in matrix.refusals if bad.broken
    ]  # fmt: skip
    for case in dict.fromkeys(refusal.case for refusal in matrix.refusals if not refusal.broken):
        mine = [refusal for refusal in matrix.refusals if refusal.case == case]
        if len(mine) == len(targets) > 1:
            wanted, place = "one target that serves the case", f"{case.op} {case.name}"
            failures.append(Failure(case.op, "-", "any", place, "", wanted, mine[0].why))
    return failures
