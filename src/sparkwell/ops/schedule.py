"""How every op chooses a kernel: rows of a table, the first that fits; refusals carry reasons.

A row says which targets it is written for, which problems it serves, which features it needs, the
tensor-core instruction its machine code must hold, and the record that measured it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import TARGETS, Feature, Target

EVERY = frozenset({80, 86, 89, 90, 100, 103, 120, 121})  # the targets kernels are written for
SMALL = frozenset(t.sm for t in TARGETS if t.sm in EVERY and t.shared_bytes_per_block <= 99 << 10)
LARGE = EVERY - SMALL  # 163 KiB of shared memory a block or more

HMMA = r"\bHMMA\."  # 16-bit mma.sync
QMMA = r"\bQMMA\."  # 8-bit mma.sync
HGMMA = r"\bHGMMA\."  # 16-bit wgmma
QGMMA = r"\bQGMMA\."  # 8-bit wgmma
UTCHMMA = r"\bUTCHMMA\b"  # 16-bit tcgen05
UTCQMMA = r"\bUTCQMMA\b"  # 8-bit tcgen05
NO_MMA = ""  # no tensor core
H200 = "NVIDIA H200"  # what rows were timed on


class Schedule(Protocol):
    """What every op's schedule has, beside its tile shape."""

    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...


@dataclass(frozen=True)
class Row:
    """One way to run an op.

    when: the problems it serves; `serves` says so in words, for refusals.
    emits: regular expression that the machine code (SASS) must match; "": no tensor core.
    measured_on: the GPU of its records in bench/records/kernels.jsonl; None: never timed.
    """

    name: str
    schedule: Any
    targets: frozenset[int]
    when: Callable[[Any], bool]
    serves: str
    emits: str
    needs: Feature = Feature(0)
    measured_on: str | None = None

    def refusal(self, problem: object, target: Target) -> str | None:
        """Why this row does not serve `problem` on `target`; None where it does."""
        if target.sm not in self.targets:
            return f"written for sm {', '.join(map(str, sorted(self.targets)))}"
        if lacking := target.missing(self.needs):
            return f"needs {', '.join(str(f.name) for f in lacking)}"
        return None if self.when(problem) else f"serves {self.serves}"


@dataclass(frozen=True)
class Choice:
    """The row that serves a problem on a target, and the shared memory its kernel takes.

    shared_bytes: by the op's formula, of one block; None: the kernel's few bytes are not modelled.
    """

    op: str
    row: Row
    problem: object
    target: Target
    shared_bytes: int | None = None

    @property
    def schedule(self) -> Any:
        """The row's tile shape."""
        return self.row.schedule


def pick(
    op: str,
    table: Sequence[Row],
    problem: Any,
    target: Target,
    *,
    shared: Callable[[Any, Any, Target], int] | None = None,
) -> Choice:
    """The first row of `table` that serves `problem` on `target`.

    shared: (problem, schedule, target) -> bytes of shared memory a block takes; a row that would
    take more than the target offers is refused.
    Raises Unsupported with every row's reason where none serves.
    """
    refused = {}
    for row in table:
        reason = row.refusal(problem, target)
        if reason is None:
            size = shared(problem, row.schedule, target) if shared else None
            limit = target.shared_bytes_per_block
            if size is None or size <= limit:
                return Choice(op, row, problem, target, size)
            reason = f"takes {size} bytes of shared memory a block, {target.name} offers {limit}"
        refused[row.name] = reason
    raise Unsupported(
        op,
        f"{problem} on {target.name} ({target.architecture})",
        refused,
        'use another size or type, or backend="reference" for the slow fp32 torch reference',
    )
