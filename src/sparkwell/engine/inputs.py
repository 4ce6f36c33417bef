"""What changes from one recorded step to the next: static buffers, filled on the host."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sparkwell.engine.scheduler import Work
from sparkwell.models.batch import Batch


class Mirror:
    """Bytes on the host and their copy on the device, made in one go and never waited for."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        there = device.type == "cuda"
        self.host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=there)
        self.device = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if there else None

    def send(self) -> None:
        """Copy the host's bytes, behind the work that was asked of the device before."""
        self.device.copy_(self.host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def free(self) -> None:
        """Wait until the host's bytes may change: the last copy may be of a step that failed."""
        if self._sent is not None:
            self._sent.synchronize()


@dataclass
class Inputs:
    """A step of decodes, padded to `rows`: its batch on the device, to be filled each time.

    A padding row is a request without a key or a cache slot: it reads nothing and writes nothing.
    """

    rows: int
    width: int  # of the block table
    batch: Batch
    buffer: Mirror
    _pages: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._pages = [[] for _ in range(self.rows)]
        _views(self.buffer.host, self.rows, self.width)[-1].fill_(-1)

    @classmethod
    def allocate(cls, rows: int, context: int, page_size: int, device: torch.device) -> "Inputs":
        """Buffers for `rows` requests of up to `context` tokens, holding padding."""
        width = -(-context // page_size)
        buffer = Mirror(sum(_parts(rows, width)), device)
        token_ids, positions, slots, lens, table = _views(buffer.device, rows, width)
        batch = Batch(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
            context_lens=lens,
            block_table=table,
            logit_rows=torch.arange(rows, device=device),
            query_lens=(1,) * rows,
            key_lens=(context,) * rows,
            page_size=page_size,
        )
        inputs = cls(rows, width, batch, buffer)
        inputs.fill([])
        return inputs

    def fill(self, work: Sequence[Work]) -> None:
        """Write these decodes, then padding, and send it to the device."""
        size, none = self.batch.page_size, self.rows - len(work)
        ids = [w.request.all_ids[w.start] for w in work]
        slots = [w.request.pages[w.start // size] * size + w.start % size for w in work]
        starts = [w.start for w in work]
        self.buffer.free()
        token_ids, positions, slot, lens, table = _views(self.buffer.host, self.rows, self.width)
        token_ids.copy_(torch.tensor(ids + [0] * none))
        positions.copy_(torch.tensor(starts + [0] * none))
        slot.copy_(torch.tensor(slots + [-1] * none))
        lens.copy_(torch.tensor([start + 1 for start in starts] + [0] * none))
        for row, w in enumerate(work):
            pages = w.request.pages[: w.start // size + 1]
            if self._pages[row] != pages:  # most steps change no page
                table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
                self._pages[row] = pages
        self.buffer.send()


def _parts(rows: int, width: int) -> list[int]:
    """Bytes of each part of a buffer; every one starts on 16, as kernels read pointers best."""
    sizes = (8 * rows, 8 * rows, 8 * rows, 4 * rows, 4 * rows * width)
    return [-(-size // 16) * 16 for size in sizes]


def _views(buffer: torch.Tensor, rows: int, width: int) -> tuple[torch.Tensor, ...]:
    """token ids, positions, slots [rows] int64; lengths [rows], block table [rows, width] int32."""
    *columns, table = buffer.split(_parts(rows, width))
    kinds = (torch.int64, torch.int64, torch.int64, torch.int32)
    views = [part.view(kind)[:rows] for part, kind in zip(columns, kinds, strict=True)]
    return (*views, table.view(torch.int32)[: rows * width].view(rows, width))
