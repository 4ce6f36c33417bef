"""Every small case of the case table, interpreted, against the op's reference."""

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import all_cases

SMALL = [case for case in all_cases() if case.size == "small"]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op}-{c.name}")
def test_the_kernel_is_its_reference(case: Case, cpu: torch.device) -> None:
    inputs = case.make(Maker(cpu, hostile=True))
    want = case.call(case.make(Maker(cpu)), "reference")
    with as_target("sm_121"):
        got = case.call(inputs, "kernel")
    case.compare(inputs, got, want)


def test_the_table_covers_every_op_with_a_kernel() -> None:
    assert len(SMALL) >= 10
