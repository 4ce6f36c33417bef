"""The speed table: which cases, which goals, what they must move at least."""

import pytest
import torch

from sparkwell.bench.cases import LINES, chosen
from sparkwell.bench.peers import PEERS
from sparkwell.errors import BadInput
from sparkwell.verify.case import Maker
from sparkwell.verify.cases import all_cases

BY_NAME = {line.name: line for line in LINES}
META = torch.device("meta")

GOALS = {
    "decode-656B-2048-b16-h8": 1.7,
    "decode-656B-2048-b64-h16": 1.7,
    "decode-656B-2048-b128-h32": 1.1,
    "decode-656B-2048-b64-h64": 0.9,
    "decode-656B-2048-b64-h128": 0.75,
    "decode-656B-2048-b1-h8": 1.9,
    "decode-656B-2048-b1-h128": 1.9,
    "prefill-bf16-4096x2048-h16": 2.0,
    "prefill-bf16-4096x2048-h64": 0.65,
    "prefill-bf16-4096x2048-h128": 0.65,
    "decode-bf16-b64-s4096-h16": 0.95,
    "decode-bf16-b64-s4096-h16@sm_121": 1.0,
    "fp8-4096x32768-h64": 0.75,
    "fp8-16x32768-h32": 1.0,
    "2048-of-1048576-b16": 1.0,
    "causal-8192-h32-kv8-d128": 0.8,
    "nvfp4-w4a16-1x6144x4096": 1.5,
    "nvfp4-w4a16-16x2048x6144": 2.0,
    "nvfp4-w4a16-64x2048x6144": 1.1,
    "nvfp4-w4a16-256x28672x4096": 1.1,
    "nvfp4-w4a16-4096x4096x14336": 1.4,
    "int4-w4a16-1x2048x6144": 1.0,
    "fp8-w8a8-1x7168x2048": 1.3,
    "fp8-w8a8-16x24576x1536": 1.3,
    "fp8-w8a8-128x24576x1536": None,
    "fp8-w8a8-4096x4096x7168": 0.8,
    "fp8-w8a16-16x4096x7168": 1.3,
    "fp8-v3-up-prefill-4096": 0.75,
    "fp8-glm5-down-decode-64": 1.1,
    "nvfp4-w4a16-glm5-b64": 1.2,
}


@pytest.mark.parametrize(("name", "want"), GOALS.items())
def test_goals(name: str, want: float | None) -> None:
    assert BY_NAME[name].want == want


def test_one_token_of_experts_is_near_the_memorys_time() -> None:
    assert {line.name: line.of_floor for line in LINES if line.of_floor} == {
        "nvfp4-w4a16-glm5-b1": 0.6
    }


def test_every_timed_case_has_a_line_and_names_are_unique() -> None:
    timed = {(case.op, case.name) for case in all_cases() if case.size == "timed"}
    assert timed == {(line.case.op, line.case.name) for line in LINES}
    assert len({(line.case.op, line.name) for line in LINES}) == len(LINES)
    assert {peer for line in LINES for peer in line.peers} == set(PEERS)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_inputs_are_made_and_redrawn(line: object) -> None:
    case, make = line.case, Maker(META)  # type: ignore[attr-defined]
    assert case.timing is not None and case.timing.nbytes > 0
    inputs = case.make(make)
    if case.timing.redraw is not None:
        again = case.timing.redraw(make, inputs)
        assert again and set(again) < set(inputs)
        assert all(again[k].shape == inputs[k].shape for k in again)


def test_the_least_work_of_a_decode() -> None:
    timing = BY_NAME["decode-656B-2048-b64-h16"].case.timing
    assert timing is not None
    assert timing.flops == 2 * 64 * 16 * 2048 * 1088
    assert timing.nbytes == 64 * (2048 * 656 + 2048 * 4 + 16 * (1088 * 2 + 8))
    dense = BY_NAME["decode-bf16-b64-s4096-h16"].case.timing
    assert dense is not None
    assert dense.nbytes == 64 * (4096 * 1152 + 16 * (1088 * 2 + 4))
    prefill = BY_NAME["causal-8192-h32-kv8-d128"].case.timing
    assert prefill is not None
    assert prefill.flops == pytest.approx(4 * 32 * 8192 * 8192 / 2 * 128, rel=1e-3)


def test_prefill_reads_no_key_more_than_once() -> None:
    timing = BY_NAME["prefill-bf16-4096x2048-h16"].case.timing
    assert timing is not None
    assert timing.nbytes == 65536 * 1152 + 4096 * (4 * 2048 + 16 * (1088 * 2 + 8))


def test_lines_are_chosen_by_op_and_part_of_the_name() -> None:
    assert {line.case.op for line in chosen(["mla"])} == {"mla_sparse", "mla_paged"}
    assert {line.name for line in chosen(["mla_sparse"], ["b1-h8", "prefill"])} == {
        "decode-656B-2048-b1-h8",
        *(f"prefill-bf16-4096x2048-h{h}" for h in (16, 64, 128)),
    }
    assert {line.case.op for line in chosen(["linear"])} == {"linear"}
    assert {line.name for line in chosen(["experts"])} == {
        f"nvfp4-w4a16-glm5-b{tokens}" for tokens in (1, 8, 64)
    }
    assert len(chosen(["linear"], ["nvfp4"])) == 24 and len(chosen(["grouped"])) == 12
    with pytest.raises(BadInput, match="no case fits"):
        chosen(["nothing"])
