"""The one door to a kernel: launches it, or records what would be launched.

Recording is how every row is compiled for every target without a GPU: an op is called on tensors
of the "meta" device, and what it would launch is written down instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import triton

from sparkwell.ops.schedule import Choice


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that decides the compiled code."""

    kernel: Any  # triton.JITFunction
    choice: Choice
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, Any]


_RECORD: ContextVar[list[Launch] | None] = ContextVar("sparkwell_launches", default=None)


def interpreting() -> bool:
    """Whether kernels run under Triton's CPU interpreter (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def is_recording() -> bool:
    """Whether launches are written down instead of done."""
    return _RECORD.get() is not None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within this context `launch` appends to the list instead of launching."""
    launches: list[Launch] = []
    token = _RECORD.set(launches)
    try:
        yield launches
    finally:
        _RECORD.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    choice: Choice,
    early: Any = False,
    **constants: Any,
) -> Any:
    """kernel[grid](*args, **constants) with the warps and stages of the chosen row.

    args: in the kernel's order: tensors, then sizes and strides.  constants: its constexprs.
    early: the kernel waits for the one before it by itself, and may start before that ends.
    Nothing is launched for an empty grid.
    """
    schedule = choice.schedule
    options = {
        "num_warps": schedule.num_warps,
        "num_stages": schedule.num_stages,
        "enable_fp_fusion": True,  # Triton 3.10 turns its default off
    }
    if early:
        options["launch_pdl"] = True
    record = _RECORD.get()
    if record is not None:
        record.append(Launch(kernel, choice, grid, args, constants, options))
        return None
    if 0 in grid:
        return None
    return _run(kernel, grid, args, constants, options)


def _run(
    kernel: Callable[..., Any],
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    return kernel[grid](*args, **constants, **options)  # type: ignore[index]
