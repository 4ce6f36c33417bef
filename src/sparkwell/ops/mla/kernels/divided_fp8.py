"""`divided` for FP8 records: widened to float16 once a tile, where they are exact.

    s = scale sum_g f_g q_g k_g^T,  p = exp2(s - max),  o_g = (p f_g) k_g / sum p     f_g: scales

Scales multiply shares of scores and p, never an element; q and p f are brought into float16's
range by powers of two, as in `grouped`, which is the form of the same sums that can be interpreted.
"""

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from sparkwell.ops.launch import launch
from sparkwell.ops.mla.kernels.divided import (
    CHUNK,
    LOG2E,
    RANK,
    ROPE,
    by_lane,
    finish_and_store,
    keys_of_row,
    names_of,
    offsets_of,
    queries_of,
    scores_of,
    start_copy,
)
from sparkwell.ops.mla.kernels.powers import TINY, inverse_of, power_of_two

GROUPS: gl.constexpr = gl.constexpr(4)  # of 128 columns, each with its own scale
RECORD: gl.constexpr = gl.constexpr(RANK // 4 + GROUPS + ROPE // 2)  # 4-byte words
SHIFTED: gl.constexpr = gl.constexpr(256.0)  # undoes what `shift` leaves

_CONVERT = gl.constexpr("""
{
.reg .b16 low, high;
mov.b32 {low, high}, $2;
cvt.rn.f16x2.e4m3x2 $0, low;
cvt.rn.f16x2.e4m3x2 $1, high;
}
""")
# The bits of e4m3, moved by 7 and read as float16, are the value times 2^-8.
_SHIFT = gl.constexpr("""
{
.reg .b32 pair, bits;
prmt.b32 pair, $2, 0, 0x1404;
shr.u32 bits, pair, 1;
and.b32 bits, bits, 0x3f803f80;
lop3.b32 $0, pair, 0x80008000, bits, 0xEA;
prmt.b32 pair, $2, 0, 0x3424;
shr.u32 bits, pair, 1;
and.b32 bits, bits, 0x3f803f80;
lop3.b32 $1, pair, 0x80008000, bits, 0xEA;
}
""")


@gluon.constexpr_function
def _blocks(parts, rows, columns):
    """Shared memory of [parts, rows, columns] 16-bit values, blocks of 8 rows x 16 bytes.

    Columns come last: what two tensors of other widths add to a lane's address is the same.
    """
    order = [[0, 0, 1], [0, 0, 2], [0, 0, 4]]
    order += [[0, 1 << i, 0] for i in range(rows.bit_length() - 1)]
    order += [[1 << i, 0, 0] for i in range(parts.bit_length() - 1)]
    order += [[0, 0, 1 << i] for i in range(3, columns.bit_length() - 1)]
    return gl.SharedLinearLayout(order)


@gluon.jit
def _widen(raw, k, CONVERT: gl.constexpr, layout: gl.constexpr):
    """e4m3 of a tile, four to a word, to float16."""
    PARTS: gl.constexpr = raw.shape[0]
    KEYS: gl.constexpr = raw.shape[1]
    WORDS: gl.constexpr = raw.shape[2]
    halves: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [2, 1, 0])
    low, high = gl.inline_asm_elementwise(
        _CONVERT if CONVERT else _SHIFT, "=r,=r,r", [raw.load(layout)],
        dtype=(gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    x = gl.join(low, high).reshape([PARTS, KEYS, 2 * WORDS])
    k.reinterpret(gl.int32, [PARTS, KEYS, 2 * WORDS], halves).store(x)


@gluon.jit
def _start(
    raw, r, scales, first, pages, name, n, page_stride, PAGED: gl.constexpr,
    PAGE: gl.constexpr, EACH: gl.constexpr, copy: gl.constexpr, copy_rope: gl.constexpr,
    copy_scales: gl.constexpr,
):  # fmt: skip
    """Start to copy a tile."""
    ok = name >= 0
    at = offsets_of(name, n, page_stride, PAGED, PAGE, RECORD, 4)
    start_copy(raw, at, ok, pages, copy)
    start_copy(r, at, ok, pages + (RANK // 4 + GROUPS), copy_rope)
    of_key: gl.constexpr = gl.SliceLayout(0, copy_scales)
    at = gl.convert_layout(at, of_key)[None, :]
    ok = gl.convert_layout(ok, of_key)[None, :]
    g = gl.arange(0, raw.shape[0], gl.SliceLayout(1, copy_scales))[:, None] * EACH
    for i in gl.static_range(EACH):
        async_copy.async_load(scales.index(first + i), pages + RANK // 4 + i + at + g, mask=ok)
    async_copy.commit_group()


@gluon.jit
def _shares(
    q, q_last, q_rope, k, r, scales, first, factor, SIDE: gl.constexpr, layout: gl.constexpr
):
    """What each part of the columns gives to the scores: [PARTS, HEADS, KEYS]."""
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    LANES: gl.constexpr = r.shape[2] // 4
    thin: gl.constexpr = gl.SwizzledSharedLayout(8, 8 // LANES, LANES, [2, 1, 0])
    r = r.reinterpret(gl.bfloat16, [r.shape[0], r.shape[1], 2 * r.shape[2]], thin)
    HALF: gl.constexpr = k.shape[1] // 2
    r = r.slice(SIDE * HALF, HALF, 1)
    k = k.slice(SIDE * HALF, HALF, 1)
    EACH: gl.constexpr = GROUPS // k.shape[0]
    zeros = gl.zeros([k.shape[0], q_rope.shape[1], k.shape[1]], gl.float32, layout)
    s = zeros
    k = k.permute([0, 2, 1])
    for i in gl.static_range(EACH):
        part = mma_v2(q[2 * i], k.slice(2 * i * CHUNK, CHUNK, 1).load(right), zeros)
        if i < EACH - 1:
            more = q[2 * i + 1]
        else:
            more = q_last.load(left)
        part = mma_v2(more, k.slice((2 * i + 1) * CHUNK, CHUNK, 1).load(right), part)
        f = (
            scales.index(first + i)
            .slice(SIDE * HALF, HALF, 1)
            .load(gl.SliceLayout(1, layout))
            .to(gl.float32, bitcast=True)
        )
        s = s + part * gl.expand_dims(f * factor, 1)
    return mma_v2(q_rope.load(left), r.permute([0, 2, 1]).load(right), s)


@gluon.jit
def _weights(p, f, layout: gl.constexpr):
    return gl.convert_layout((p * gl.expand_dims(f, 1)).to(gl.float16), layout)


@gluon.jit
def _output(o, units, fade, p_a, p_b, k, scales, first, layout: gl.constexpr):
    """(o * fade + (p f) k, units), o measured in units: a power of two for each group."""
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    of_f: gl.constexpr = gl.SliceLayout(1, layout)
    EACH: gl.constexpr = GROUPS // k.shape[0]
    HALF: gl.constexpr = k.shape[1] // 2
    k_a = k.slice(0, HALF, 1)
    k_b = k.slice(HALF, HALF, 1)
    new = ()
    new_units = ()
    for i in gl.static_range(EACH):
        f_a = scales.index(first + i).slice(0, HALF, 1).load(of_f).to(gl.float32, bitcast=True)
        f_b = scales.index(first + i).slice(HALF, HALF, 1).load(of_f).to(gl.float32, bitcast=True)
        unit = gl.maximum(units[i], power_of_two(gl.max(gl.maximum(f_a, f_b), 1)))
        inverse = inverse_of(unit)
        keep = fade * gl.expand_dims(gl.expand_dims(units[i] * inverse, 1), 1)
        w_a = _weights(p_a, f_a * inverse[:, None], left)
        w_b = _weights(p_b, f_b * inverse[:, None], left)
        for c in gl.static_range(2 * i, 2 * i + 2):
            x = mma_v2(w_a, k_a.slice(c * CHUNK, CHUNK, 2).load(right), o[c] * keep)
            x = mma_v2(w_b, k_b.slice(c * CHUNK, CHUNK, 2).load(right), x)
            new = new + (x,)  # type: ignore[assignment]
        new_units = new_units + (unit,)  # type: ignore[assignment]
    return new, new_units


@gluon.jit
def divided_fp8_kernel(
    out_ptr, lse_ptr, max_ptr, q_ptr, pages, lists_ptr, length_ptr, start_ptr, sink_ptr, heads,
    width, num_requests, limit, page_stride, stride_q_t, stride_q_h, stride_lists, scale,
    PAGED: gl.constexpr, PAGE: gl.constexpr, SPLITS: gl.constexpr, HEADS: gl.constexpr,
    KEYS: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr, CONVERT: gl.constexpr,
):  # fmt: skip
    WIDE: gl.constexpr = RANK // PARTS
    THIN: gl.constexpr = ROPE // PARTS
    EACH: gl.constexpr = GROUPS // PARTS  # groups of a part
    LANES: gl.constexpr = THIN // 8  # that copy a part of a rotated key
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, HEADS // 16, 1], [1, 16, 8])
    of_head: gl.constexpr = gl.SliceLayout(2, mma)  # [1, HEADS], the same in every part
    # Eight lanes copy a record, and the same eight its rotated key and its scales.
    copy: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 4, 8], [1, WARPS, 1], [2, 0, 1])
    copy_rope: gl.constexpr = gl.BlockedLayout(
        [1, 1, 4], [8 // LANES, 4, LANES], [1, WARPS, 1], [2, 0, 1]
    )
    copy_scales: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, WARPS], [0, 1])
    copy_q: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 4, 8], [1, WARPS, 1], [2, 0, 1])
    # Four lanes widen 64 bytes of a record: what eight lanes write never meets in a bank.
    ahead: gl.constexpr = gl.BlockedLayout(
        [1, 1, 4], [1, 8, 4], [PARTS, WARPS // PARTS, 1], [2, 1, 0]
    )
    of_key: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, copy))
    packed: gl.constexpr = gl.SwizzledSharedLayout(16, 1, 2, [2, 1, 0])
    wide: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    thin_words: gl.constexpr = gl.SwizzledSharedLayout(4, 8 // LANES, LANES, [2, 1, 0])
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    flat2: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])

    blocks = (heads + HEADS - 1) // HEADS  # of a row: next to each other, they share its records
    head0 = gl.program_id(0) % blocks * HEADS
    row = gl.program_id(0) // blocks
    t = row.to(gl.int64)
    names, keys = keys_of_row(
        row, lists_ptr, length_ptr, start_ptr, width, num_requests, stride_lists, PAGED, WARPS
    )
    share = (((keys + KEYS - 1) // KEYS + SPLITS - 1) // SPLITS) * KEYS
    first = gl.minimum(gl.program_id(1) * share, keys)
    last = gl.minimum(first + share, keys)

    q_row = q_ptr + t * stride_q_t
    largest = gl.zeros([HEADS], gl.float32, gl.SliceLayout(0, gl.SliceLayout(2, copy_q)))
    for i in gl.static_range(WIDE // CHUNK):
        x = queries_of(
            q_row + i * CHUNK, head0, heads, stride_q_h, HEADS, PARTS, WIDE, CHUNK, copy_q
        )
        largest = gl.maximum(largest, gl.max(gl.max(gl.abs(x.to(gl.float32)), 2), 0))
    power = power_of_two(largest)
    to_unit = gl.expand_dims(inverse_of(power)[None, :], 2)
    q = ()
    for i in gl.static_range(WIDE // CHUNK):
        x = queries_of(
            q_row + i * CHUNK, head0, heads, stride_q_h, HEADS, PARTS, WIDE, CHUNK, copy_q
        )
        x = (x.to(gl.float32) * to_unit).to(gl.float16)
        if i < WIDE // CHUNK - 1:
            x = gl.convert_layout(x, gl.DotOperandLayout(0, mma, 2))
            q = q + (x,)  # type: ignore[assignment]
        else:  # too many for the registers
            q_last = gl.allocate_shared_memory(
                gl.float16, [PARTS, HEADS, CHUNK], _blocks(PARTS, HEADS, CHUNK), x
            )
    x = queries_of(q_row + RANK, head0, heads, stride_q_h, HEADS, PARTS, THIN, THIN, copy_q)
    x = (x.to(gl.float32) * to_unit).to(gl.bfloat16)
    q_rope = gl.allocate_shared_memory(
        gl.bfloat16, [PARTS, HEADS, THIN], _blocks(PARTS, HEADS, THIN), x
    )
    row_scale = gl.convert_layout(power * (scale * LOG2E), gl.SliceLayout(0, of_head))[None, :]
    row_scale = gl.expand_dims(row_scale, 2)

    raw = gl.allocate_shared_memory(gl.int32, [PARTS, KEYS, WIDE // 4], packed)
    k = gl.allocate_shared_memory(gl.float16, [PARTS, KEYS, WIDE], wide)
    rs = gl.allocate_shared_memory(gl.int32, [2, PARTS, KEYS, THIN // 2], thin_words)
    scales = gl.allocate_shared_memory(gl.int32, [2 * EACH, PARTS, KEYS], flat2)
    hide = gl.allocate_shared_memory(gl.float32, [2, KEYS], flat)  # -inf: no key
    shares = gl.allocate_shared_memory(
        gl.float32, [PARTS, HEADS, KEYS], by_lane(PARTS, HEADS, KEYS)
    )

    o = ()
    for _ in gl.static_range(WIDE // CHUNK):
        x = gl.zeros([PARTS, HEADS, CHUNK], gl.float32, mma)
        o = o + (x,)  # type: ignore[assignment]
    units = ()
    for _ in gl.static_range(EACH):
        x = gl.full([PARTS], TINY, gl.float32, gl.SliceLayout(1, gl.SliceLayout(1, mma)))
        units = units + (x,)  # type: ignore[assignment]
    m = gl.full([1, HEADS], float("-inf"), gl.float32, of_head)
    l = gl.zeros([1, HEADS], gl.float32, of_head)  # noqa: E741
    factor = 1.0 if CONVERT else SHIFTED
    n = first + gl.arange(0, KEYS, of_key)
    name = names_of(names, n, last, limit, PAGED, PAGE)
    hide.index(0).store(gl.where(name >= 0, 0.0, float("-inf")))
    _start(
        raw, rs.index(0), scales, 0, pages, name, n, page_stride, PAGED, PAGE, EACH,
        copy, copy_rope, copy_scales,
    )  # fmt: skip
    n += KEYS
    name = names_of(names, n, last, limit, PAGED, PAGE)
    for j in tl.range((last - first + KEYS - 1) // KEYS, disable_licm=True):
        now = j % 2
        async_copy.wait_group(0)
        _widen(raw, k, CONVERT, ahead)
        for half in gl.static_range(2):
            s = _shares(q, q_last, q_rope, k, rs.index(now), scales, now * EACH, factor, half, mma)
            shares.slice(half * (KEYS // 2), KEYS // 2, 2).store(s)
        other = (j + 1) % 2
        hide.index(other).store(gl.where(name >= 0, 0.0, float("-inf")))
        gl.barrier()
        # All warps have widened this tile: the next takes its place.
        _start(
            raw, rs.index(other), scales, other * EACH, pages, name, n,
            page_stride, PAGED, PAGE, EACH, copy, copy_rope, copy_scales,
        )  # fmt: skip
        s_a = scores_of(shares, hide.index(now), row_scale, 0, mma)
        s_b = scores_of(shares, hide.index(now), row_scale, 1, mma)
        m_new = gl.maximum(m, gl.max(gl.maximum(s_a, s_b), 2))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
        p_a = gl.exp2(s_a - gl.expand_dims(shift, 2))
        p_b = gl.exp2(s_b - gl.expand_dims(shift, 2))
        fade = gl.exp2(m - shift)
        l = l * fade + gl.sum(p_a + p_b, 2)  # noqa: E741
        m = m_new
        fade = gl.expand_dims(fade, 2)
        o, units = _output(o, units, fade, p_a, p_b, k, scales, now * EACH, mma)
        n += KEYS
        name = names_of(names, n, last, limit, PAGED, PAGE)

    out = ()
    for i in gl.static_range(WIDE // CHUNK):
        unit = gl.expand_dims(gl.expand_dims(units[i // 2] * factor, 1), 1)
        out = out + (o[i] * unit,)  # type: ignore[assignment]
    part = t * SPLITS + gl.program_id(1)
    finish_and_store(
        out_ptr, lse_ptr, max_ptr, sink_ptr, out, m, l, part, head0, heads, SPLITS, mma
    )


# ---------------------------------------------------------------- launch


def run_divided_fp8(first, q, cache, lists, stride_lists, scale, *, plan):
    p, s, (names, lengths, starts, sink, requests) = plan.problem, plan.choice.schedule, lists
    pages = cache.pages.view(torch.int32)
    gapless = cache.pages.stride(0) == cache.page_size * cache.record.nbytes and not p.paged
    launch(
        divided_fp8_kernel, (p.rows * triton.cdiv(p.heads, s.block_h), plan.splits), *first, q,
        pages, names, lengths, starts, sink if plan.scratch is None else None, p.heads, p.keys,
        requests, cache.num_pages if p.paged else cache.num_slots, pages.stride(0), q.stride(0),
        q.stride(1), stride_lists, scale, choice=plan.choice, PAGED=p.paged,
        PAGE=0 if gapless else cache.page_size, SPLITS=plan.splits, HEADS=s.block_h,
        KEYS=s.block_n, PARTS=16 * s.num_warps // s.block_h, WARPS=s.num_warps,
        CONVERT=plan.mode == "convert",
    )  # fmt: skip
