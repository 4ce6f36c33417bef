"""Absorbed MLA in fp32, for every record, width and head count.

    s = scale q kv^T,  p = exp2(s - max),  o = p kv[:, :d_v] / sum p      online over tiles of keys

The path of fp32 queries or caches, and of widths that the grouped kernel does not serve.  Products
are three TF32 ones (each operand as a high and a low part), as accurate as fp32 to a few 2^-22.
The latent's columns form G groups of 64, one or more a warp, as in the grouped kernel.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.e4m3 import WIDENED, widen
from sparkwell.ops.mla.kernels.finish import finish
from sparkwell.ops.mla.kernels.keys import key_list, key_offsets

COLUMNS = tl.constexpr(64)  # latent columns of a group
SCALED = tl.constexpr(128)  # latent columns per FP8 scale
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _latent(
    latent_ptr, scale_ptr, at, ok, column, RANK: tl.constexpr, G: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """[G, BLOCK_N, COLUMNS] latents in fp32; `at`: where the records start, in words."""
    row = at[None, :, None]
    mask = ok[None, :, None] & (column < RANK)
    if FP8:
        x = widen(tl.load(latent_ptr + row * 4 + column, mask=mask, other=0))
        first = (tl.arange(0, G) * COLUMNS)[:, None]  # column of each group
        factor = tl.load(
            scale_ptr + at[None, :] + first // SCALED, mask=ok[None, :] & (first < RANK), other=0.0
        )  # [G, BLOCK_N]
        return x.to(tl.float32) * (factor * WIDENED)[:, :, None]
    else:
        return tl.load(latent_ptr + row + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def exact_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, latent_ptr, scale_ptr, rope_ptr, lists_ptr, length_ptr,
    start_ptr, sink_ptr, heads, width, num_requests, limit, page_stride, stride_q_t, stride_q_h,
    stride_lists, scale,
    PAGED: tl.constexpr, FP8: tl.constexpr, WORD: tl.constexpr, PAGE: tl.constexpr,
    RECORD: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, D_V: tl.constexpr,
    G: tl.constexpr, ROPE_PART: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    g = tl.arange(0, G)[:, None, None]
    head = h[None, :, None]
    of_head = head < heads
    column = g * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    of_latent = column < RANK
    r = g * ROPE_PART + tl.arange(0, ROPE_PART)[None, None, :]
    of_rope = r < ROPE

    q_row = q_ptr + t * stride_q_t + head.to(tl.int64) * stride_q_h

    o = tl.zeros((G, BLOCK_H, COLUMNS), tl.float32)
    o_rope = tl.zeros((G, BLOCK_H, ROPE_PART), tl.float32)
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
        # In words: 4 bytes where FP8 scales stand between the values, else one value.
        at, ok = key_offsets(keys, n, last, limit, page_stride, PAGED, PAGE, RECORD // WORD)
        row = at[None, :, None]
        ok_row = ok[None, :, None]
        # Read anew for each tile (volatile: not moved out of the loop), since shared memory has no
        # room to keep queries beside the keys.
        q = tl.load(q_row + column, mask=of_head & of_latent, other=0.0, volatile=True)
        q = q.to(tl.float32)
        q_rope = tl.load(q_row + RANK + r, mask=of_head & of_rope, other=0.0, volatile=True)
        q_rope = q_rope.to(tl.float32)
        k = _latent(latent_ptr, scale_ptr, at, ok, column, RANK, G, FP8)
        rope_row = row * 2 if FP8 else row
        k_rope = tl.load(rope_ptr + rope_row + r, mask=ok_row & of_rope, other=0.0).to(tl.float32)
        s = tl.dot(q, tl.permute(k, (0, 2, 1)), input_precision="tf32x3")
        s = tl.dot(q_rope, tl.permute(k_rope, (0, 2, 1)), s, input_precision="tf32x3")
        s = tl.where(ok[None, :], tl.sum(s, 0) * (scale * LOG2_E), -float("inf"))

        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(m - shift)
        l = l * fade + tl.sum(p, 1)  # noqa: E741
        m = m_new
        weight = tl.broadcast_to(p[None, :, :], (G, BLOCK_H, BLOCK_N))
        o = tl.dot(weight, k, o * fade[None, :, None], input_precision="tf32x3")
        if D_V > RANK:
            o_rope = tl.dot(weight, k_rope, o_rope * fade[None, :, None], input_precision="tf32x3")

    weight, lse, largest = finish(l, m, sink_ptr, h, heads, SPLITS)
    part = (t * SPLITS + split) * heads
    out = out_ptr + (part + head) * D_V
    o = (o * weight[None, :, None]).to(out_ptr.dtype.element_ty)
    tl.store(out + column, o, mask=of_head & of_latent & (column < D_V))
    if D_V > RANK:
        o_rope = (o_rope * weight[None, :, None]).to(out_ptr.dtype.element_ty)
        tl.store(out + RANK + r, o_rope, mask=of_head & of_rope & (r < D_V - RANK))
    tl.store(lse_ptr + part + h, lse, mask=h < heads)
    tl.store(max_ptr + part + h, largest, mask=h < heads)
