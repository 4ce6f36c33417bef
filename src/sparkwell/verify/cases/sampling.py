"""Greedy rows: ties, in one block's step and several steps apart, NaN, infinities, odd lengths.
Draws: with each mask, with all of them, with none.
"""

from functools import partial

import torch

from sparkwell.ops.sampling import SamplingRow, drawing_table, uniform
from sparkwell.verify.case import Case, Inputs, Maker

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INF, NAN = float("inf"), float("nan")
# Column -> value, a row each; a column past the row's end is its last.
PLANTED: tuple[dict[int, float], ...] = (
    {7: 9.0, 8: 9.0, 5000: 9.0},
    {0: NAN},
    {3: INF},
    {1: -INF},
    {5000: 9.0},
    {1030: 9.0, 1029: 9.0, 6: 9.0 - 2**-20},
    {},
)


def _inputs(make: Maker, *, vocab: int, dtype: str, rows: int) -> Inputs:
    x = make.randn(rows, vocab, dtype=DTYPES[dtype])
    if x.device.type != "meta":
        for row, planted in zip(x, PLANTED, strict=False):
            for column, value in planted.items():
                row[min(column, vocab - 1)] = value
        if rows > len(PLANTED):
            x[len(PLANTED)] = -INF  # nothing to draw
    return {"logits": x}


def _exact(inputs: Inputs, got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.equal(got.cpu(), want.cpu()), f"got {got.tolist()}, want {want.tolist()}"


def _case(vocab: int, dtype: str, rows: int = 8, size: str = "small") -> Case:
    make = partial(_inputs, vocab=vocab, dtype=dtype, rows=rows)
    return Case("greedy", f"{rows}x{vocab}-{dtype}", make, size, check=_exact)


MASKS = (SamplingRow(), SamplingRow(temperature=0.0), SamplingRow(temperature=0.7, min_p=0.05))
SORTED = (
    SamplingRow(top_k=7),
    SamplingRow(top_p=0.8),
    SamplingRow(temperature=2.0, top_k=40, top_p=0.7, min_p=0.01),
)


def _draw_inputs(make: Maker, *, vocab: int, rows: int, sorts: bool) -> Inputs:
    x = make.randn(rows, vocab, scale=3.0)
    if rows > 1 and x.device.type != "meta":
        x[1, vocab // 2] = NAN
    kinds = (*MASKS, *SORTED) if sorts else MASKS
    uniforms = [uniform(3, row) for row in range(rows)]
    table, _ = drawing_table([kinds[row % len(kinds)] for row in range(rows)], uniforms, vocab)
    return {"x": x, "table": table.to(x.device), "sorts": sorts}


def _draw(vocab: int, sorts: bool, rows: int = 12, size: str = "small") -> Case:
    make = partial(_draw_inputs, vocab=vocab, rows=rows, sorts=sorts)
    name = f"{rows}x{vocab}-{'sorted' if sorts else 'plain'}"
    return Case("draw", name, make, size, check=_exact)


CASES: tuple[Case, ...] = (
    _draw(300, True),
    _draw(5000, False),
    _draw(3000, True, 6),
    _draw(9, True, 0),
    _draw(2048, True, 8, "model"),
    _draw(129280, False, 64, "model"),
    _case(1, "fp32"),
    _case(2048, "fp32"),
    _case(3000, "bf16"),
    _case(9001, "fp32"),
    _case(50, "bf16", 0),
    _case(129280, "fp32", 64, "model"),
)
