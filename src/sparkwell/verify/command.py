"""`sparkwell verify` without a command line: what to check, the report, its lines."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import Target
from sparkwell.verify.cases import all_cases
from sparkwell.verify.check import Failure, check, check_reach, in_lines, tensor_core
from sparkwell.verify.compile import Built, build_all
from sparkwell.verify.matrix import (
    Use,
    cases_of,
    folder_of,
    one_a_row,
    record,
    tables,
    targets_named,
)
from sparkwell.verify.retarget import runs_here, target_here
from sparkwell.verify.run import FAILED, Outcome, run_cases

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What to verify.

    targets: names, or "all"; none: one a kind of tensor core.  ops: ops or folders; none: all.
    full: every case; otherwise one case of each row.  A run takes every case but timed ones;
    small: the small ones only.
    """

    targets: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    full: bool = False
    jobs: int | None = None
    small: bool = False


@dataclass(frozen=True)
class Cell:
    """One op on one target.  rows: those compiled.  refused: cases it does not serve there."""

    op: str
    target: str
    rows: tuple[str, ...]
    kernels: int
    registers: int
    shared: int
    refused: int
    failures: int


@dataclass(frozen=True)
class Report:
    """Everything compiled and checked; nothing failed where `failures` is empty."""

    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    compiled: int
    kernels: tuple[dict[str, Any], ...] = field(repr=False)

    def as_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(
            {
                "compiled": self.compiled,
                "failures": [asdict(failure) for failure in self.failures],
                "cells": [asdict(cell) for cell in self.cells],
                "kernels": list(self.kernels),
            },
            indent=1,
        )


def verify_compiled(options: Options, progress: Progress | None = None) -> Report:
    """Compile what the cases launch on the targets, and check it.

    Raises BadInput for unknown names.
    """
    targets = targets_named(options.targets)
    cases = cases_of(options.ops)
    matrix = record(cases, targets)
    uses = matrix.uses
    if not options.full:  # where no target is named, a short run is meant
        uses = one_a_row(uses, every_form=bool(options.targets))
    built = build_all([use.unit for use in uses], jobs=options.jobs, progress=progress)
    asked = {case.op for case in cases}
    others = {case.op for case in all_cases()} - asked
    # A table that ops share is judged where all of them were asked for.
    found = tables({folder_of(op) for op in asked} - {folder_of(op) for op in others})
    failures = [*check_reach(matrix, found, targets), *check(uses, built)]
    refused = Counter(
        (refusal.case.op, refusal.target.sm) for refusal in matrix.refusals if not refusal.broken
    )
    cells = [
        _cell(op, one, uses, built, failures, refused[op, one.sm])
        for op in dict.fromkeys(case.op for case in cases)
        for one in targets
    ]
    return Report(tuple(cells), tuple(failures), len(built), tuple(_kernels(uses, built)))


def verify_run(
    options: Options, say: Callable[[Outcome], None], note: Callable[[str], None]
) -> list[Outcome]:
    """Run the cases on the GPU at hand, as each target's code; None named: the GPU's own.

    note: told which targets cannot run here, where others can.
    Raises BadInput without a GPU or for unknown names, Unsupported where no target can run here.
    """
    here = target_here()
    wanted = targets_named(options.targets) if options.targets else (here,)
    reasons = {one.name: why for one in wanted if (why := runs_here(one, here))}
    if len(reasons) == len(wanted):
        do = "name a target this GPU can run, or leave --run out to compile only"
        raise Unsupported("verify --run", ", ".join(reasons), reasons, do)
    for name, why in reasons.items():
        note(f"{name} is not run: {why}")
    sizes = ("small",) if options.small else ("small", "model")
    cases = [case for case in cases_of(options.ops) if case.size in sizes]
    outcomes: list[Outcome] = []
    for one in wanted:
        if one.name not in reasons:
            outcomes += run_cases(cases, one, say, options.jobs)
    return outcomes


def _cell(
    op: str,
    one: Target,
    uses: Sequence[Use],
    built: dict[str, Built],
    failures: Sequence[Failure],
    refused: int,
) -> Cell:
    mine = [use for use in uses if (use.case.op, use.target) == (op, one)]
    results = [built[use.unit.key] for use in mine]
    wrong = [f for f in failures if f.target == one.name and f.case.split(" ")[0] == op]
    return Cell(
        op=op,
        target=one.name,
        rows=tuple(dict.fromkeys(f"{use.choice.op}:{use.choice.row.name}" for use in mine)),
        kernels=len({use.unit.key for use in mine}),
        registers=max((result.registers for result in results), default=0),
        shared=max((result.shared for result in results), default=0),
        refused=refused,
        failures=len(wrong),
    )


def _kernels(uses: Sequence[Use], built: dict[str, Built]) -> list[dict[str, Any]]:
    """One entry a compilation: where from, and what came out."""
    entries: dict[str, dict[str, Any]] = {}
    for use in uses:
        result = built[use.unit.key]
        entry = entries.setdefault(
            use.unit.key,
            {
                "op": use.choice.op,
                "row": use.choice.row.name,
                "target": use.target.name,
                "kernel": use.unit.kernel.name,
                "formula": use.choice.shared_bytes,
                **{k: v for k, v in asdict(result).items() if k != "instructions"},
                "tensor": tensor_core(result.instructions or {}),
                "cases": [],
            },
        )
        entry["cases"].append(f"{use.case.op} {use.case.name}")
    return list(entries.values())


def lines(report: Report, kernels: bool = False) -> list[str]:
    """The report in plain text: ops x targets, then, if asked, each kernel, then the failures."""
    targets = list(dict.fromkeys(cell.target for cell in report.cells))
    ops = list(dict.fromkeys(cell.op for cell in report.cells))
    cells = {(cell.op, cell.target): cell for cell in report.cells}
    width = max(map(len, [*ops, "op"]))
    text = ["  ".join(["op".ljust(width), *(name.ljust(12) for name in targets)]).rstrip()]
    for op in ops:
        words = (in_words(cells[op, name]).ljust(12) for name in targets)
        text.append("  ".join([op.ljust(width), *words]).rstrip())
    for one in report.kernels if kernels else ():
        text.append(
            f"{one['target']:7} {one['op']} {one['row']} {one['kernel']}: "
            f"{one['registers']} registers, {one['spills']} spills, {one['shared']} bytes shared "
            f"(formula {one['formula']}), {one['tensor']}, cases {', '.join(one['cases'])}"
        )
    text += [f"FAILED {line}" for line in in_lines(report.failures)]
    return [*text, summary(report)]


def in_words(cell: Cell) -> str:
    """What a cell of the table says."""
    if cell.failures:
        return f"{cell.failures} failed"
    return f"{len(cell.rows)} rows" if cell.rows else ("refused" if cell.refused else "nothing")


def run_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """What a run gave: a line an op and target, then the failures, then the verdict."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for one in outcomes:
        counts.setdefault((one.op, one.target, one.rung), Counter())[one.status] += 1
    text = [
        f"{op} {rung} as {name}: " + ", ".join(f"{n} {status}" for status, n in count.items())
        for (op, name, rung), count in counts.items()
    ]
    failed = [one for one in outcomes if one.status == FAILED]
    text += [f"FAILED {one.op} {one.case} as {one.target}: {one.detail}" for one in failed]
    verdict = f"{len(failed)} failures" if failed else "all match their references"
    return [*text, f"{len(outcomes)} cases run: {verdict}"]


def summary(report: Report) -> str:
    """The last line."""
    verdict = f"{len(report.failures)} failures" if report.failures else "all hold"
    return f"{report.compiled} kernels compiled: {verdict}"
