"""Records of sparse MLA on their way to shared memory, for kernels whose warps have roles.

A block takes some heads of one row and a share of the keys that its list names.  BF16 records are
copied without passing a register.  FP8 latents pass: times their scales, and rounded to BF16, as
FlashMLA does (arXiv 2512.02556).
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
)

from sparkwell.ops.launch import launch

KEYS: gl.constexpr = gl.constexpr(64)  # of a tile
STAGES: gl.constexpr = gl.constexpr(2)
RANK: gl.constexpr = gl.constexpr(512)
ROPE: gl.constexpr = gl.constexpr(64)
GROUP: gl.constexpr = gl.constexpr(128)  # latent columns of an FP8 scale
GROUPS: gl.constexpr = gl.constexpr(4)
RECORD: gl.constexpr = gl.constexpr(164)  # words of an FP8 record

# Asks for a line of memory to be brought to the L2.
_PREFETCH = gl.constexpr("""
{
.reg .pred p;
setp.ne.s32 p, $2, 0;
@p prefetch.global.L2 [$1];
mov.u32 $0, 0;
}
""")

# Four e4m3 times a scale, as four BF16.
_WIDEN = gl.constexpr("""
{
.reg .b16 front, back, a, b;
.reg .b32 pair;
.reg .f32 x, y;
mov.b32 {front, back}, $2;
cvt.rn.f16x2.e4m3x2 pair, front;
mov.b32 {a, b}, pair;
cvt.f32.f16 x, a;
cvt.f32.f16 y, b;
mul.f32 x, x, $3;
mul.f32 y, y, $3;
cvt.rn.bf16x2.f32 $0, y, x;
cvt.rn.f16x2.e4m3x2 pair, back;
mov.b32 {a, b}, pair;
cvt.f32.f16 x, a;
cvt.f32.f16 y, b;
mul.f32 x, x, $3;
mul.f32 y, y, $3;
cvt.rn.bf16x2.f32 $1, y, x;
}
""")


@gluon.jit
def place(heads, HEADS: gl.constexpr):
    """(first head, row, split) of this block; a row's blocks are neighbours: they share records."""
    blocks = (heads + HEADS - 1) // HEADS
    row = (gl.program_id(0) // blocks).to(gl.int64)
    return gl.program_id(0) % blocks * HEADS, row, gl.program_id(1)


@gluon.jit
def share_of_keys(width, length_ptr, t, split, SPLITS: gl.constexpr):
    """(first, last, tiles) of the keys of row t that a split takes."""
    keys = width
    if length_ptr is not None:
        keys = gl.maximum(gl.minimum(width, gl.load(length_ptr + t).to(gl.int32)), 0)
    share = (((keys + KEYS - 1) // KEYS + SPLITS - 1) // SPLITS) * KEYS
    first = gl.minimum(split * share, keys)
    last = gl.minimum(first + share, keys)
    return first, last, (last - first + KEYS - 1) // KEYS


@gluon.jit
def _slots(names, first, last, layout: gl.constexpr):
    """A tile's slots, -1 behind the last; they are first looked at by `_records`, a tile later."""
    n = first + gl.arange(0, KEYS, layout)
    return gl.load(names + n, mask=n < last, other=-1)


@gluon.jit
def _records(pages, slot, limit, page_stride, PAGE: gl.constexpr, STRIDE: gl.constexpr):
    """(first element of each record, whether there is one)."""
    ok = (slot >= 0) & (slot < limit)
    slot = gl.where(ok, slot, 0).to(gl.int64)
    if PAGE == 0:
        at = slot * STRIDE
    else:
        at = (slot // PAGE) * page_stride + (slot % PAGE) * STRIDE
    return pages + gl.multiple_of(at, 4 if STRIDE == RECORD else 8), ok


@gluon.jit
def _wait_for_copies(PENDING: gl.constexpr):
    """Copies that pass no register are fenced by who asked for them: once, not by every reader."""
    async_copy.wait_group(PENDING)
    fence_async_shared()


@gluon.jit
def copy_records(
    pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
    PAGE: gl.constexpr, WARPS: gl.constexpr, START: gl.constexpr, STEP: gl.constexpr,
):  # fmt: skip
    """BF16 records to shared memory, tiles START, START + STEP, ... into a ring of STAGES."""
    tile: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    of_key: gl.constexpr = gl.SliceLayout(1, tile)
    c = gl.arange(0, RANK, gl.SliceLayout(0, tile))
    r = gl.arange(0, ROPE, gl.SliceLayout(0, tile))
    slot = _slots(names, first + START * KEYS, last, of_key)
    for i in range(START, count, STEP):
        stage, turn = i % STAGES, (i // STAGES) & 1
        record, ok = _records(pages, slot, limit, page_stride, PAGE, RANK + ROPE)
        record = record[:, None]
        mbarrier.wait(free.index(stage), turn ^ 1)
        async_copy.async_load(ks.index(stage), record + c[None, :], mask=ok[:, None])
        async_copy.async_load(rs.index(stage), record + RANK + r[None, :], mask=ok[:, None])
        async_copy.commit_group()
        masks.index(stage).store(gl.where(ok, 0.0, float("-inf")).to(gl.bfloat16))
        _wait_for_copies(0)
        mbarrier.arrive(ready.index(stage), count=1)
        slot = _slots(names, first + (i + STEP) * KEYS, last, of_key)


@gluon.jit
def _words(record, ok, first: gl.constexpr, tile: gl.constexpr):
    """A group's words of each record, from word `first` on."""
    c = gl.arange(0, GROUP // 4, gl.SliceLayout(0, tile))
    return gl.load(record[:, None] + (first + c)[None, :], mask=ok[:, None], other=0)


@gluon.constexpr_function
def _records_of(warps):
    """Bits of a record's number that a thread's registers and the warps have; lanes have two."""
    return [[n, 0] for n in (16, 32) if n >= 4 * warps], [
        [n, 0] for n in (4, 8, 16) if n < 4 * warps
    ]


@gluon.constexpr_function
def _lanes(warps, columns, wide):
    """How warps read `columns` words of 64 records; either way stores never meet in a bank.

    Four lanes take 64 bytes of a record.  Wide: eight take 128, and a load touches four records
    instead of eight, for registers that only a narrow consumer leaves.
    """
    if not wide:
        return gl.BlockedLayout([1, 4], [8, 4], [warps, 1], [1, 0])
    repeats, of_warp = _records_of(warps)
    at = [[0, n if n < columns else 0] for n in (4, 8, 16)]
    lanes = [at[0], at[1], [1, 0], at[2], [2, 0]]
    return gl.DistributedLinearLayout(
        [[0, 1], [0, 2], *repeats], lanes, of_warp, [], [KEYS.value, columns]
    )


@gluon.jit
def _scales(record, ok, tile: gl.constexpr, four: gl.constexpr):
    """The four scales of each record: they are 16 bytes, one load."""
    record = gl.convert_layout(record, gl.SliceLayout(1, four), assert_trivial=True)
    ok = gl.convert_layout(ok, gl.SliceLayout(1, four), assert_trivial=True)
    c = gl.arange(0, GROUPS, gl.SliceLayout(0, four))
    x = gl.load(record[:, None] + (RANK // 4 + c)[None, :], mask=ok[:, None], other=0)
    even, odd = gl.split(x.to(gl.float32, bitcast=True).reshape([KEYS, 2, 2]))
    f0, f2 = gl.split(even)
    f1, f3 = gl.split(odd)
    of_key: gl.constexpr = gl.SliceLayout(1, tile)
    f0 = gl.convert_layout(f0, of_key, assert_trivial=True)
    f1 = gl.convert_layout(f1, of_key, assert_trivial=True)
    f2 = gl.convert_layout(f2, of_key, assert_trivial=True)
    f3 = gl.convert_layout(f3, of_key, assert_trivial=True)
    return f0, f1, f2, f3


@gluon.constexpr_function
def _lines(warps, wide):
    """Eight lines of 128 bytes for each of 64 records, a record's where `_lanes` has its words."""
    if not wide:
        return gl.BlockedLayout([1, 2], [8, 4], [warps, 1], [1, 0])
    lanes = [[0, 1], [0, 2], [1, 0], [0, 4], [2, 0]]
    repeats, of_warp = _records_of(warps)
    return gl.DistributedLinearLayout(repeats, lanes, of_warp, [], [KEYS.value, 8])


@gluon.jit
def _prefetch(pages, slot, limit, page_stride, PAGE: gl.constexpr, lines: gl.constexpr):
    """FP8 records to the L2, two tiles before they are stored: registers hold one tile at most."""
    slot = gl.convert_layout(slot, gl.SliceLayout(1, lines), assert_trivial=True)
    record, ok = _records(pages, slot, limit, page_stride, PAGE, RECORD)
    word = gl.minimum(gl.arange(0, 8, gl.SliceLayout(0, lines)) * 32, RECORD - 1)
    at = (record[:, None] + word[None, :]).to(gl.int64)
    # Slots that are none ask for nothing: all of them together would ask for one line.
    wanted = ok[:, None].to(gl.int32)
    gl.inline_asm_elementwise(
        _PREFETCH, "=r,l,r", [at, wanted], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _copy_rotated(rs, n, record, ok, tile: gl.constexpr):
    thin: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, ROPE // 2], gl.int32)
    to = rs.index(n % rs.shape[0]).reinterpret(gl.int32, [KEYS, ROPE // 2], thin)
    c = RANK // 4 + GROUPS + gl.arange(0, ROPE // 2, gl.SliceLayout(0, tile))
    async_copy.async_load(to, record[:, None] + c[None, :], mask=ok[:, None])
    async_copy.commit_group()


@gluon.jit
def _group(k, x, factor, g: gl.constexpr):
    """A group's latents times their scales to shared memory."""
    a, b = gl.inline_asm_elementwise(
        _WIDEN, "=r,=r,r,f", [x, factor[:, None]], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
    )
    k.slice(g * (GROUP // 2), GROUP // 2, 1).store(gl.join(a, b).reshape([KEYS, GROUP // 2]))


@gluon.jit
def widen_records(
    pages, ks, rs, masks, ready, free, names, limit, page_stride, first, last, count,
    PAGE: gl.constexpr, WARPS: gl.constexpr, WIDE: gl.constexpr,
):  # fmt: skip
    """The same of FP8 records, as BF16; the next tile is asked for before this one is done.

    Where rs has a stage more than ks, rotated keys are asked for a tile early too.
    """
    EARLY: gl.constexpr = rs.shape[0] > STAGES
    tile: gl.constexpr = _lanes(WARPS, GROUP // 4, WIDE)
    four: gl.constexpr = _lanes(WARPS, GROUPS, WIDE)
    lines: gl.constexpr = _lines(WARPS, WIDE)
    of_key: gl.constexpr = gl.SliceLayout(1, tile)
    tall: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, RANK // 2], gl.int32)
    width: gl.constexpr = GROUP // 4
    after = _slots(names, first, last, of_key)
    record, ok = _records(pages, after, limit, page_stride, PAGE, RECORD)
    f0, f1, f2, f3 = _scales(record, ok, tile, four)
    x0 = _words(record, ok, 0, tile)
    x1 = _words(record, ok, width, tile)
    x2 = _words(record, ok, 2 * width, tile)
    x3 = _words(record, ok, 3 * width, tile)
    after = _slots(names, first + KEYS, last, of_key)
    later = _slots(names, first + 2 * KEYS, last, of_key)
    _prefetch(pages, after, limit, page_stride, PAGE, lines)
    if EARLY:
        _copy_rotated(rs, 0, record, ok, tile)
    for i in range(count):
        stage, turn = i % STAGES, (i // STAGES) & 1
        mbarrier.wait(free.index(stage), turn ^ 1)
        masks.index(stage).store(gl.where(ok, 0.0, float("-inf")).to(gl.bfloat16))
        if not EARLY:
            _copy_rotated(rs, i, record, ok, tile)
        k = ks.index(stage).reinterpret(gl.int32, [KEYS, RANK // 2], tall)
        _group(k, x0, f0, 0)
        _group(k, x1, f1, 1)
        record, ok = _records(pages, after, limit, page_stride, PAGE, RECORD)
        _prefetch(pages, later, limit, page_stride, PAGE, lines)
        x0 = _words(record, ok, 0, tile)
        x1 = _words(record, ok, width, tile)
        if EARLY:
            _copy_rotated(rs, i + 1, record, ok, tile)
        gl.barrier()  # or the compiler moves these loads behind all stores
        _group(k, x2, f2, 2)
        _group(k, x3, f3, 3)
        _wait_for_copies(1 if EARLY else 0)
        mbarrier.arrive(ready.index(stage), count=1)
        x2 = _words(record, ok, 2 * width, tile)
        x3 = _words(record, ok, 3 * width, tile)
        f0, f1, f2, f3 = _scales(record, ok, tile, four)
        after = later
        later = _slots(names, first + (i + 3) * KEYS, last, of_key)


@gluon.jit
def read_queries(
    q_ptr, qs, qrs, t, head0, heads, stride_q_t, stride_q_h, HEADS: gl.constexpr
):  # fmt: skip
    """The block's heads of row t to shared memory, zeros for those there are not."""
    copy: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    h = head0 + gl.arange(0, HEADS, gl.SliceLayout(1, copy))
    c = gl.arange(0, 64, gl.SliceLayout(0, copy))
    q_row = q_ptr + t * stride_q_t + h.to(gl.int64) * stride_q_h
    for part in gl.static_range((RANK + ROPE) // 64):
        at = q_row[:, None] + part * 64 + c[None, :]
        x = gl.load(at, mask=(h < heads)[:, None], other=0.0)
        if part < RANK // 64:
            qs.slice(part * 64, 64, 1).store(x)
        else:
            qrs.store(x)
    fence_async_shared()


# ---------------------------------------------------------------- launch


def launch_gathering(kernel, first, q, cache, lists, stride_lists, scale, *, plan, **constants):
    """A kernel that gathers, on as many blocks as there are rows, heads and splits."""
    p, (names, lengths, _, sink, _) = plan.problem, lists
    fp8, size, heads = p.record == "fp8", cache.record.nbytes, plan.choice.schedule.block_h
    pages = cache.pages.view(torch.int32 if fp8 else torch.bfloat16)
    gapless = cache.pages.stride(0) == cache.page_size * size
    launch(
        kernel, (p.rows * triton.cdiv(p.heads, heads), plan.splits), *first, q, pages, names,
        lengths, sink if plan.scratch is None else None, p.heads, p.keys, cache.num_slots,
        pages.stride(0), q.stride(0), q.stride(1), stride_lists, scale, choice=plan.choice,
        FP8=fp8, PAGE=0 if gapless else cache.page_size, SPLITS=plan.splits, **constants,
    )  # fmt: skip
