"""Which compilations there are: cases x targets, recorded without a GPU, and every row of a table.

A row that no case reaches on a target it names is a claim nobody checked, so it is a failure.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import sparkwell.ops
from sparkwell.errors import BadInput, Unsupported
from sparkwell.hardware.targets import Target, target
from sparkwell.ops import OPS
from sparkwell.ops.device import as_target
from sparkwell.ops.launch import recording
from sparkwell.ops.schedule import EVERY, Choice, Row
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import all_cases
from sparkwell.verify.compile import Unit, specialise

# One target a kind of tensor core and of shared memory: what is compiled unless more is asked for.
USUAL = ("sm_80", "sm_90", "sm_100", "sm_121")


Place = tuple[object, ...]  # what one case is enough for


@dataclass(frozen=True)
class Use:
    """One kernel that a case launches on a target, and the choice that led to it."""

    case: Case
    target: Target
    choice: Choice
    unit: Unit


@dataclass(frozen=True)
class Refusal:
    """A case that an op does not serve on a target, with the op's reasons.

    broken: it should have, and failed while its launches were recorded.
    """

    case: Case
    target: Target
    why: str
    broken: bool = False


@dataclass(frozen=True)
class Table:
    """The rows of one selection, and where they stand: "ops.norm.schedule.TABLE"."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Matrix:
    """Everything the cases launch on the targets, and what is refused there."""

    uses: tuple[Use, ...]
    refusals: tuple[Refusal, ...]


def targets_named(names: Sequence[str] | None) -> tuple[Target, ...]:
    """Targets by name; "all": every one kernels are written for; None: the usual ones.

    Raises BadInput for a name that is unknown or that no kernel is written for.
    """
    if names and "all" in names:
        return tuple(target(sm) for sm in sorted(EVERY))
    found = tuple(dict.fromkeys(target(name) for name in names or USUAL))
    for one in found:
        if one.sm not in EVERY:
            known = ", ".join(f"sm_{sm}" for sm in sorted(EVERY))
            raise BadInput(f"target {one.name}: no kernel is written for it; want one of {known}")
    return found


def folder_of(op: str) -> str:
    """The folder (or module) an op stands in: "mla" for mla_sparse."""
    return OPS[op].split(".")[2]


def cases_of(ops: Sequence[str] | None) -> tuple[Case, ...]:
    """The cases of these ops or folders of ops; None: every case.

    Raises BadInput for a name that is neither, or that has no case.
    """
    cases = all_cases()
    if not ops:
        return cases
    for name in ops:
        if not any(name in (case.op, folder_of(case.op)) for case in cases):
            known = sorted({case.op for case in cases} | {folder_of(case.op) for case in cases})
            raise BadInput(f"op {name!r} has no case; want one of {', '.join(known)}")
    return tuple(case for case in cases if {case.op, folder_of(case.op)} & set(ops))


def tables(folders: Iterable[str] | None = None) -> tuple[Table, ...]:
    """Every table of rows in the ops package, or in these folders of it."""
    wanted = None if folders is None else set(folders)
    found: dict[int, Table] = {}  # by identity: kernels import the table of their schedule
    modules = sorted(
        (module.name for module in pkgutil.walk_packages(sparkwell.ops.__path__, "sparkwell.ops.")),
        key=lambda name: ("schedule" not in name, name),
    )
    for name in modules:
        if wanted is not None and name.split(".")[2] not in wanted:
            continue
        for attribute, value in vars(importlib.import_module(name)).items():
            if isinstance(value, tuple) and value and all(isinstance(row, Row) for row in value):
                short = name.removeprefix("sparkwell.")
                found.setdefault(id(value), Table(f"{short}.{attribute}", value))
    return tuple(found.values())


def record(cases: Iterable[Case], targets: Iterable[Target]) -> Matrix:
    """What each case launches on each target.  Touches no GPU: the inputs have shapes only."""
    uses: list[Use] = []
    refusals: list[Refusal] = []
    targets = tuple(targets)
    for case in cases:
        inputs = case.make(Maker(torch.device("meta")))
        for one in targets:
            try:
                uses += _launches(case, inputs, one)
            except Unsupported as error:
                refusals.append(Refusal(case, one, str(error)))
            except Exception as error:  # noqa: BLE001  one broken op must not hide the others
                why = f"{type(error).__name__}: {error}"
                refusals.append(Refusal(case, one, why, broken=True))
    return Matrix(tuple(uses), tuple(refusals))


def _launches(case: Case, inputs: Mapping[str, Any], one: Target) -> list[Use]:
    with as_target(one.sm), recording() as launches:
        case.call(dict(inputs), "kernel")
    return [
        Use(case, one, launch.choice, specialise(launch))
        for launch in launches
        if 0 not in launch.grid  # an empty one is never launched
    ]


def one_a_row(uses: Sequence[Use], *, every_form: bool = True) -> tuple[Use, ...]:
    """Of each row on each target, the launches of one case: that of a published shape, if any.

    Rows whose problems name a form (formats of operands: code of its own) give one case of each;
    every_form=False: on the last target only, on the others one case of a row.
    """
    sizes = ("model", "timed", "small")
    ordered = sorted(uses, key=lambda use: sizes.index(use.case.size))  # a stable sort
    rows: dict[Place, Use] = {}
    forms: dict[Place, Use] = {}
    for use in ordered:
        rows.setdefault((*_place(use), use.target.sm), use)
        forms.setdefault((*_place(use), use.target.sm, _form(use)), use)
    if not every_form:
        last = uses[-1].target.sm if uses else 0  # in each case targets come in their order
        forms = {key: use for key, use in forms.items() if use.target.sm == last}
    taken = {(*_place(u), u.target.sm, u.case.name) for u in (*rows.values(), *forms.values())}
    return tuple(use for use in uses if (*_place(use), use.target.sm, use.case.name) in taken)


def _place(use: Use) -> tuple[str, str, str]:
    return use.case.op, use.choice.op, use.choice.row.name


def _form(use: Use) -> str:
    return getattr(use.choice.problem, "form", "")


def unreached(
    matrix: Matrix, found: Sequence[Table], targets: Iterable[Target]
) -> list[tuple[Table, Row, Target]]:
    """The rows that no case reaches, with each target they name among `targets`."""
    reached = {(id(use.choice.row), use.target.sm) for use in matrix.uses}
    return [
        (table, row, one)
        for table in found
        for row in table.rows
        for one in targets
        if one.sm in row.targets and (id(row), one.sm) not in reached
    ]
