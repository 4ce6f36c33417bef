"""Attention over a list of slots with whole records as matrix tiles.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :d_v] / sum p      online over tiles of keys

Serves every record, width and head count.  EXACT multiplies in fp32 (the path of fp32 queries or
caches); otherwise operands are bfloat16, an FP8 latent times its scale rounded once, and blocks of
64 heads fill the matrix instructions of datacenter GPUs.
"""

import triton
import triton.language as tl

from sparkwell.ops.mla.kernels.finish import finish
from sparkwell.ops.mla.kernels.grouped import GROUP, LOG2_E, _slot_offset


@triton.jit
def _latent(
    latent_ptr, scale_ptr, at, c, ok, RANK: tl.constexpr, FP8: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, BLOCK_C] latents of the records that start `at` words into the pages."""
    mask = ok[:, None] & (c < RANK)[None, :]
    if FP8:
        x = tl.load(latent_ptr + at[:, None] * 4 + c[None, :], mask=mask, other=0).to(tl.int16)
        bits = (((x & 0x7F) << 7) | ((x & 0x80) << 8)).to(tl.int16)
        value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        groups: tl.constexpr = BLOCK_C // GROUP
        g = tl.arange(0, groups)
        factor = tl.load(
            scale_ptr + at[:, None] + g[None, :],
            mask=ok[:, None] & (g < RANK // GROUP)[None, :], other=0.0,
        )  # fmt: skip
        value = tl.reshape(value, (BLOCK_N, groups, GROUP)) * factor[:, :, None]
        return tl.reshape(value, (BLOCK_N, BLOCK_C))
    else:
        return tl.load(latent_ptr + at[:, None] + c[None, :], mask=mask, other=0.0)


@triton.jit
def tiled_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latent_ptr, scale_ptr, rope_ptr, slots_ptr, length_ptr,
    sink_ptr, heads, topk, num_slots, page_stride, stride_q_t, stride_q_h, stride_slots, scale,
    FP8: tl.constexpr, WORD: tl.constexpr, EXACT: tl.constexpr, PAGE: tl.constexpr,
    RECORD: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, D_V: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    of_head = (h < heads)[:, None]
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    of_rope = (r < ROPE)[None, :]
    operand = tl.float32 if EXACT else tl.bfloat16
    precision: tl.constexpr = "ieee" if EXACT else "tf32"

    q_row = q_ptr + t * stride_q_t + h[:, None].to(tl.int64) * stride_q_h
    q = tl.load(q_row + c[None, :], mask=of_head & (c < RANK)[None, :], other=0.0).to(operand)
    q_rope = tl.load(q_row + RANK + r[None, :], mask=of_head & of_rope, other=0.0).to(operand)

    o = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    o_rope = tl.zeros((BLOCK_H, BLOCK_R), tl.float32)
    m = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_H,), tl.float32)  # noqa: E741

    count = topk
    if length_ptr is not None:
        count = tl.minimum(topk, tl.load(length_ptr + t).to(tl.int32))
    share = tl.cdiv(tl.cdiv(count, BLOCK_N), SPLITS) * BLOCK_N
    first = split * share
    last = tl.minimum(first + share, count)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK_N)
        slot = tl.load(slots_ptr + t * stride_slots + n, mask=n < last, other=-1)
        ok = (slot >= 0) & (slot < num_slots)
        # In words: 4 bytes where FP8 scales stand between the values, else one value.
        at = _slot_offset(tl.where(ok, slot, 0), page_stride, PAGE, RECORD // WORD)
        k = _latent(latent_ptr, scale_ptr, at, c, ok, RANK, FP8, BLOCK_N, BLOCK_C).to(operand)
        rope_at = at * 2 if FP8 else at
        k_rope = tl.load(
            rope_ptr + rope_at[:, None] + r[None, :], mask=ok[:, None] & of_rope, other=0.0
        ).to(operand)
        s = tl.dot(q, tl.trans(k), input_precision=precision)
        s = tl.dot(q_rope, tl.trans(k_rope), s, input_precision=precision)
        s = tl.where(ok[None, :], s * (scale * LOG2_E), -float("inf"))

        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        l = l * fade + tl.sum(p, 1)  # noqa: E741
        m = m_new
        p = p.to(operand)
        o = tl.dot(p, k, o * fade[:, None], input_precision=precision)
        if D_V > RANK:
            o_rope = tl.dot(p, k_rope, o_rope * fade[:, None], input_precision=precision)

    row = (t * SPLITS + split) * heads + h
    weight, lse, largest = finish(l, m, sink_ptr, h, heads, SPLITS)
    out = out_ptr + row[:, None] * D_V
    dtype = out_ptr.dtype.element_ty
    of_value = of_head & ((c < RANK) & (c < D_V))[None, :]
    tl.store(out + c[None, :], (o * weight[:, None]).to(dtype), mask=of_value)
    if D_V > RANK:
        of_value = of_head & (r < D_V - RANK)[None, :]
        tl.store(out + RANK + r[None, :], (o_rope * weight[:, None]).to(dtype), mask=of_value)
    tl.store(lse_ptr + row, lse, mask=h < heads)
    tl.store(max_ptr + row, largest, mask=h < heads)
