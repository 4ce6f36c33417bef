"""Tables that name pages the cache does not have: their keys are none, on the GPU at hand."""

import pytest
import torch

from sparkwell.ops.launch import interpreting
from sparkwell.verify.case import Case, Inputs, Maker
from sparkwell.verify.cases.indexer import CASES as INDEXER
from sparkwell.verify.cases.mla_paged import CASES as MLA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or interpreting(), reason="needs a GPU"),
]
WHOLE_TILES = [
    case
    for case in MLA
    if case.size == "small" and case.make(Maker(torch.device("meta")))["cache"].page_size % 64 == 0
]
PAGED = [case for case in INDEXER if case.name.startswith("fp8-large-pages")]


def made(case: Case) -> Inputs:
    return case.make(Maker(torch.device("cuda"), hostile=True))


@pytest.mark.parametrize("hole", [-1, 10**8])
@pytest.mark.parametrize("case", WHOLE_TILES, ids=lambda case: case.name)
def test_mla(case: Case, hole: int) -> None:
    """As if the context were what is left: the longest request, its first page gone."""
    inputs, whole = made(case), made(case)
    size = whole["cache"].page_size
    i = int(whole["context_lens"].argmax())
    inputs["block_table"][i, 0] = hole
    whole["block_table"][i] = torch.roll(whole["block_table"][i], -1)
    whole["context_lens"][i] -= size
    rows = slice(*inputs["query_start"][i : i + 2].tolist())
    left = int(whole["context_lens"][i])
    assert rows.stop - rows.start <= left, "a row would be older than what is left"
    got = case.call(inputs, "kernel")
    want = case.call(whole, "reference")
    case.compare(inputs, tuple(x[rows] for x in got), tuple(x[rows] for x in want))


@pytest.mark.parametrize("hole", [-1, 10**8])
@pytest.mark.parametrize("case", PAGED, ids=lambda case: case.name)
def test_index_scores(case: Case, hole: int) -> None:
    inputs = made(case)
    size, each = inputs["cache"].page_size, inputs["q"].shape[1]
    want = case.call(dict(inputs), "reference")
    want[each : 2 * each, size : 2 * size] = -float("inf")
    inputs["block_table"][1, 1] = hole
    case.compare(inputs, case.call(inputs, "kernel"), want)


def test_there_are_such_cases() -> None:
    assert len(WHOLE_TILES) >= 5 and len(PAGED) >= 2
