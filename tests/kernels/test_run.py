"""What a run on a GPU asks of a case, asked of the interpreter: right, amid NaN, the same twice."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.verify.case import Case
from sparkwell.verify.matrix import cases_of
from sparkwell.verify.run import compare

CALLS = itertools.count()
CASE = next(case for case in cases_of(["rms_norm"]) if case.name.startswith("3x128"))


def with_kernel(change: Callable[[Any], Any]) -> Case:
    """The case, its kernel's result changed."""

    class Changed(Case):
        def call(self, inputs: dict[str, Any], backend: str) -> Any:
            out = super().call(inputs, backend)
            return change(out) if backend == "kernel" else out

    return Changed(CASE.op, CASE.name, CASE.make, CASE.size, CASE.tolerances, CASE.check)


def test_a_right_kernel_passes(cpu: torch.device) -> None:
    with as_target("sm_121"):
        compare(CASE, cpu)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out * 1.01, "elements over tolerance"),
        (lambda out: torch.empty_like(out), "nan differs"),  # forgot to write
        (lambda out: out * (1 + 2**-22 * next(CALLS)), "other bits"),
    ],
)
def test_a_wrong_one_does_not(change: Callable[[Any], Any], words: str, cpu: torch.device) -> None:
    with as_target("sm_121"), pytest.raises(AssertionError, match=words):
        compare(replace(with_kernel(change)), cpu)
