"""e4m3 pairs to float16: an int16 holds two e4m3 values, the even column in its low byte.

Two exact ways.  `shift`: the bits of e4m3, moved left by 7, read as float16, are the value times
2^-8 (subnormals included; the NaN code reads as 480), which serves GPUs without FP8 conversion.
`convert`: the hardware's own instruction, in pairs of adjacent columns.
Inline assembly cannot be interpreted, so `shift` has an integer twin.
"""

import triton
import triton.language as tl

SHIFT_SCALE = tl.constexpr(256.0)  # undoes the 2^-8 of `shift`

_SHIFT = tl.constexpr("""
{
.reg .b32 magnitude, moved;
shl.b32 magnitude, $2, 7;
and.b32 magnitude, magnitude, 0x3f803f80;
shl.b32 moved, $2, 8;
lop3.b32 $0, moved, 0x80008000, magnitude, 0xEA;
shr.u32 magnitude, $2, 1;
and.b32 magnitude, magnitude, 0x3f803f80;
lop3.b32 $1, $2, 0x80008000, magnitude, 0xEA;
}
""")

_CONVERT_ADJACENT = tl.constexpr("""
{
.reg .b16 low, high;
mov.b32 {low, high}, $2;
cvt.rn.f16x2.e4m3x2 $0, low;
cvt.rn.f16x2.e4m3x2 $1, high;
}
""")

_CONVERT_EVEN_ODD = tl.constexpr("""
{
.reg .b32 sorted;
.reg .b16 even, odd;
prmt.b32 sorted, $2, 0, 0x3120;
mov.b32 {even, odd}, sorted;
cvt.rn.f16x2.e4m3x2 $0, even;
cvt.rn.f16x2.e4m3x2 $1, odd;
}
""")


@triton.jit
def even_odd(x, MODE: tl.constexpr):
    """Columns (0, 2, 4, ...) and (1, 3, 5, ...) of an int16 tile, float16; `shift`: times 2^-8."""
    if MODE == "convert":
        return tl.inline_asm_elementwise(
            _CONVERT_EVEN_ODD, "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    if MODE == "shift":
        return tl.inline_asm_elementwise(
            _SHIFT, "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    even = ((x & 0x7F) << 7) | ((x & 0x80) << 8)
    odd = ((x >> 1) & 0x3F80) | (x & -0x8000)
    return even.to(tl.int16).to(tl.float16, bitcast=True), odd.to(tl.int16).to(
        tl.float16, bitcast=True
    )


@triton.jit
def for_product(x, MODE: tl.constexpr):
    """The same values in two tiles whose columns are `product_columns`: the sum over both is
    what a product needs, and the cheapest split of the columns does."""
    if MODE == "convert":
        return tl.inline_asm_elementwise(
            _CONVERT_ADJACENT, "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return even_odd(x, MODE)


@triton.jit
def product_columns(pair, MODE: tl.constexpr):
    """Column of the first tile of `for_product` that stands at `pair`, and how far the second is.

    The instruction that splits by neighbours needs pairs 2i and 2i + 1 in one register, as
    ldmatrix leaves them in a dot operand that runs along the columns.
    """
    if MODE == "convert":
        return 4 * (pair // 2) + pair % 2, 2
    return 2 * pair, 1
