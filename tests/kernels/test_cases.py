"""Every small case of the case table, interpreted, against the op's reference."""

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases import all_cases

SMALL = [case for case in all_cases() if case.size == "small"]


SPLIT = {  # ops that share keys among blocks
    "mla_sparse", "mla_paged", "attention_paged", "index_logits", "index_logits_paged",
    "linear",
}  # fmt: skip
# On one multiprocessor a block walks over all keys; on many each has a tile or two.
RUNS = [(case, sms) for case in SMALL for sms in ((1, 132) if case.op in SPLIT else (132,))]


@pytest.mark.parametrize(
    ("case", "sms"), RUNS, ids=lambda x: f"{x.op}-{x.name}" if isinstance(x, Case) else None
)
def test_the_kernel_is_its_reference(case: Case, sms: int, cpu: torch.device) -> None:
    inputs = case.make(Maker(cpu, hostile=True))
    want = case.call(case.make(Maker(cpu)), "reference")
    with as_target("sm_121", sms=sms):
        got = case.call(inputs, "kernel")
    case.compare(inputs, got, want)


def test_the_table_covers_every_op_with_a_kernel() -> None:
    assert len(SMALL) >= 10
