"""Batch: everything one forward pass must know about its requests, passed explicitly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from sparkwell.errors import BadInput


@dataclass(frozen=True)
class Span:
    """One request's share of a step: consecutive tokens, and the pages that hold its context."""

    token_ids: Sequence[int]
    start: int  # position of the first of them in the request
    pages: Sequence[int]  # physical pages, in logical order; cover start + len(token_ids)
    logits: str = "last"  # rows whose logits are wanted: "last", "all" or "none"


@dataclass(frozen=True)
class Batch:
    """Ragged tokens of B requests, prefill chunks and decode steps side by side.

    token_ids:    [T] int64
    positions:    [T] int64, position of each token in its own request
    slots:        [T] int64, cache slot of each token: page * page_size + offset
    query_start:  [B+1] int32, request i owns rows query_start[i]:query_start[i+1]
    context_lens: [B] int32, keys of each request, this step's included
    block_table:  [B, P] int32, physical page of each logical page, -1 beyond
    logit_rows:   [R] int64, rows whose logits the caller wants, in request order
    query_lens, key_lens: the same lengths on the host, so that planning never waits for a device
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    logit_rows: torch.Tensor
    query_lens: tuple[int, ...]
    key_lens: tuple[int, ...]
    page_size: int

    @staticmethod
    def build(
        spans: Sequence[Span], *, page_size: int, device: str | torch.device = "cpu"
    ) -> "Batch":
        """The batch of these spans.  BadInput where a span's pages do not cover its tokens."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts: list[int] = [0]
        rows: list[int] = []
        for i, span in enumerate(spans):
            end = span.start + len(span.token_ids)
            if len(span.pages) * page_size < end:
                raise BadInput(
                    f"batch: span {i} has {len(span.pages)} pages of {page_size} tokens for "
                    f"{end} tokens; want {-(-end // page_size)} pages"
                )
            ids += span.token_ids
            where = range(span.start, end)
            positions += where
            slots += [span.pages[p // page_size] * page_size + p % page_size for p in where]
            first, last = starts[-1], starts[-1] + len(span.token_ids)
            if span.logits == "all":
                rows += range(first, last)
            elif span.logits == "last" and last > first:
                rows.append(last - 1)
            starts.append(last)
        lens = [s.start + len(s.token_ids) for s in spans]
        width = max([-(-n // page_size) for n in lens], default=0)
        table = [(list(s.pages) + [-1] * width)[:width] for s in spans]

        def tensor(values: object, dtype: torch.dtype) -> torch.Tensor:
            made = torch.tensor(values, dtype=dtype)
            if torch.device(device).type != "cuda":
                return made.to(device)
            return made.pin_memory().to(device, non_blocking=True)

        return Batch(
            token_ids=tensor(ids, torch.int64),
            positions=tensor(positions, torch.int64),
            slots=tensor(slots, torch.int64),
            query_start=tensor(starts, torch.int32),
            context_lens=tensor(lens, torch.int32),
            block_table=tensor(table, torch.int32).view(len(spans), width),
            logit_rows=tensor(rows, torch.int64),
            query_lens=tuple(len(s.token_ids) for s in spans),
            key_lens=tuple(lens),
            page_size=page_size,
        )

    @property
    def max_query_len(self) -> int:
        """Rows of the longest share."""
        return max(self.query_lens, default=0)

    @property
    def max_context_len(self) -> int:
        """Keys of the longest context."""
        return max(self.key_lens, default=0)

    @property
    def num_requests(self) -> int:
        """B, the number of requests."""
        return len(self.query_lens)

    @cached_property
    def request_of_token(self) -> torch.Tensor:
        """[T] int64: the request each row belongs to; the same in every layer."""
        lens = self.query_start.diff().to(torch.int64)
        order = torch.arange(self.num_requests, device=lens.device)
        rows = sum(self.query_lens)  # known here: without it a GPU would be waited for
        return torch.repeat_interleave(order, lens, output_size=rows)

    def select(self, requests: Sequence[int]) -> tuple[torch.Tensor | slice, "Batch"]:
        """The rows of these requests, in order, and the batch that holds them alone."""
        if len(requests) == self.num_requests:
            return slice(None), self
        bounds = [0]
        for n in self.query_lens:
            bounds.append(bounds[-1] + n)
        device = self.token_ids.device
        picked = [row for i in requests for row in range(bounds[i], bounds[i + 1])]
        rows = torch.tensor(picked, dtype=torch.int64, device=device)
        which = torch.tensor(list(requests), dtype=torch.int64, device=device)
        lens = self.query_start.diff()[which]
        query_start = torch.zeros(len(requests) + 1, dtype=torch.int32, device=device)
        query_start[1:] = lens.cumsum(0)
        return rows, Batch(
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            slots=self.slots[rows],
            query_start=query_start,
            context_lens=self.context_lens[which],
            block_table=self.block_table[which],
            logit_rows=self.logit_rows[:0],
            query_lens=tuple(self.query_lens[i] for i in requests),
            key_lens=tuple(self.key_lens[i] for i in requests),
            page_size=self.page_size,
        )
