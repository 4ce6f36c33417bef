"""Runs cases on the GPU at hand, as its own code or another target's, against the references."""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from sparkwell.errors import Unsupported
from sparkwell.hardware.targets import Target
from sparkwell.ops.launch import recording
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.compile import pool, workers
from sparkwell.verify.matrix import record
from sparkwell.verify.retarget import CannotRunHere, prepare, retargeted, runs_here, target_here

PASSED, FAILED, REFUSED, SKIPPED = "passed", "failed", "refused", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What became of a case on a target.

    rung: "ran" on a GPU of that target, "retargeted" on another.
    status: passed; failed; refused: the op does not serve it there; skipped: it does not fit this
    GPU, or its code cannot run on it.  detail: why, unless it passed.
    rows: those that served it, as "op:row".
    seconds: the reference's time included.
    """

    op: str
    case: str
    size: str
    target: str
    rung: str
    status: str
    detail: str = ""
    rows: tuple[str, ...] = ()
    seconds: float = 0.0


def run_cases(
    cases: Iterable[Case],
    wanted: Target,
    say: Callable[[Outcome], None] | None = None,
    jobs: int | None = None,
) -> list[Outcome]:
    """Each case's kernel against its reference, both on this GPU.

    say: called with each outcome as it comes.  jobs: processes that compile before; None: one a
    core.
    Raises BadInput without a GPU, Unsupported for a target whose code cannot run here.
    """
    cases, outcomes = tuple(cases), []
    _prepare(cases, wanted, jobs or workers())
    rung = "ran" if target_here() == wanted else "retargeted"
    with retargeted(wanted.sm):
        for case in cases:
            start = time.perf_counter()
            status, detail, rows = _run(case, wanted)
            took = round(time.perf_counter() - start, 2)
            outcome = Outcome(
                case.op, case.name, case.size, wanted.name, rung, status, detail, rows, took
            )
            outcomes.append(outcome)
            if say is not None:
                say(outcome)
    return outcomes


def _prepare(cases: Sequence[Case], wanted: Target, jobs: int) -> None:
    """Compile all kernels at once, since one by one, as they are met, takes minutes."""
    here = target_here()
    units = {use.unit.key: use.unit for use in record(cases, [wanted]).uses}
    if jobs == 1 or len(units) < 2 or runs_here(wanted, here):
        return
    with pool(min(jobs, len(units))) as processes:
        wait([processes.submit(prepare, unit, here.sm) for unit in units.values()])


def _run(case: Case, wanted: Target) -> tuple[str, str, tuple[str, ...]]:
    """-> status, detail, rows"""
    rows: tuple[str, ...] = ()
    try:
        rows = _rows(case, wanted)
        with redirect_stdout(io.StringIO()):  # Triton prints the PTX that does not assemble
            compare(case, torch.device("cuda"))
    except (torch.OutOfMemoryError, CannotRunHere) as error:
        return SKIPPED, str(error), rows
    except Unsupported as error:
        return REFUSED, str(error), rows
    except AssertionError as error:
        return FAILED, str(error), rows
    except Exception as error:  # noqa: BLE001  one broken case must not hide the others
        return FAILED, f"{type(error).__name__}: {error}"[:2000], rows
    finally:
        torch.cuda.empty_cache()
    return PASSED, "", rows


def _rows(case: Case, wanted: Target) -> tuple[str, ...]:
    """Names of the rows that serve the case.  Raises AssertionError for one of another target."""
    with recording() as launches:
        case.call(case.make(Maker(torch.device("meta"))), "kernel")
    for launch in launches:
        got = launch.choice.target
        assert got == wanted, f"a row was chosen for {got.name}, want {wanted.name}"
    return tuple(dict.fromkeys(f"{x.choice.op}:{x.choice.row.name}" for x in launches))


def compare(case: Case, device: torch.device) -> None:
    """The kernel against the reference amid NaN, twice: the second result has the first's bits.

    Raises AssertionError where it differs.
    """
    want = case.call(case.make(Maker(device)), "reference")
    results = []
    for _ in range(2):
        inputs = case.make(Maker(device, hostile=True))
        with _poisoned():
            results.append((inputs, case.call(inputs, "kernel")))
    (inputs, got), (_, again) = results
    case.compare(inputs, got, want)
    for one, other in zip(_tensors(got), _tensors(again), strict=True):
        assert _bits(one).equal(_bits(other)), "a second run gave other bits"


@contextmanager
def _poisoned() -> Iterator[None]:
    """Within this context torch.empty is full of NaN, or of the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _tensors(result: Any) -> list[torch.Tensor]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8) if x.numel() else x.float()


__all__ = ["FAILED", "PASSED", "REFUSED", "SKIPPED", "Outcome", "compare", "run_cases"]
