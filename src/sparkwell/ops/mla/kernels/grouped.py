"""Absorbed MLA, the columns of the record shared out among the warps.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :rank] / sum p      online over tiles of keys

The latent's columns form G groups of 128, each with its own FP8 scale.  Every product is a batch of
G small ones, one group a warp: a warp reads only its own columns, for the scores and again for the
output, straight into the registers of the matrix product.  Nothing unpacked goes back to shared
memory; only the scores are summed over warps.  FP8 scales multiply partial scores and p, never an
element; FP8 latents are exact in float16, and q and p are brought into its range by powers of two.
"""

import triton
import triton.language as tl

from sparkwell.ops.mla.kernels.finish import finish
from sparkwell.ops.mla.kernels.keys import key_list, key_offsets
from sparkwell.ops.mla.kernels.powers import TINY, inverse_of, power_of_two
from sparkwell.ops.mla.kernels.unpack import (
    SHIFT_SCALE,
    even_odd,
    for_product,
    product_columns,
)

GROUP = tl.constexpr(128)  # latent columns per FP8 scale
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def grouped_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latent_ptr, scale_ptr, rope_ptr, lists_ptr, length_ptr,
    start_ptr, sink_ptr, heads, width, num_requests, limit, page_stride, stride_q_t, stride_q_h,
    stride_lists, scale,
    PAGED: tl.constexpr, FP8: tl.constexpr, MODE: tl.constexpr, PAGE: tl.constexpr,
    RECORD: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, G: tl.constexpr,
    ROPE_PART: tl.constexpr, SPLIT_Q: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    g = tl.arange(0, G)[:, None, None]
    head = h[None, :, None]
    of_head = head < heads
    C: tl.constexpr = GROUP // 2 if FP8 else GROUP  # elements of a group: FP8 ones come in pairs
    c = tl.arange(0, C)[None, None, :]
    r = g * ROPE_PART + tl.arange(0, ROPE_PART)[None, None, :]
    of_rope = r < ROPE

    q_row = q_ptr + t * stride_q_t + head.to(tl.int64) * stride_q_h
    q_rope = tl.load(q_row + RANK + r, mask=of_head & of_rope, other=0.0).to(tl.float32)
    if FP8:
        column, apart = product_columns(c, MODE)
        q_a = tl.load(q_row + g * GROUP + column, mask=of_head, other=0.0).to(tl.float32)
        q_b = tl.load(q_row + g * GROUP + column + apart, mask=of_head, other=0.0).to(tl.float32)
        largest = tl.max(tl.max(tl.maximum(tl.abs(q_a), tl.abs(q_b)), 2), 0)  # [BLOCK_H]
        to_unit = inverse_of(power_of_two(largest))
        q_a = (q_a * to_unit[None, :, None]).to(tl.float16)
        q_b = (q_b * to_unit[None, :, None]).to(tl.float16)
        q_rope = q_rope * to_unit[None, :, None]
        row_scale = scale * LOG2_E * power_of_two(largest)
    else:
        q = tl.load(q_row + g * GROUP + c, mask=of_head, other=0.0).to(tl.float32)
        q_a = q.to(tl.bfloat16)
        q_b = (q - q_a.to(tl.float32)).to(tl.bfloat16)  # what bfloat16 leaves of a float16 query
        row_scale = tl.zeros((BLOCK_H,), tl.float32) + scale * LOG2_E
    r_a = q_rope.to(tl.bfloat16)
    r_b = (q_rope - r_a.to(tl.float32)).to(tl.bfloat16)

    o_a = tl.zeros((G, BLOCK_H, C), tl.float32)
    o_b = tl.zeros((G, BLOCK_H, C), tl.float32)
    unit = tl.zeros((G,), tl.float32) + TINY  # power of two that p * FP8 scale is measured in
    m = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_H,), tl.float32)  # noqa: E741

    keys, count = key_list(
        t, lists_ptr, length_ptr, start_ptr, num_requests, width, stride_lists, PAGED
    )
    share = tl.cdiv(tl.cdiv(count, BLOCK_N), SPLITS) * BLOCK_N
    first = split * share
    last = tl.minimum(first + share, count)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK_N)
        # FP8 records are counted in the 4 bytes of a scale, BF16 ones in values.
        word: tl.constexpr = RECORD // 4 if FP8 else RECORD // 2
        at, ok = key_offsets(keys, n, last, limit, page_stride, PAGED, PAGE, word)
        row = tl.multiple_of(at * 2 if FP8 else at, ALIGN)[None, :, None]
        ok_row = ok[None, :, None]
        x = tl.load(latent_ptr + row + g * C + c, mask=ok_row, other=0)  # [G, BLOCK_N, C]
        k_rope = tl.load(rope_ptr + row + r, mask=ok_row & of_rope, other=0.0)
        if FP8:
            factor = tl.load(
                scale_ptr + at[None, :] + tl.arange(0, G)[:, None], mask=ok[None, :], other=0.0
            )  # [G, BLOCK_N]
            k_a, k_b = for_product(x, MODE)
            s = tl.dot(q_a, tl.permute(k_a, (0, 2, 1)))
            s = tl.dot(q_b, tl.permute(k_b, (0, 2, 1)), s)
            s = s * (factor * SHIFT_SCALE if MODE != "convert" else factor)[:, None, :]
        else:
            s = tl.dot(q_a, tl.permute(x, (0, 2, 1)))
            if SPLIT_Q:
                s = tl.dot(q_b, tl.permute(x, (0, 2, 1)), s)
        k_rope = tl.permute(k_rope, (0, 2, 1))
        s = tl.dot(r_a, k_rope, s)
        if SPLIT_Q:
            s = tl.dot(r_b, k_rope, s)
        s = tl.sum(s, 0) * row_scale[:, None]  # [BLOCK_H, BLOCK_N], base 2
        s = tl.where(ok[None, :], s, -float("inf"))

        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        l = l * fade + tl.sum(p, 1)  # noqa: E741
        m = m_new
        if FP8:
            unit_new = tl.maximum(unit, power_of_two(tl.max(factor, 1)))
            inverse = inverse_of(unit_new)
            keep = (unit * inverse)[:, None, None] * fade[None, :, None]
            unit = unit_new
            weight = (p[None, :, :] * (factor * inverse[:, None])[:, None, :]).to(tl.float16)
            v_a, v_b = even_odd(x, MODE)
            o_a = tl.dot(weight, v_a, o_a * keep)
            o_b = tl.dot(weight, v_b, o_b * keep)
        else:
            weight = tl.broadcast_to(p[None, :, :].to(tl.bfloat16), (G, BLOCK_H, BLOCK_N))
            o_a = tl.dot(weight, x, o_a * fade[None, :, None])

    if FP8:
        if MODE != "convert":
            unit = unit * SHIFT_SCALE
        o_a = tl.reshape(tl.join(o_a, o_b), (G, BLOCK_H, GROUP)) * unit[:, None, None]
    part = (t * SPLITS + split) * heads + head
    row = (t * SPLITS + split) * heads + h
    weight, lse, largest = finish(l, m, sink_ptr, h, heads, SPLITS)
    d = tl.arange(0, GROUP)[None, None, :]
    o = (o_a * weight[None, :, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + part * RANK + g * GROUP + d, o, mask=of_head)
    tl.store(lse_ptr + row, lse, mask=h < heads)
    tl.store(max_ptr + row, largest, mask=h < heads)
