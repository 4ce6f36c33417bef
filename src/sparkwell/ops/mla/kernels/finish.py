"""The end of an online softmax, and the merge of partial ones.

    o = acc / l,  lse = ln sum exp(s),  with a sink logit  o /= 1 + exp(sink - lse)

Partial results are fp32, normalised, with lse in base 2; final ones carry the natural logarithm,
and a row without a key has out 0, lse +inf, largest score -inf.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def final_lse(lse2):
    """Base 2 to natural; no key at all: +inf."""
    return tl.where(lse2 == -float("inf"), float("inf"), lse2 * LN_2)


@triton.jit
def sink_weight(lse, sink_ptr, h, heads):
    """1 / (1 + exp(sink - lse)), the share of the softmax that a sink leaves to the keys."""
    sink = tl.load(sink_ptr + h, mask=h < heads, other=0.0).to(tl.float32)
    return tl.where(lse == float("inf"), 0.0, 1.0 / (1.0 + tl.exp(sink - lse)))


@triton.jit
def finish(l, m, sink_ptr, h, heads, SPLITS: tl.constexpr):  # noqa: E741
    """Weight of the accumulated output, lse and largest score of each head.

    l: sum of exp2(s - m).  m: largest s in base 2.  SPLITS > 1: partial results, else final ones.
    """
    weight = tl.where(l == 0.0, 0.0, 1.0 / l)
    lse2 = tl.where(l == 0.0, -float("inf"), m + tl.log2(l))
    if SPLITS > 1:
        return weight, lse2, m
    lse = final_lse(lse2)
    if sink_ptr is not None:
        weight = weight * sink_weight(lse, sink_ptr, h, heads)
    return weight, lse, m * LN_2


@triton.jit
def merge_kernel(
    out_ptr, lse_ptr, max_ptr, part_ptr, part_lse_ptr, part_max_ptr, sink_ptr, heads, d_v, d_part,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    split = tl.arange(0, BLOCK_S)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    of_split = split < SPLITS

    row = (t * SPLITS + split) * heads + h
    lse2 = tl.load(part_lse_ptr + row, mask=of_split, other=-float("inf"))
    largest = tl.load(part_max_ptr + row, mask=of_split, other=-float("inf"))
    top = tl.max(lse2, 0)
    share = tl.exp2(lse2 - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(share, 0)
    lse = final_lse(top + tl.log2(total))
    weight = tl.where(total == 0.0, 0.0, 1.0 / total)
    if sink_ptr is not None:
        weight = weight * sink_weight(lse, sink_ptr, h, heads)
    # A split without a key holds zeros; its share is 0 all the same.
    part = tl.load(
        part_ptr + row[:, None] * d_part + d[None, :],
        mask=of_split[:, None] & (d < d_v)[None, :], other=0.0,
    )  # fmt: skip
    o = tl.sum(part * (share * weight)[:, None], 0)
    out = out_ptr + (t * heads + h) * d_v + d
    tl.store(out, o.to(out_ptr.dtype.element_ty), mask=d < d_v)
    if tl.program_id(2) == 0:
        tl.store(lse_ptr + t * heads + h, lse)
        tl.store(max_ptr + t * heads + h, tl.max(largest, 0) * LN_2)
