"""Which keys a query row reads: a list of slots, or all positions of its request up to its own.

PAGED: the row's request i is found on the device, query_start[i] <= t < query_start[i + 1]; the row
sees context_lens[i] - query_start[i + 1] + t + 1 keys, on the pages of row i of the block table.
A slot or a page that the cache does not have is no key.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.requests import request_of


@triton.jit
def key_list(
    t, lists_ptr, length_ptr, start_ptr, num_requests, width, stride_lists, PAGED: tl.constexpr
):  # fmt: skip
    """Where the row's list (or table) starts, and how many keys it names."""
    if PAGED:
        request = request_of(t, start_ptr, num_requests, 128)
        request = tl.minimum(request, num_requests - 1)  # a row that belongs to none reads no start
        end = tl.load(start_ptr + request + 1).to(tl.int32)
        length = tl.load(length_ptr + request).to(tl.int32)
        count = tl.minimum(tl.minimum(length - end + t.to(tl.int32) + 1, length), width)
        row = lists_ptr + request.to(tl.int64) * stride_lists
    else:
        count = width
        if length_ptr is not None:
            count = tl.minimum(width, tl.load(length_ptr + t).to(tl.int32))
        row = lists_ptr + t * stride_lists
    return row, tl.maximum(count, 0)


@triton.jit
def key_offsets(
    list_row, n, last, limit, page_stride, PAGED: tl.constexpr, PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
):  # fmt: skip
    """Offset of each key's record in the pages, in elements, and which of the keys exist.

    limit: slots of the cache, pages if PAGED.  PAGE: tokens of a page; 0 (with slots only): pages
    follow each other without gap.
    """
    if PAGED:
        page = tl.load(list_row + n // PAGE, mask=n < last, other=-1)
        ok = (page >= 0) & (page < limit)
        at = tl.where(ok, page, 0).to(tl.int64) * page_stride + (n % PAGE) * STRIDE
    else:
        slot = tl.load(list_row + n, mask=n < last, other=-1)
        ok = (slot >= 0) & (slot < limit)
        slot = tl.where(ok, slot, 0).to(tl.int64)
        if PAGE == 0:
            at = slot * STRIDE
        else:
            at = (slot // PAGE) * page_stride + (slot % PAGE) * STRIDE
    return at, ok
