"""What was found: rows for people, JSON for programs (docs/doctor.md describes it)."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkwell import __version__
from sparkwell.doctor.advice import advice, needs
from sparkwell.doctor.asked import Asked
from sparkwell.doctor.examine import Examined, Looked, Verdicts, decided
from sparkwell.doctor.gates import Gate
from sparkwell.doctor.images import Level
from sparkwell.doctor.rules import Verdict
from sparkwell.doctor.verdict import Family, Judged

SCHEMA = 1
ALL_RUN, SOME_DO_NOT, UNREADABLE = 0, 1, 2
SIBLING, OTHER_FILE = "sibling", "other file"
LOOSE = {"cubin": "*.cubin", "ptx": "*.ptx", "fatbin": "*.fatbin"}


def replaced_by(family: Family, kernel: Judged, verdicts: Verdicts, found: Examined) -> str | None:
    """What runs in place of a kernel that does not: SIBLING, OTHER_FILE or None."""
    if kernel.verdict.runs:
        return None
    if family.verdict.runs:
        return SIBLING
    running = found.elsewhere.get(verdicts.gpu.name, frozenset())
    return OTHER_FILE if family.name in running else None


def exit_code(found: Sequence[Examined], unreadable: bool = False) -> int:
    """0: every kernel family runs on every GPU; 1: some do not; 2: something cannot be read."""
    if unreadable or any(one.problems for one in found):
        return UNREADABLE
    for one in found:
        for looked in one.files:
            for verdicts in looked.verdicts:
                for family in verdicts.families:
                    shown = family.shown
                    if not shown.verdict.runs and not replaced_by(family, shown, verdicts, one):
                        return SOME_DO_NOT
    return ALL_RUN


# ---------------------------------------------------------------- rows for people


@dataclass(frozen=True)
class Row:
    """Kernels with one verdict for one reason.

    instead: SIBLING, OTHER_FILE or None; names: their families, most kernels first; places: the
    files they are in, as `place_of` writes them; marks: how many of them have each
    """

    verdict: Verdict
    instead: str | None
    reason: str
    do: str
    kernels: int
    names: tuple[str, ...]
    places: tuple[str, ...]
    marks: tuple[tuple[str, int], ...]

    @property
    def order(self) -> tuple[int, str, str]:
        """Worst first: what has no replacement, then what has, then what runs."""
        lost = 0 if self.verdict.runs else 2 if self.instead is None else 1
        return -(lost * len(Verdict) + self.verdict.badness), self.reason, self.do


class _Group:
    """What a row is made of."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.places: dict[str, None] = {}
        self.marks: Counter[str] = Counter()


def rows(found: Examined, gpu: Asked) -> list[Row]:
    """What `found` says about one GPU, worst first."""
    groups: dict[tuple[Verdict, str | None, str, str], _Group] = defaultdict(_Group)
    for looked in found.files:
        for verdicts in (one for one in looked.verdicts if one.gpu == gpu):
            for family in verdicts.families:
                for kernel in family.kernels:
                    instead = replaced_by(family, kernel, verdicts, found)
                    do = advice(kernel, gpu.target, instead is not None)
                    group = groups[kernel.verdict, instead, kernel.reason, do]
                    group.names[family.name] += 1
                    group.places[place_of(looked)] = None
                    group.marks.update(kernel.marks)
    made = [
        Row(
            *key,
            kernels=sum(group.names.values()),
            names=tuple(sorted(group.names, key=lambda name: (-group.names[name], name))),
            places=tuple(group.places),
            marks=tuple(sorted(group.marks.items())),
        )
        for key, group in groups.items()
    ]
    return sorted(made, key=lambda row: row.order)


def place_of(looked: Looked) -> str:
    """A library by its path; loose cubins by their folder, since there may be thousands."""
    path = looked.file.path
    if looked.file.format in LOOSE and "/" in path:
        return f"{path.rsplit('/', 1)[0]}/{LOOSE[looked.file.format]}"
    return path


def running(found: Examined, gpu: Asked) -> tuple[int, int, Verdict | None]:
    """Kernels that run on `gpu`, kernels in all, and the worst verdict among families' bests."""
    total = run = 0
    worst: Verdict | None = None
    for looked in found.files:
        for verdicts in (one for one in looked.verdicts if one.gpu == gpu):
            total += len(verdicts.kernels)
            run += sum(kernel.verdict.runs for kernel in verdicts.kernels)
            for family in verdicts.families:
                if not replaced_by(family, family.shown, verdicts, found):
                    badness = -1 if worst is None else worst.badness
                    worst = family.verdict if family.verdict.badness > badness else worst
    return run, total, worst


# ---------------------------------------------------------------- JSON


def as_json(
    found: Sequence[Examined], gpus: Sequence[Asked], level: Level, errors: Sequence[str]
) -> dict[str, Any]:
    """The whole answer as JSON objects; keys and entries always stand in this order."""
    return {
        "sparkwell": __version__,
        "schema": SCHEMA,
        "level": level.name.lower(),
        "exit": exit_code(found, bool(errors)),
        "gpus": [
            {"name": g.name, "title": g.title, "target": g.target.name, "host": g.host}
            for g in gpus
        ],
        "inputs": [_input(one) for one in found],
        "errors": list(errors),
    }


def _input(found: Examined) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "gpus": [gpu.name for gpu in found.gpus],
        "files": [_file(looked, found) for looked in found.files],
        "gates": [_gates(found, gpu) for gpu in found.gpus],
        "compiles": [asdict(one) for one in found.evidence],
        "assemblers": [
            {"place": one.place, "targets": list(one.targets)} for one in found.assemblers
        ],
        "problems": list(found.problems),
        "notes": list(found.notes),
    }


def _file(looked: Looked, found: Examined) -> dict[str, Any]:
    file = looked.file
    counts = Counter((image.kind, image.target) for image in file.images)
    names = {kernel.name for image in file.images for kernel in image.kernels or ()}
    problems = [*file.problems, *(p for image in file.images for p in image.problems)]
    return {
        "path": file.path,
        "format": file.format,
        "host": file.host,
        "level": looked.level.name.lower(),
        "images": [
            {"kind": kind, "target": target, "count": counts[kind, target]}
            for kind, target in sorted(counts, key=lambda key: (key[0], _number(key[1]), key[1]))
        ],
        "kernels": len(names),
        "problems": problems,
        "verdicts": [_verdicts(one, found) for one in looked.verdicts],
    }


def _number(target: str) -> int:
    digits = target.rstrip("af")
    return int(digits) if digits.isdecimal() else 0


def _verdicts(verdicts: Verdicts, found: Examined) -> dict[str, Any]:
    counts = Counter(kernel.verdict for kernel in verdicts.kernels)
    need = needs(verdicts.kernels)
    return {
        "gpu": verdicts.gpu.name,
        "kernels": {one.value: counts[one] for one in Verdict if counts[one]},
        "needs": {
            "driver": need.driver,
            "cuda": ".".join(map(str, need.cuda)) if need.cuda else None,
            "toolkits": list(need.toolkits),
        },
        "families": [_family(family, verdicts, found) for family in verdicts.families],
    }


def _family(family: Family, verdicts: Verdicts, found: Examined) -> dict[str, Any]:
    shown, lost = family.shown, family.left_out
    instead = replaced_by(family, lost, verdicts, found) if lost else None
    return {
        "name": family.name,
        "verdict": family.verdict.value,
        "kernels": {verdict.value: count for verdict, count in family.counts.items()},
        "instead": instead,
        "reason": shown.reason,
        "left_out": lost.reason if lost and family.verdict.runs else None,
        "do": advice(shown, verdicts.gpu.target, instead == OTHER_FILE),
        "code": shown.code,
        "have": list(shown.have),
        "uses": sorted(shown.uses) if shown.uses is not None else None,
        "marks": list(family.marks),
    }


def _gates(found: Examined, gpu: Asked) -> dict[str, Any]:
    refusing, undecided, passing = decided(found.gates, gpu)
    return {
        "gpu": gpu.name,
        "refusing": [_gate(gate) for gate in refusing],
        "undecided": [_gate(gate) for gate in undecided],
        "passing": passing,
    }


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "file": gate.file,
        "line": gate.line,
        "function": gate.function,
        "kind": gate.kind,
        "condition": gate.condition,
        "when": gate.when,
        "message": gate.message,
    }
