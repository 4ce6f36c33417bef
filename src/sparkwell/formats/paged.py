"""Pages of cache records: slot = page * page_size + offset names one token."""

from dataclasses import dataclass

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.kv import Record


@dataclass(eq=False)
class PagedCache:
    """Pages of records; slot = page * page_size + offset names one token.

    pages: [num_pages, record.page_nbytes(page_size)] uint8, each page contiguous; the distance
    between pages (stride 0) may be larger than a page.
    Raises BadInput for another shape, type, or a layout that misaligns the numbers inside.
    """

    record: Record
    page_size: int
    pages: torch.Tensor

    def __post_init__(self) -> None:
        record, pages = self.record, self.pages
        if self.page_size < 1:
            raise BadInput(f"PagedCache: page_size is {self.page_size}, want at least 1")
        want = record.page_nbytes(self.page_size)
        if pages.dtype != torch.uint8 or pages.ndim != 2 or pages.shape[1] != want:
            raise BadInput(
                f"PagedCache: pages are {pages.dtype} {list(pages.shape)}, want uint8 [n, {want}] "
                f"for {self.page_size} tokens of {record.name}"
            )
        strides, aligned = pages.stride(), record.alignment
        if strides[1] != 1 or strides[0] % aligned or pages.storage_offset() % aligned:
            raise BadInput(
                f"PagedCache: pages have strides {list(strides)} at byte {pages.storage_offset()}, "
                f"want contiguous pages at multiples of {aligned} bytes"
            )

    @classmethod
    def allocate(
        cls, record: Record, num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> "PagedCache":
        """A cache of zero bytes, which every record reads as zeros."""
        if num_pages < 0 or page_size < 1:
            raise BadInput(
                f"PagedCache.allocate: {num_pages} pages of {page_size} tokens, want at least 0 "
                "pages of at least 1"
            )
        shape = (num_pages, record.page_nbytes(page_size))
        return cls(record, page_size, torch.zeros(shape, dtype=torch.uint8, device=device))

    @property
    def num_pages(self) -> int:
        """How many pages there are."""
        return self.pages.shape[0]

    @property
    def num_slots(self) -> int:
        """How many tokens fit."""
        return self.num_pages * self.page_size

    def write(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        """Packs values[i] into slots[i]; slot -1 is skipped (a padding token).

        slots: [n] int64 (or int32); of equal slots any one may win.  values: [n, width] float.
        Raises BadInput for slots out of range or shapes that disagree; then nothing is written.
        """
        if slots.ndim != 1 or values.shape[:1] != slots.shape:
            raise BadInput(
                f"PagedCache.write: slots {list(slots.shape)}, values {list(values.shape)}, want "
                f"[n] and [n, {self.record.width}]"
            )
        used = slots != -1
        if not bool(used.all()):
            slots, values = slots[used], values[used]
        page, offset = self._place("write", slots)
        packed = self.record.pack(values)
        for start, stop, rows in self._planes():
            rows[page, offset] = packed[:, start:stop]

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """The values at `slots`, dequantized.

        slots: [n] int64 (or int32), each one inside the cache.  Returns fp32 [n, width].
        Raises BadInput for slots out of range, -1 included.
        """
        page, offset = self._place("read", slots)
        columns = [_gather(_as_words(rows), page, offset) for _, _, rows in self._planes()]
        return self.record.unpack(columns[0] if len(columns) == 1 else torch.cat(columns, 1))

    def _planes(self) -> list[tuple[int, int, torch.Tensor]]:
        """(first byte, last byte + 1 within a record, their view [num_pages, page_size, bytes])."""
        record, size = self.record, self.page_size
        if not record.planar:
            return [(0, record.nbytes, self.pages.unflatten(1, (size, record.nbytes)))]
        planes = []
        for field in record.fields:
            start, stop = field.offset, field.offset + field.nbytes
            plane = self.pages[:, size * start : size * stop]
            planes.append((start, stop, plane.unflatten(1, (size, field.nbytes))))
        return planes

    def _place(self, verb: str, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(page, offset) of each slot, int64."""
        if slots.ndim != 1 or slots.dtype not in (torch.int64, torch.int32):
            raise BadInput(
                f"PagedCache.{verb}: slots are {slots.dtype} {list(slots.shape)}, want int64 [n]"
            )
        slots = slots.long()
        bad = slots[(slots < 0) | (slots >= self.num_slots)]
        if bad.numel():
            raise BadInput(
                f"PagedCache.{verb}: slot {int(bad[0])} (and {bad.numel() - 1} more) outside the "
                f"{self.num_pages} pages of {self.page_size} tokens, want 0 <= slot < "
                f"{self.num_slots}"
            )
        return slots // self.page_size, slots % self.page_size


def _as_words(rows: torch.Tensor) -> torch.Tensor:
    """The same bytes in the widest integers their layout allows: a gather moves words as fast."""
    for dtype in (torch.int64, torch.int32):
        steps = (rows.shape[-1], *rows.stride()[:-1], rows.storage_offset())
        if all(step % dtype.itemsize == 0 for step in steps):
            return rows.view(dtype)
    return rows


def _gather(rows: torch.Tensor, page: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """rows[page, offset] as bytes; where pages lie side by side, one index does for both."""
    if rows.is_contiguous():
        flat = rows.flatten(0, 1).index_select(0, page * rows.shape[1] + offset)
    else:
        flat = rows[page, offset]
    return flat.view(torch.uint8)
