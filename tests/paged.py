"""Hostile paged batches, and attention one key at a time in Python floats (fp64)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparkwell.formats.kv import Record
from sparkwell.formats.paged import PagedCache
from sparkwell.testing import in_poison

GARBAGE = 2147480000  # what unused index entries hold


@dataclass
class Paged:
    """A batch over one cache, with what each request's context should read as."""

    cache: PagedCache
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    contexts: list[torch.Tensor]  # [length, width] fp32, dequantized

    @property
    def metadata(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query_start, self.context_lens, self.block_table


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def starts(counts: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int()


def poisoned_cache(record: Record, num_pages: int, page_size: int) -> PagedCache:
    """Every byte 0xff, which reads as NaN in fp32, bf16 and e4m3; a gap after every page."""
    nbytes = record.page_nbytes(page_size)
    pages = torch.full((num_pages, nbytes + 16), 255, dtype=torch.uint8)
    return PagedCache(record, page_size, pages[:, :nbytes])


def paged_batch(
    record: Record,
    counts: Sequence[int],
    lengths: Sequence[int],
    *,
    page_size: int,
    spread: float = 1.0,
    integer: bool = False,
) -> Paged:
    """Requests on scattered pages of a poisoned cache; tables end in garbage and are strided.

    counts, lengths: query rows and keys of each request.  The first page of requests 0 and 1 is
    shared where both fill it, as two prompts with a common beginning would have it.
    """
    need = [-(-n // page_size) for n in lengths]
    order = torch.randperm(sum(need) + 3).tolist()
    table = torch.full((len(lengths), max(need, default=0) + 2), GARBAGE, dtype=torch.int32)
    cache = poisoned_cache(record, sum(need) + 3, page_size)
    contexts = []
    for i, length in enumerate(lengths):
        pages = [order.pop() for _ in range(need[i])]
        values = torch.randn(length, record.width) * spread
        if integer:
            values = torch.randint(-2, 3, (length, record.width)).float()
        if i == 1 and min(lengths[:2]) >= page_size:
            pages[0] = int(table[0, 0])
            values[:page_size] = contexts[0][:page_size]
        table[i, : need[i]] = torch.tensor(pages)
        position = torch.arange(length)
        slots = torch.tensor(pages, dtype=torch.int64)[position // page_size] * page_size
        cache.write(slots + position % page_size, values)
        contexts.append(cache.read(slots + position % page_size))
    return Paged(
        cache,
        in_poison(starts(counts)),
        in_poison(torch.tensor(lengths, dtype=torch.int32)),
        in_poison(table),
        contexts,
    )


def brute_force(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: Sequence[int],
    scale: float,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One query row: q [H, d], k [m, Hk, d], v [m, Hk, dv], keys counted as often as listed.

    -> out [H, dv], lse [H], max logit [H]; no key: 0, +inf, -inf.
    """
    heads, group = q.shape[0], q.shape[0] // k.shape[1]
    out = torch.zeros(heads, v.shape[2], dtype=torch.float64)
    lse, top = [math.inf] * heads, [-math.inf] * heads
    for h in range(heads):
        if not visible:
            continue
        row = q[h].double()
        logits = [scale * float(row @ k[j, h // group].double()) for j in visible]
        top[h] = max(logits)
        total = math.fsum(math.exp(x - top[h]) for x in logits)
        lse[h] = top[h] + math.log(total)
        for j, x in zip(visible, logits, strict=True):
            out[h] += math.exp(x - lse[h]) * v[j, h // group].double()
        if sink is not None:
            gap = float(sink[h]) - lse[h]
            out[h] = 0.0 if gap > 700 else out[h] / (1 + math.exp(gap))
    return out.float(), torch.tensor(lse), torch.tensor(top)


def seen(position: int, length: int, causal: bool = True, window: int | None = None) -> list[int]:
    """Keys that a query at `position` of `length` keys sees."""
    return [
        j
        for j in range(length)
        if not causal or (j <= position and (window is None or position - j < window))
    ]


def rows_of(batch_starts: torch.Tensor, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(row, request, position) of every query row."""
    edges = batch_starts.tolist()
    return [
        (row, i, length - edges[i + 1] + row)
        for i, length in enumerate(lengths)
        for row in range(edges[i], edges[i + 1])
    ]
