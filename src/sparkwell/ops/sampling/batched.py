"""Sampling of all rows at once, in torch: what `reference` does, without waiting for the device.

A row's numbers are the reference's own operations in its order, so on the CPU they are bit for bit
its numbers.  A row that cannot be sampled draws NOTHING; nobody waits to raise.
"""

import math
from collections.abc import Sequence

import torch

from sparkwell.ops.sampling.reference import NOTHING, History, SamplingRow, check_ids

Cells = tuple[torch.Tensor, torch.Tensor]  # rows, ids: places in [B, V]


def sample_batched(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    histories: Sequence[History],
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """`sample` of checked operands.  [B, V], B rows, B histories, [B] -> [B] int64"""
    x = logits.to(torch.float32, copy=True)
    _adjust(x, rows, histories)
    largest = x.amax(-1, keepdim=True)  # NaN spreads through the maximum
    place = torch.arange(x.shape[-1], 0, -1, device=x.device)
    ids = ((x == largest) * place).argmax(-1)
    if any(row.temperature > 0.0 for row in rows):
        # A division by a tensor: by a Python number a GPU multiplies with the inverse.
        x = (x - largest) / _column([row.temperature or 1.0 for row in rows], x)
        drawn = _inverse_cdf(_masked(x, rows), move(uniforms.double(), x.device)[:, None])
        ids = torch.where(_column([row.temperature for row in rows], x)[:, 0] > 0.0, drawn, ids)
    return ids.masked_fill(~largest.isfinite()[:, 0], NOTHING)


def _adjust(x: torch.Tensor, rows: Sequence[SamplingRow], histories: Sequence[History]) -> None:
    """Bias, suppressed ids and penalties, in place."""
    vocab = x.shape[-1]
    biased = [check_ids("logit_bias", row.logit_bias, vocab) for row in rows]
    if any(biased):
        at = _cells(biased, x)
        values = [value for row in rows for value in row.logit_bias.values()]
        x[at] += move(torch.tensor(values, dtype=x.dtype), x.device)
    suppressed = [[i for i in row.suppressed if 0 <= i < vocab] for row in rows]
    if any(suppressed):
        x.index_put_(_cells(suppressed, x), x.new_full((), -torch.inf))
    repeated = [
        check_ids("history", {*prompt, *output}, vocab) if row.repetition_penalty != 1.0 else []
        for row, (prompt, output) in zip(rows, histories, strict=True)
    ]
    if any(repeated):
        at = _cells(repeated, x)
        seen, factor = x[at], _column([row.repetition_penalty for row in rows], x)[at[0], 0]
        x.index_put_(at, torch.where(seen > 0, seen / factor, seen * factor))
    counted = [
        check_ids("output", output, vocab) if row.presence_penalty or row.frequency_penalty else []
        for row, (_, output) in zip(rows, histories, strict=True)
    ]
    if any(counted):
        one = x.new_ones(())
        counts = torch.zeros_like(x).index_put_(_cells(counted, x), one, accumulate=True)
        frequency = _column([row.frequency_penalty for row in rows], x)
        presence = _column([row.presence_penalty for row in rows], x)
        x -= frequency * counts + presence * (counts > 0)


def _masked(x: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """top-k, top-p, min-p; of tied tokens the lower id stays."""
    vocab = x.shape[-1]
    k = [row.top_k if 0 < row.top_k < vocab else vocab for row in rows]
    # A row without top-p keeps all of it, though its sum may be rounded up to 1 before the end.
    p = [row.top_p if row.top_p < 1.0 else math.inf for row in rows]
    if min(k, default=vocab) < vocab or min(p, default=math.inf) < 1.0:
        likeliest, order = x.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(vocab, device=x.device)
        likeliest.masked_fill_(rank >= move(torch.tensor(k), x.device)[:, None], -torch.inf)
        if min(p) < 1.0:
            enough = move(torch.tensor(p, dtype=torch.float64), x.device)[:, None]
            reached = likeliest.double().softmax(-1).cumsum(-1) >= enough
            likeliest[:, 1:].masked_fill_(reached[:, :-1], -torch.inf)
        x = x.scatter(-1, order, likeliest)
    if any(row.min_p > 0.0 for row in rows):
        least = [math.log(row.min_p) if row.min_p > 0.0 else -math.inf for row in rows]
        x = x.masked_fill(x < _column(least, x), -torch.inf)
    return x


def _inverse_cdf(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[B, V], [B, 1] -> [B]"""
    cdf = x.double().softmax(-1).cumsum(-1)
    total = cdf[:, -1:].contiguous()
    # A number just below 1 may have been rounded up to 1: that is the last token to be drawn.
    last = torch.searchsorted(cdf, total)
    return torch.searchsorted(cdf, u * total, right=True).minimum(last)[:, 0]


def logprobs_batched(
    logits: torch.Tensor, ids: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`logprobs` of checked operands; rows of NaN give NaN.  -> [B], [B, top] int64, [B, top]"""
    x = logits.float()
    scores = x.log_softmax(-1)
    chosen = scores.gather(-1, ids.clamp(min=0)[:, None])[:, 0]
    top_ids = x.sort(dim=-1, descending=True, stable=True).indices[:, :top]
    return chosen, top_ids, scores.gather(-1, top_ids)


def move(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`; to a GPU without waiting for it."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _column(values: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    """A number for each row, as [B, 1] in fp32."""
    return move(torch.tensor(values, dtype=torch.float32), x.device)[:, None]


def _cells(ids: Sequence[Sequence[int]], x: torch.Tensor) -> Cells:
    """Row by row these ids, as an index into x [B, V]."""
    pairs = [(row, i) for row, of_row in enumerate(ids) for i in of_row]
    where = move(torch.tensor(pairs, dtype=torch.int64), x.device)
    return where[:, 0], where[:, 1]
