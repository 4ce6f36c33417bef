"""Runs cases on the GPU at hand, as its own code or another target's, against the references."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sparkwell.errors import SparkwellError, Unsupported
from sparkwell.hardware.targets import Target
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.retarget import retargeted, target_here

PASSED, FAILED, REFUSED, SKIPPED = "passed", "failed", "refused", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What became of a case on a target.

    rung: "ran" on a GPU of that target, "retargeted" on another.
    status: passed; failed; refused: the op does not serve it there; skipped: it does not fit this
    GPU.  detail: why, unless it passed.
    """

    op: str
    case: str
    size: str
    target: str
    rung: str
    status: str
    detail: str = ""


def run_cases(
    cases: Iterable[Case], wanted: Target, say: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Each case's kernel against its reference, both on this GPU.

    say: called with each outcome as it comes.
    Raises BadInput without a GPU, Unsupported for a target whose code cannot run here.
    """
    outcomes = []
    rung = "ran" if target_here() == wanted else "retargeted"
    with retargeted(wanted.sm):
        for case in cases:
            status, detail = _run(case)
            outcome = Outcome(case.op, case.name, case.size, wanted.name, rung, status, detail)
            outcomes.append(outcome)
            if say is not None:
                say(outcome)
    return outcomes


def _run(case: Case) -> tuple[str, str]:
    try:
        _compare(case, torch.device("cuda"))
    except torch.OutOfMemoryError as error:
        return SKIPPED, str(error).splitlines()[0]
    except Unsupported as error:
        return REFUSED, str(error)
    except AssertionError as error:
        return FAILED, str(error)
    except (SparkwellError, RuntimeError, ValueError, TypeError) as error:
        return FAILED, f"{type(error).__name__}: {error}"[:2000]
    finally:
        torch.cuda.empty_cache()
    return PASSED, ""


def _compare(case: Case, device: torch.device) -> None:
    """Amid NaN, twice: the second result is bit for bit the first."""
    want = case.call(case.make(Maker(device)), "reference")
    results = []
    for _ in range(2):
        inputs = case.make(Maker(device, hostile=True))
        with _poisoned():
            results.append((inputs, case.call(inputs, "kernel")))
        torch.cuda.synchronize()
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


__all__ = ["FAILED", "PASSED", "REFUSED", "SKIPPED", "Outcome", "run_cases"]
