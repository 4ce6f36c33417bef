"""Which request a row of a ragged batch belongs to, found on the device."""

import triton
import triton.language as tl


@triton.jit
def request_of(t, start_ptr, num_requests, BLOCK: tl.constexpr):
    """The request that owns row t: how many of query_start[1:] are <= t."""
    request = 0
    for first in range(0, num_requests, BLOCK):
        i = first + tl.arange(0, BLOCK)
        start = tl.load(start_ptr + 1 + i, mask=i < num_requests, other=2147483647)
        request += tl.sum((start <= t).to(tl.int32), 0)
    return request
