"""Draws by searched thresholds are the draws by sorting: random rows, ties, edges of every mask."""

import math
from typing import Any

import pytest
import torch

from sparkwell.ops.device import as_target
from sparkwell.ops.sampling import (
    NOTHING,
    SamplingRow,
    draw,
    draw_reference,
    drawing_table,
    sample_reference,
)
from sparkwell.testing import in_poison

INF = math.inf
LAST = 1.0 - 2.0**-53


def drawn(x: torch.Tensor, rows: list[SamplingRow], u: list[float]) -> list[int]:
    table, sorts = drawing_table(rows, u, x.shape[1])
    with as_target("sm_121"):
        return draw(in_poison(x), in_poison(table), sorts=sorts, backend="kernel").tolist()


@pytest.mark.parametrize("step", [0.0, 0.5])
@pytest.mark.parametrize("vocab", [1, 50, 1500])
def test_random_rows(vocab: int, step: float, cpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(vocab)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    n = 24
    x = 3 * torch.randn(n, vocab, generator=generator)
    x = (x / step).round() * step if step else x
    x[:, vocab // 3] = -INF if vocab > 1 else 1.0
    rows = [
        SamplingRow(
            temperature=pick(0.0, 0.3, 1.0, 1.7),
            top_k=pick(0, 0, 1, 5, 40, 4000),
            top_p=pick(1.0, 0.9, 0.2, 0.0),
            min_p=pick(0.0, 0.0, 0.05, 1.0),
        )
        for _ in range(n)
    ]
    u = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
    u[:4] = [0.0, LAST, 1.0, 0.5]
    want = sample_reference(x, rows, [((), ())] * n, torch.tensor(u, dtype=torch.float64))
    assert drawn(x, rows, u) == want.tolist()


def kept(x: list[float], **options: Any) -> list[int]:
    """Every token that some uniform draws."""
    u = [0.0, *((i + 0.5) / 8 for i in range(8)), LAST, 1.0]
    rows = [SamplingRow(**options)] * len(u)
    return sorted(set(drawn(torch.tensor(x).expand(len(u), -1), rows, u)))


def test_masks_keep_what_they_should(cpu: torch.device) -> None:
    x = [1.0, 5.0, 3.0, 5.0, 3.0, 0.0]
    assert kept(x, top_k=1) == [1] and kept(x, top_k=2) == [1, 3]
    assert kept(x, top_k=3, temperature=3.0) == [1, 2, 3]  # of the tied 3.0s the lower id
    assert kept([1.0, -INF, 2.0], top_k=3, temperature=2.0) == [0, 2]
    quarters = [0.0] * 4
    assert kept(quarters, top_p=0.25) == [0] and kept(quarters, top_p=0.2500001) == [0, 1]
    assert kept(quarters, top_p=0.75) == [0, 1, 2] and kept(quarters, top_p=0.0) == [0]
    assert kept(quarters, top_p=0.9999) == [0, 1, 2, 3]
    assert kept(quarters, top_p=0.5, top_k=3) == [0, 1] and kept(quarters, top_k=2) == [0, 1]
    assert kept(quarters, top_p=0.9, top_k=2) == [0, 1]
    tenth = [math.log(p) for p in (0.1, 0.5, 0.1, 0.3)]
    assert kept(tenth, top_p=0.4) == [1] and kept(tenth, top_p=0.6) == [1, 3]
    assert kept(tenth, top_p=0.85) == [0, 1, 3]
    assert kept([*tenth, -INF], top_p=0.99999999) == [0, 1, 2, 3]
    assert kept(tenth, min_p=0.5) == [1, 3] and kept([2.0, 1.0, 2.0], min_p=1.0) == [0, 2]
    assert kept([-INF, 0.0, -200.0, -INF]) == [1]


def test_ties_over_several_steps_of_a_block(cpu: torch.device) -> None:
    x = torch.zeros(3, 3000)
    u = [LAST] * 3
    rows = [SamplingRow(top_k=2500), SamplingRow(top_p=0.5), SamplingRow(top_k=1030)]
    assert drawn(x, rows, u) == [2499, 1499, 1029]
    assert drawn(torch.zeros(3, 9000), rows, u) == [2499, 4499, 1029]  # sorted by torch


def test_rows_that_cannot_be_sampled(cpu: torch.device) -> None:
    x = torch.zeros(5, 7)
    x[0, 2], x[1, 6], x[2] = math.nan, INF, -INF
    rows = [SamplingRow(top_p=0.5), SamplingRow(), SamplingRow(top_k=2)] + [SamplingRow()] * 2
    assert drawn(x, rows, [0.99] * 5) == [NOTHING, NOTHING, NOTHING, 6, 6]
    x = torch.tensor([[1e4, 1e4, 9999.0]])
    assert drawn(x, [SamplingRow(temperature=1e-40)], [0.7]) == [1]
    table, _ = drawing_table([SamplingRow(temperature=1e-40)], [0.7], 3)
    assert draw_reference(x, table, sorts=False).tolist() == [1]


def test_a_share_that_rounding_cannot_reach(cpu: torch.device) -> None:
    """top-p just below 1: what is wanted may be more than all the weights, or than top-k leaves."""
    n = 40
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([1 + torch.rand(n, 200, generator=generator), torch.zeros(n, 10)], 1)
    rows = [SamplingRow(top_k=205, top_p=LAST)] * n
    assert set(drawn(x, rows, [LAST] * n)) == {204}
    x = torch.randn(n, 300, generator=generator)
    rows, u = [SamplingRow(top_p=LAST)] * n, [i / n for i in range(n)]
    want = sample_reference(x, rows, [((), ())] * n, torch.tensor(u, dtype=torch.float64))
    assert drawn(x, rows, u) == want.tolist()
