"""A tile of an expert's weight whose codes stay with the thread that loads them.

A thread's share of a matrix instruction's operand is two pairs of neighbouring columns of 16; codes
lie elsewhere in a row.  So a thread takes the codes of an int32 as its share, and rows of x come
with their columns in the order that this makes (`turned_place`):
  four bits   of 32 columns, 8 t + 4 e + p stands at 8 p + 2 t + e         (word t, pair p of it)
  eight bits  of 16 columns, 4 t + 2 e + h stands at 8 h + 2 t + e
  streamed    of 256 columns, 64 t + 16 g + 8 j + 4 e + 2 b + h stands at
              64 g + 32 j + 16 b + 8 h + 2 t + e
Values and factors are those of `weight_tile`.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sparkwell.ops.moe.kernels.weights import block_scale

_TURN_BF16 = tl.constexpr("""{ .reg .b32 s, m;
shl.b32 s, $8, 12; shl.b32 m, $8, 6; and.b32 m, m, 0x01C001C0; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$0, $1}, m;
shl.b32 s, $8, 8; shl.b32 m, $8, 2; and.b32 m, m, 0x01C001C0; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$2, $3}, m;
shl.b32 s, $8, 4; shr.b32 m, $8, 2; and.b32 m, m, 0x01C001C0; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$4, $5}, m;
shr.b32 m, $8, 6; and.b32 m, m, 0x01C001C0; lop3.b32 m, $8, 0x80008000, m, 0xEA;
mov.b32 {$6, $7}, m; }""")
_TURN_F16 = tl.constexpr("""{ .reg .b32 s, m;
shl.b32 s, $8, 12; shl.b32 m, $8, 9; and.b32 m, m, 0x0E000E00; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$0, $1}, m;
shl.b32 s, $8, 8; shl.b32 m, $8, 5; and.b32 m, m, 0x0E000E00; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$2, $3}, m;
shl.b32 s, $8, 4; shl.b32 m, $8, 1; and.b32 m, m, 0x0E000E00; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$4, $5}, m;
shr.b32 m, $8, 3; and.b32 m, m, 0x0E000E00; lop3.b32 m, $8, 0x80008000, m, 0xEA;
mov.b32 {$6, $7}, m; }""")
_PAIRS_BF16 = tl.constexpr("""{ .reg .b32 s, m;
shl.b32 s, $4, 8; shl.b32 m, $4, 4; and.b32 m, m, 0x07F007F0; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$0, $1}, m;
shr.b32 m, $4, 4; and.b32 m, m, 0x07F007F0; lop3.b32 m, $4, 0x80008000, m, 0xEA;
mov.b32 {$2, $3}, m; }""")
_PAIRS_F16 = tl.constexpr("""{ .reg .b32 s, m;
shl.b32 s, $4, 8; shl.b32 m, $4, 7; and.b32 m, m, 0x3F803F80; lop3.b32 m, s, 0x80008000, m, 0xEA;
mov.b32 {$0, $1}, m;
shr.b32 m, $4, 1; and.b32 m, m, 0x3F803F80; lop3.b32 m, $4, 0x80008000, m, 0xEA;
mov.b32 {$2, $3}, m; }""")
_OUTPUTS = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r")


STREAMED = tl.constexpr(256)


@triton.jit
def turned_place(column, BITS: tl.constexpr):
    """Where a column of x stands in rows for codes of BITS bits, or STREAMED."""
    if BITS == STREAMED:
        place = column // 256 * 256 + column % 64 // 16 * 64 + column % 16 // 8 * 32
        place += column % 4 // 2 * 16 + column % 2 * 8 + column % 256 // 64 * 2 + column % 8 // 4
    elif BITS == 4:
        place = column // 32 * 32 + column % 4 * 8 + column % 32 // 8 * 2 + column % 8 // 4
    else:
        place = column // 16 * 16 + column % 2 * 8 + column % 16 // 4 * 2 + column % 4 // 2
    return place


@triton.jit
def turn_kernel(
    y_ptr, factor_ptr, x_ptr, k, stride_x,
    BITS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A row of x with its columns turned.

    EARLY: this may have started before the kernel before it was over, which it does not read, and
    the next one may start when that is over.

    factor_ptr: y is float16, the row times a power of two that brings its largest finite value to
    2^14 .. 2^15: bfloat16 is exact so, or off by 2^-40 of the largest, which no fp32 sum shows.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + column, mask=column < k, other=0.0)
    if factor_ptr is not None:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(tl.where(bits < 0x7F800000, bits, 0), 0) >> 23  # exponent, biased
        power = tl.maximum(largest, 15) - 14  # 2^(power - 127) is divided out
        x = x.to(tl.float32) * ((254 - power) << 23).to(tl.float32, bitcast=True)
        tl.store(factor_ptr + row, (power << 23).to(tl.float32, bitcast=True))
    y = y_ptr + row * k + turned_place(column, BITS)
    tl.store(y, x.to(y_ptr.dtype.element_ty), mask=column < k)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _one_of_eight(word, AT: tl.constexpr, TYPE: tl.constexpr):
    """e2m1 number AT of a word, as `_e2m1` has it; what the instructions below do at once."""
    code = (word >> (4 * AT)) & 15
    LEFT: tl.constexpr = 6 if tl.bfloat16 == TYPE else 9
    bits = ((code & 7) << LEFT) | ((code & 8) << 12)
    return bits.to(tl.int16).to(TYPE, bitcast=True)


@triton.jit
def _eight(word, TYPE: tl.constexpr, ASM: tl.constexpr):
    """[..., ROWS, COLS / 8] int32 -> the same with dimensions e, half and s of p = 2 s + half."""
    if ASM and tl.bfloat16 == TYPE:
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            _TURN_BF16, _OUTPUTS, [word],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
             tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 1,
        )  # fmt: skip
    elif ASM:
        a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
            _TURN_F16, _OUTPUTS, [word],
            (tl.float16, tl.float16, tl.float16, tl.float16,
             tl.float16, tl.float16, tl.float16, tl.float16), True, 1,
        )  # fmt: skip
    else:
        a, b = _one_of_eight(word, 0, TYPE), _one_of_eight(word, 4, TYPE)
        c, d = _one_of_eight(word, 1, TYPE), _one_of_eight(word, 5, TYPE)
        e, f = _one_of_eight(word, 2, TYPE), _one_of_eight(word, 6, TYPE)
        g, h = _one_of_eight(word, 3, TYPE), _one_of_eight(word, 7, TYPE)
    low = tl.join(tl.join(a, b), tl.join(c, d))
    high = tl.join(tl.join(e, f), tl.join(g, h))
    return tl.join(low, high)


@triton.jit
def _one_of_four(word, AT: tl.constexpr, TYPE: tl.constexpr):
    """e4m3 number AT of a word, times 2^-120 in bfloat16, 2^-8 in float16."""
    code = (word >> (8 * AT)) & 255
    LEFT: tl.constexpr = 4 if tl.bfloat16 == TYPE else 7
    bits = ((code & 127) << LEFT) | ((code & 128) << 8)
    return bits.to(tl.int16).to(TYPE, bitcast=True)


@triton.jit
def _four(word, TYPE: tl.constexpr, ASM: tl.constexpr):
    """[ROWS, COLS / 4] int32 -> the same with dimensions e and h."""
    if ASM and tl.bfloat16 == TYPE:
        a, b, c, d = tl.inline_asm_elementwise(
            _PAIRS_BF16, "=h,=h,=h,=h,r", [word],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 1,
        )  # fmt: skip
    elif ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            _PAIRS_F16, "=h,=h,=h,=h,r", [word],
            (tl.float16, tl.float16, tl.float16, tl.float16), True, 1,
        )  # fmt: skip
    else:
        a, b = _one_of_four(word, 0, TYPE), _one_of_four(word, 2, TYPE)
        c, d = _one_of_four(word, 1, TYPE), _one_of_four(word, 3, TYPE)
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit
def turned_tile(
    w_ptr, scale_ptr, rows, first, stride_w, stride_s, KIND: tl.constexpr, GROUP: tl.constexpr,
    ASM: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """`weight_tile` of FP8, NVFP4 or MXFP4, whole steps, columns turned.  -> [ROWS, COLS]"""
    MX: tl.constexpr = KIND == "mxfp4"
    CODES: tl.constexpr = 8 if MX or KIND == "nvfp4" else 4  # of a word
    word_ptr = (w_ptr + rows * stride_w + first // CODES * 4).to(tl.pointer_type(tl.int32))
    word = tl.load(word_ptr[:, None] + tl.arange(0, COLS // CODES)[None, :])
    if CODES == 4:
        tile = tl.reshape(_four(word, TYPE, ASM), (ROWS, COLS // 16, 4, 2, 2))
        if tl.bfloat16 == TYPE:
            tile = (tile * 1.329227995784916e36).to(TYPE)  # 2^120
        tile = tl.permute(tile, (0, 1, 4, 2, 3))  # h, t, e
    else:
        group = first // GROUP + tl.arange(0, COLS // GROUP)[None, :]
        scale = tl.load(scale_ptr + rows[:, None] * stride_s + group)
        factor = block_scale(scale, MX, TYPE, ASM)  # [ROWS, COLS / GROUP]
        WORDS: tl.constexpr = GROUP // 8
        factor = tl.broadcast_to(factor[:, :, None], (ROWS, COLS // GROUP, WORDS))
        factor = tl.reshape(factor, (ROWS, COLS // 32, 4))[:, :, :, None, None, None]
        tile = tl.reshape(_eight(word, TYPE, ASM), (ROWS, COLS // 32, 4, 2, 2, 2))
        if MX and tl.bfloat16 == TYPE:
            tile = (tile * 8.507059173023462e37).to(TYPE)  # 2^126
        tile = tl.permute(tile * factor, (0, 1, 5, 4, 2, 3))  # s, half, t, e
    return tl.reshape(tile, (ROWS, COLS))
