"""Dense MLA over pages as chosen for a GPU with wgmma: the packed rows of the dense kernel."""

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.verify.case import Case, Maker
from sparkwell.verify.cases.mla_paged import CASES

DENSE = [case for case in CASES if case.size == "small"]


@pytest.mark.parametrize("case", DENSE, ids=lambda c: c.name)
@pytest.mark.parametrize("sms", [1, 132])
def test_the_dense_kernel_is_its_reference(case: Case, sms: int, cpu: torch.device) -> None:
    """With one SM nothing is split, with 132 everything is."""
    inputs = case.make(Maker(cpu, hostile=True))
    want = case.call(case.make(Maker(cpu)), "reference")
    with as_target("sm_90", sms=sms):
        got = case.call(inputs, "kernel")
    case.compare(inputs, got, want)


def test_a_page_the_cache_lacks_holds_no_key(cpu: torch.device) -> None:
    """Keys on a missing page are skipped: as if the context were what is left."""
    case = next(case for case in CASES if case.name == "whole-tiles")
    inputs = case.make(Maker(cpu))
    inputs["block_table"][1, 0] = -1
    whole = case.make(Maker(cpu))
    whole["block_table"][1] = torch.roll(whole["block_table"][1], -1)
    whole["context_lens"][1] -= whole["cache"].page_size
    with as_target("sm_90"):
        got, want = (case.call(x, "kernel")[0][-1] for x in (inputs, whole))
    torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-2)
