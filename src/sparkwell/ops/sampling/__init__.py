"""Sampling: logits to tokens, one a row, and log-probabilities."""

from typing import TYPE_CHECKING

from sparkwell.lazy import lazily

if TYPE_CHECKING:
    from sparkwell.ops.sampling.api import draw, greedy, logprobs, sample
    from sparkwell.ops.sampling.batched import COLUMNS, draw_reference, drawing_table
    from sparkwell.ops.sampling.reference import (
        NOTHING,
        SamplingRow,
        adjusted_logits_reference,
        cannot_be_sampled,
        greedy_reference,
        logprobs_reference,
        sample_reference,
        uniform,
    )

__all__ = [
    "COLUMNS",
    "NOTHING",
    "SamplingRow",
    "adjusted_logits_reference",
    "cannot_be_sampled",
    "draw",
    "draw_reference",
    "drawing_table",
    "greedy",
    "greedy_reference",
    "logprobs",
    "logprobs_reference",
    "sample",
    "sample_reference",
    "uniform",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, "api", "batched", "reference")
