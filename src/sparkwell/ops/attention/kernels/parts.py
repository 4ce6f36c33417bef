"""What the attention kernels share: a tile's request, one softmax step, the row's end.

All logits are in base 2 inside: exp2(x log2 e) is one instruction, exp(x) is two.
"""

import torch
import triton
import triton.language as tl

from sparkwell.ops.attention import schedule

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
CHUNK: tl.constexpr = tl.constexpr(schedule.CHUNK)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def find_request(starts_ptr, num_requests, steps, tile, ROWS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(request, the tile's number inside it).  starts count units of ROWS rows.

    steps: of the search, enough to halve num_requests to 1.

    Request i has the tiles from starts[i] * ROWS // BLOCK_M + i on: at least as many as its rows
    fill, so the grid is sized without reading a start; the last of them may be empty.
    """
    low, high = 0, num_requests
    for _ in range(steps):  # no `while`, no early end: warp specialization takes neither
        middle = (low + high) // 2
        first = tl.load(starts_ptr + middle).to(tl.int64) * ROWS // BLOCK_M + middle
        low = tl.where(first <= tile, middle, low)
        high = tl.where(first <= tile, high, middle)
    first = tl.load(starts_ptr + low).to(tl.int64) * ROWS // BLOCK_M + low
    return low, tile - first


@triton.jit
def span(starts_ptr, request, total):
    """(first, count) of a request's rows, inside 0..total whatever the starts say."""
    first = tl.load(starts_ptr + request).to(tl.int64)
    end = tl.load(starts_ptr + request + 1).to(tl.int64)
    first = tl.minimum(tl.maximum(first, 0), total)
    return first, tl.maximum(tl.minimum(end, total) - first, 0)


@triton.jit
def softmax_step(products, scale2, top, total):
    """(weights exp2(scale2 products - top'), exp2(top - top'), top', total').

    products: [BLOCK_M, BLOCK_N] of queries and keys, -inf where masked.  scale2: above 0.
    top: [BLOCK_M] largest score so far, -inf for none.  total: [BLOCK_M] sum of weights so far.
    """
    new_top = tl.maximum(top, tl.max(products, 1) * scale2)
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key yet: weights 0, not NaN
    weights = tl.exp2(products * scale2 - shift[:, None])
    factor = tl.exp2(top - shift)
    return weights, factor, new_top, total * factor + tl.sum(weights, 1)


@triton.jit
def positive(scale2):
    """|scale2|, above 0: -inf times it stays -inf."""
    return tl.maximum(tl.abs(scale2), 1e-30)


@triton.jit
def signed(x, scale2):
    """x with the sign of scale2, for the `positive` one."""
    sign = tl.where(scale2 < 0, -1.0, 1.0)
    return (x.to(tl.float32) * sign).to(x.dtype)


@triton.jit
def row_end(top, total):
    """(1 / total, lse in base 2) of each row; without a key 0 and +inf."""
    empty = total == 0.0
    lse = tl.where(empty, float("inf"), top + tl.log2(total))
    return tl.where(empty, 0.0, 1.0 / total), lse


@triton.jit
def sink_share(lse, sink):
    """1 / (1 + exp(sink - lse)), lse in base 2, sink natural; 0 without a key."""
    share = 1.0 / (1.0 + tl.exp2(sink * LOG2E - lse))
    return tl.where(lse == float("inf"), 0.0, share)


@triton.jit
def widen(x, FP8: tl.constexpr, DTYPE: tl.constexpr):
    """Values of a cache as DTYPE.  e4m3 comes as its type, or as bytes where the target has none.

    As bytes: exponent and mantissa moved into bfloat16's places are value * 2^-120, exactly.
    """
    if FP8 and x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        moved = ((bits & 0x80) << 8) | ((bits & 0x7F) << 4)
        value = moved.to(tl.bfloat16, bitcast=True).to(tl.float32) * 1.329227995784916e36  # 2^120
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), value).to(DTYPE)
    return x.to(DTYPE)


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """torch.bfloat16 -> tl.bfloat16."""
    return getattr(tl, str(dtype).removeprefix("torch."))
