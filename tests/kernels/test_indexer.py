"""Indexer scores: targets without e4m3, whose kernels move its bits; tables with holes."""

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases.indexer import CASES

E4M3 = [
    case
    for case in CASES
    if case.size == "small" and case.op.startswith("index_") and case.name.startswith("fp8")
]


@pytest.mark.parametrize("case", E4M3, ids=lambda case: f"{case.op}-{case.name}")
def test_widened_operands(case: Case, cpu: torch.device) -> None:
    inputs = case.make(Maker(cpu, hostile=True))
    want = case.call(case.make(Maker(cpu)), "reference")
    with as_target("sm_80"):
        got = case.call(inputs, "kernel")
    case.compare(inputs, got, want)


@pytest.mark.parametrize("target", ["sm_80", "sm_121"])
def test_keys_of_a_missing_page_score_minus_infinity(target: str, cpu: torch.device) -> None:
    case = next(case for case in E4M3 if case.op == "index_logits_paged")
    inputs = case.make(Maker(cpu))
    page = inputs["cache"].page_size
    want = case.call(dict(inputs), "reference")
    want[2:4, page : 2 * page] = -float("inf")  # request 1 has two rows
    inputs["block_table"][1, 1] = inputs["cache"].num_pages
    with as_target(target):
        got = case.call(inputs, "kernel")
    case.compare(inputs, got, want)


def test_the_cases_reach_both_operations() -> None:
    assert {case.op for case in E4M3} == {"index_select", "index_logits", "index_logits_paged"}
