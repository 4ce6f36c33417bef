"""Ragged paged batches: which query rows and which cache slots belong to which request.

Request i owns query rows query_start[i]:query_start[i+1]; they are the last ones of its
context_lens[i] positions (bottom-right aligned).  slot = page * page_size + offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparkwell.errors import BadInput
from sparkwell.formats.paged import PagedCache

SCRATCH_BYTES = 64 << 20  # what a reference may hold in intermediate scores at one time


@dataclass(frozen=True)
class Share:
    """One request's part of a batch.

    rows: its query rows.  length: its keys, this step's included.
    first_position: position of the first row; rows at negative positions see no key.
    """

    request: int
    rows: slice
    length: int
    first_position: int


def shares(
    op: str, num_rows: int, query_start: torch.Tensor, context_lens: torch.Tensor
) -> list[Share]:
    """The requests that have query rows; [B+1], [B] integers -> at most B shares.

    Raises BadInput where query_start does not climb from 0 to num_rows, or a length is negative.
    """
    starts, lengths = climb(op, "query_start", query_start, num_rows), context_lens.tolist()
    if min(lengths, default=0) < 0:
        raise BadInput(f"{op}: context_lens is {lengths}, want no length below 0")
    edges = enumerate(zip(starts[:-1], starts[1:], lengths, strict=True))
    return [Share(i, slice(a, b), n, n - (b - a)) for i, (a, b, n) in edges if b > a]


def climb(op: str, name: str, starts: torch.Tensor, total: int) -> list[int]:
    """`starts` as a list: 0, ..., total, never descending.  Raises BadInput where it is not."""
    edges = starts.tolist()
    ordered = all(a <= b for a, b in zip(edges[:-1], edges[1:], strict=True))
    if edges[0] != 0 or edges[-1] != total or not ordered:
        raise BadInput(f"{op}: {name} is {edges}, want it to climb from 0 to the {total} rows")
    return edges


def context_slots(
    op: str, cache: PagedCache, block_table: torch.Tensor, request: int, first: int, last: int
) -> torch.Tensor:
    """Slots of positions first..last-1 of one request, int64 [last - first].

    Only the table entries of those positions are looked at; the others may hold anything.
    Raises BadInput where the table ends before `last` or names a page that the cache lacks.
    """
    size = cache.page_size
    low, high = first // size, -(-last // size)
    if high > block_table.shape[1]:
        raise BadInput(
            f"{op}: request {request} has {last} keys on {high} pages of {size}, its block_table "
            f"row has {block_table.shape[1]} entries; widen the table"
        )
    pages = block_table[request, low:high].long()
    if bool(((pages < 0) | (pages >= cache.num_pages)).any()):
        raise BadInput(
            f"{op}: request {request} reads pages {pages.tolist()}, the cache has "
            f"{cache.num_pages}; give it pages before the step that reads them"
        )
    slots = pages[:, None] * size + torch.arange(size, device=pages.device)
    return slots.flatten()[first - low * size : last - low * size]


def row_blocks(rows: slice, bytes_per_row: int) -> Iterator[slice]:
    """Cuts `rows` so that a block needs at most SCRATCH_BYTES, or is a single row."""
    step = max(1, SCRATCH_BYTES // max(1, bytes_per_row))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def check_batch(
    op: str, query_start: torch.Tensor, context_lens: torch.Tensor, block_table: torch.Tensor
) -> None:
    """Shapes and dtypes of a batch's metadata; reads no value, so it never waits for a device.

    Raises BadInput where they are not [B+1], [B], [B, P] integers.
    """
    check_integers(op, "query_start", query_start, 1)
    check_integers(op, "context_lens", context_lens, 1)
    check_integers(op, "block_table", block_table, 2)
    num = len(context_lens)
    if len(query_start) != num + 1 or len(block_table) != num:
        raise BadInput(
            f"{op}: query_start {list(query_start.shape)}, context_lens [{num}], block_table "
            f"{list(block_table.shape)}; want [B+1], [B], [B, pages]"
        )


def check_integers(op: str, name: str, tensor: torch.Tensor, ndim: int) -> None:
    """Raises BadInput unless `tensor` is int32 or int64 with `ndim` dimensions."""
    if tensor.ndim != ndim or tensor.dtype not in (torch.int32, torch.int64):
        raise BadInput(
            f"{op}: {name} is {shown(tensor)}, want int32 (or int64) with {ndim} dimension"
            f"{'s' if ndim > 1 else ''}"
        )


def unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, neighbours in the last dimension side by side, as kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def shown(tensor: torch.Tensor) -> str:
    """Dtype and shape for a message: "float32 [3, 4]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
