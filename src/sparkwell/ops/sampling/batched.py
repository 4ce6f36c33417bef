"""Sampling of all rows at once, in torch: what `reference` does, without waiting for the device.

A row's numbers are the reference's own operations in its order, so on the CPU they are bit for bit
its numbers.  A row that cannot be sampled draws NOTHING; nobody waits to raise.
"""

import math
from collections.abc import Callable, Sequence

import torch

from sparkwell.ops.sampling.reference import NOTHING, History, SamplingRow, check_ids

COLUMNS = 5  # of the table of `drawing_table`
Cells = tuple[torch.Tensor, torch.Tensor]  # rows, ids: places in [B, V]


def sample_batched(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    histories: Sequence[History],
    uniforms: torch.Tensor,
    draw: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """`sample` of checked operands.  [B, V], B rows, B histories, [B] -> [B] int64"""
    table, sorts = drawing_table(rows, uniforms.tolist(), logits.shape[-1])
    return draw(adjusted(logits, rows, histories), move(table, logits.device), sorts=sorts)


def drawing_table(
    rows: Sequence[SamplingRow], uniforms: Sequence[float], vocab: int
) -> tuple[torch.Tensor, bool]:
    """What `draw` has to know of each row, [B, COLUMNS] fp64, and whether it has to sort.

    Columns: temperature, tokens to keep by top-k, probability to keep by top-p (infinity: all,
    though a sum may be rounded up to 1 before its end), logit to reach for min-p, uniform.
    """
    columns = [
        (
            row.temperature,
            row.top_k if 0 < row.top_k < vocab else vocab,
            row.top_p if row.top_p < 1.0 else math.inf,
            math.log(row.min_p) if row.min_p > 0.0 else -math.inf,
            u,
        )
        for row, u in zip(rows, uniforms, strict=True)
    ]
    sorts = any(k < vocab or p < 1.0 for _, k, p, _, _ in columns)
    return torch.tensor(columns, dtype=torch.float64).view(-1, COLUMNS), sorts


def draw_reference(x: torch.Tensor, table: torch.Tensor, *, sorts: bool) -> torch.Tensor:
    """The meaning of `draw`, in torch: waits for no device.  [B, V], [B, COLUMNS] -> [B] int64"""
    temperature, k, p, least, u = table.split(1, -1)
    largest = x.amax(-1, keepdim=True)  # NaN spreads through the maximum
    place = torch.arange(x.shape[-1], 0, -1, device=x.device)
    ids = ((x == largest) * place).argmax(-1)
    hot = temperature > 0.0
    # A division by a tensor: by a Python number a GPU multiplies with the inverse.
    y = (x - largest) / torch.where(hot, temperature, 1.0).float()
    if sorts:
        likeliest, order = y.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(x.shape[-1], device=x.device)
        likeliest.masked_fill_(rank >= k, -torch.inf)
        reached = likeliest.double().softmax(-1).cumsum(-1) >= p
        likeliest[:, 1:].masked_fill_(reached[:, :-1], -torch.inf)
        y = y.scatter(-1, order, likeliest)
    y = y.masked_fill(y < least.float(), -torch.inf)
    ids = torch.where(hot[:, 0], _inverse_cdf(y, u), ids)
    return ids.masked_fill(~largest.isfinite()[:, 0], NOTHING)


def adjusted(
    logits: torch.Tensor, rows: Sequence[SamplingRow], histories: Sequence[History]
) -> torch.Tensor:
    """The logits with bias, suppressed ids and penalties, in fp32."""
    if not any(row.adjusts for row in rows):
        return logits.float()
    x = logits.to(torch.float32, copy=True)
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
