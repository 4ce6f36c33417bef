"""The sum over a token's experts:  y[t] = sum_j weight[t, j] * part[t, j], in the list's order.

In fp32, one expert after the other: deterministic, and the same in any batch.  What names no
expert of the range has no part: its place in memory is not read.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


@triton.jit
def combine_kernel(
    y_ptr, part_ptr, weight_ptr, id_ptr, first_expert, num_experts, width, stride_t, stride_k,
    K: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width

    if EARLY:  # it was started before the kernel that makes the parts was over
        gdc_wait()
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):  # in the order of the list
        expert = tl.load(id_ptr + t * K + j).to(tl.int64) - first_expert
        inside = (expert >= 0) & (expert < num_experts)
        weight = tl.load(weight_ptr + t * stride_t + j * stride_k).to(tl.float32)
        part = tl.zeros((BLOCK,), tl.float32)
        for p in tl.static_range(PARTS):
            at = part_ptr + ((t * K + j) * PARTS + p) * width + cols
            part += tl.load(at, mask=cols < tl.where(inside, width, 0), other=0.0)
        total = tl.where(inside, total + part * weight, total)
    tl.store(y_ptr + t * width + cols, total.to(y_ptr.dtype.element_ty), mask=mask)
