"""What a batch's rows need before keys are scored, in one launch.

request[t]: how many of query_start[1:] are <= t;  visible[t] = keys of that request up to row t.
FP8 queries per (row, head): scale = 2^ceil(log2(max(amax, floor) / 448)), codes = e4m3(q / scale),
and the scale goes into the head's weight.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import e4m3_code, group_scale
from sparkwell.ops.kernels.requests import request_of


@triton.jit
def queries_kernel(
    code_ptr, scaled_ptr, request_ptr, visible_ptr, q_ptr, weight_ptr, start_ptr, length_ptr,
    num_requests, heads, d, stride_t, stride_h, stride_weight, floor,
    FP8: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    if tl.program_id(1) == 0:
        request = tl.minimum(request_of(t, start_ptr, num_requests, 128), num_requests - 1)
        end = tl.load(start_ptr + request + 1).to(tl.int32)
        tl.store(request_ptr + t, request)
        tl.store(visible_ptr + t, tl.load(length_ptr + request).to(tl.int32) - end + t + 1)
    if FP8:
        row = t.to(tl.int64)
        h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        n = tl.arange(0, BLOCK_D)[None, :]
        mask = (h[:, None] < heads) & (n < d)
        at = q_ptr + row * stride_t + h[:, None] * stride_h + n
        q = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        scale = group_scale(q, floor, True, 1)
        codes = e4m3_code(tl.math.div_rn(q, scale[:, None] + tl.zeros_like(q)))
        tl.store(code_ptr + (row * heads + h[:, None]) * d + n, codes, mask=mask)
        weight = tl.load(weight_ptr + row * stride_weight + h, mask=h < heads, other=0.0)
        tl.store(scaled_ptr + row * heads + h, weight.to(tl.float32) * scale, mask=h < heads)
