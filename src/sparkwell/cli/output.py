"""What verbs print: results to stdout, everything else to stderr."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sparkwell.env import LOG_LEVEL
from sparkwell.errors import BadInput

if TYPE_CHECKING:
    from rich.progress import TaskID

    from sparkwell.engine.request import Timing

_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str | None = None) -> None:
    """Log to stderr.  level: None takes SPARKWELL_LOG_LEVEL.  Raises: BadInput for no level."""
    chosen = (level or LOG_LEVEL.get()).lower()
    if chosen not in _LEVELS:
        raise BadInput(f"log level is {chosen!r}, want one of {', '.join(_LEVELS)}")
    logging.basicConfig(
        level=chosen.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )


def note(text: str) -> None:
    """Say something that is no result."""
    print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Print a piece of the result, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def loading(model: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar over bytes while inside, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(model, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def counting(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each of several tasks while inside, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda task, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    after = (TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, *after, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = progress.add_task(task)
            progress.update(tasks[task], completed=done, total=total)

        yield show


def latencies(timing: "Timing", output_tokens: int) -> dict[str, float | None]:
    """Seconds to the first token (ttft), for each further one (tpot) and in all; tokens a second.

    tpot and tokens_per_s are None for a single token, since nothing follows the first one.
    """
    first, finished = timing.first_token, timing.finished
    assert first is not None and finished is not None
    tpot = (finished - first) / (output_tokens - 1) if output_tokens > 1 else None
    return {
        "ttft_s": first - timing.arrival,
        "tpot_s": tpot,
        "total_s": finished - timing.arrival,
        "tokens_per_s": 1 / tpot if tpot else None,
    }
