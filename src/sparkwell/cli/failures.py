"""How a verb fails: plain words and an exit code, unless somebody asks for the traceback."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from sparkwell.errors import SparkwellError

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + 13  # SIGPIPE, which not every system has

Params = ParamSpec("Params")


def guarded(verb: Callable[Params, None]) -> Callable[Params, None]:
    """The verb with its failures as exit codes; its `debug` option lets them through."""

    @functools.wraps(verb)
    def run(*args: Params.args, **kwargs: Params.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except SparkwellError as error:
            if kwargs.get("debug"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The interpreter flushes once more when it leaves, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None

    return run
