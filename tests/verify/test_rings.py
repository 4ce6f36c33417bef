"""Kernels whose warps hand stages of a ring on: no barrier is told while they read."""

import pytest

from sparkwell.ops.launch import interpreting
from sparkwell.verify.check import check
from sparkwell.verify.compile import build_all
from sparkwell.verify.matrix import cases_of, record, targets_named

pytestmark = pytest.mark.skipif(interpreting(), reason="kernels are interpreted here")


@pytest.mark.parametrize(
    ("op", "name", "kernel"),
    [
        ("linear", "nvfp4-4x28672x4096-bf16", "ring_kernel"),
        ("linear", "nvfp4-16x28672x4096-bf16", "ring_kernel"),
        ("linear", "fp8-block-64x7168x2048-bf16-w8a8", "fp8_few_kernel"),
        ("experts", "1x256-5x512-top3-nvfp4-bf16", "streamed_kernel"),
        ("index_logits_paged", "fp8-large-pages", "specialized_kernel"),
    ],
)
def test_what_is_read_is_settled(op: str, name: str, kernel: str) -> None:
    cases = [case for case in cases_of([op]) if case.op == op and case.name == name]
    matrix = record(cases, targets_named(["sm_90"]))
    uses = [use for use in matrix.uses if use.unit.kernel.name == kernel]
    assert uses, "another kernel serves the case"
    built = build_all([use.unit for use in uses])
    assert [str(one) for one in check(uses, built) if "settled" in one.wanted] == []
    told = [name for one in built.values() for name in one.instructions or ()]
    assert any(name.startswith("SYNCS.ARRIVE") for name in told)
