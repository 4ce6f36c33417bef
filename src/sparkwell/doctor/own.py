"""Our own kernels: compiled for a GPU in another process, since that imports a compiler."""

import json
import subprocess
import sys
from dataclasses import dataclass

from sparkwell.doctor.sources import printable
from sparkwell.errors import BadInput
from sparkwell.hardware import Target


@dataclass(frozen=True)
class Compiled:
    """One op compiled for one target.

    kernels: that compiled; failures: that did not, or broke a limit; refused: calls that no kernel
    serves there
    """

    op: str
    target: str
    kernels: int
    failures: int
    refused: int


def compile_own(targets: tuple[Target, ...]) -> tuple[Compiled, ...]:
    """Every op's kernels compiled for `targets`, by `sparkwell verify`.

    Raises BadInput where that cannot run (Triton is for Linux only).
    """
    words = [sys.executable, "-m", "sparkwell", "verify", "--json"]
    words += [word for one in targets for word in ("--target", one.name)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        cells = json.loads(done.stdout)["cells"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"`{printable(' '.join(words[2:]))}` ended with {done.returncode} and no answer; run "
            "it to see why"
        ) from None
    return tuple(
        Compiled(cell["op"], cell["target"], cell["kernels"], cell["failures"], cell["refused"])
        for cell in cells
    )
