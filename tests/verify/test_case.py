"""Which limits a case's result is held to."""

import pytest
import torch

from sparkwell.hardware.targets import Feature
from sparkwell.ops.device import as_target
from sparkwell.verify import case as cases
from sparkwell.verify.case import Maker, computes_with
from sparkwell.verify.cases.indexer import CASES

CPU = torch.device("cpu")


@pytest.mark.parametrize(("target", "has"), [("sm_80", False), ("sm_90", True), ("sm_121", True)])
def test_units_are_the_targets(target: str, has: bool) -> None:
    with as_target(target):
        assert computes_with(CPU, Feature.FP8_MMA) == has


def test_an_interpreter_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "interpreting", lambda: True)
    with as_target("sm_90"):
        assert not computes_with(CPU, Feature.FP8_MMA)


def test_only_fp8_units_may_cut_sums() -> None:
    case = next(c for c in CASES if c.op == "index_logits" and c.name.startswith("fp8"))
    inputs = case.make(Maker(CPU))
    want = case.call(inputs, "reference")
    got = torch.where(torch.isfinite(want), want + 0.01 * torch.sign(want), want)
    with as_target("sm_80"), pytest.raises(AssertionError, match="index logits"):
        case.compare(inputs, got, want)
    with as_target("sm_90"):
        far = torch.where(torch.isfinite(want), want + 1.0, want)
        with pytest.raises(AssertionError, match="index logits"):
            case.compare(inputs, far, want)
