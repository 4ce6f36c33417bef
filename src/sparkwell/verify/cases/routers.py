"""Routers: the published models' groups, odd ones, ties, scores of either sign, underflow."""

from functools import partial
from typing import Any

import torch

from sparkwell.testing import assert_matches
from sparkwell.verify.case import Case, Inputs, Maker


def _router_inputs(
    make: Maker, *, rows: int, experts: int, step: float, bias: float | None, options: Inputs
) -> Inputs:
    logits = make.randn(rows, experts, scale=2.0)
    if step:  # few different scores: many are equal
        logits.copy_((logits / step).round() * step)
    if rows > 2 and logits.device.type != "meta":
        logits[1, : experts // 2] = -200.0  # underflows to a probability of 0
        logits[2] = -1.5
        logits[3] = -200.0  # one group matters; in it, and left out, probabilities of 0
        logits[3, experts // 2] = 5.0
    inputs: Inputs = {"logits": logits} | options
    if bias is None:
        return inputs
    shift = make.randn(2 * experts, scale=abs(bias))[::2]
    return inputs | {"bias": shift - 10.0 if bias < 0 else shift}


def _same_choice(inputs: Inputs, got: Any, want: Any) -> None:
    assert torch.equal(got[1].cpu(), want[1].cpu()), f"ids {got[1].tolist()}, {want[1].tolist()}"
    assert_matches(got[0], want[0].to(got[0].device), "elementwise", label="routing weights")


def _router(
    experts: int,
    topk: int,
    groups: tuple[int, int] = (1, 1),
    *,
    bias: float | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    step: float = 0.0,
    rows: int = 5,
    size: str = "small",
) -> Case:
    """bias: spread of the correction, negative: all of them far below 0; None: softmax."""
    options: Inputs = {"topk": topk, "n_group": groups[0], "topk_group": groups[1]}
    options |= {"normalize": normalize, "scale": scale}
    shape: dict[str, Any] = {"rows": rows, "experts": experts, "step": step, "bias": bias}
    make = partial(_router_inputs, **shape, options=options)
    op = "route_softmax" if bias is None else "route_sigmoid"
    words = (rows, experts, topk, *groups, bias, "sum" if normalize else "raw", step)
    return Case(op, "-".join(map(str, words)), make, size, check=_same_choice)


CASES: tuple[Case, ...] = (
    _router(64, 8, (8, 4), bias=0.1, scale=2.5),
    _router(64, 6, (8, 3), bias=-1.0),  # choices below 0 stay above what is left out
    _router(24, 4, (3, 1), bias=0.3, normalize=False, scale=16.0, step=0.5),
    _router(9, 3, (9, 4), bias=0.2),  # groups of one
    _router(8, 4, bias=0.1, scale=2.5),
    _router(64, 8, step=0.5),
    _router(60, 5, (6, 2), normalize=False, scale=16.0),
    _router(24, 6, (4, 3), step=1.0),
    _router(24, 3, (2, 1), normalize=False),  # a group left out has the lower zeros
    _router(1, 1),
    _router(16, 4, rows=0),
    _router(256, 8, (8, 4), bias=0.1, scale=2.5, rows=64, size="model"),
    _router(128, 8, rows=64, size="model"),
    _router(160, 6, (8, 3), normalize=False, scale=16.0, rows=64, size="model"),
)
