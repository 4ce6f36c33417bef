"""Weights of 4 and 8 bits as tiles of 16-bit floats, by integer instructions that every GPU has.

A byte holds two 4-bit codes, the even column in its low nibble.  Both come out as tiles of their
own, low and high, whose columns meet the even and the odd columns of x: nothing is shuffled.
All results are exact, times a power of two that a caller takes back once, in fp32.

`asm`: four bytes a register, two results a register.  Inline assembly cannot be interpreted, so
each function has an integer twin.
"""

import triton
import triton.language as tl

# Powers of two that undo what a pair of weight and scale leaves.
E2M1_E4M3_LEFT = tl.constexpr(128.0)  # for bfloat16 and float16; with E8M0 scales as well
E4M3_F16_LEFT = tl.constexpr(256.0)  # e4m3 as float16; as bfloat16 nothing is left

_FOUR = tl.constexpr("=r,=r,=r,=r,r")
# Register $4: bytes b0 b1 b2 b3.  $0, $1: low nibbles of (b0, b1), (b2, b3); $2, $3: high ones.
_SORTED = "{ .reg .b32 u, s, m; prmt.b32 u, $4, 0, 0x3120;"  # b0 b2 b1 b3: halves a shift apart
_E2M1_BF16 = tl.constexpr(
    _SORTED
    + """
shl.b32 s, u, 12; shl.b32 m, u, 6; and.b32 m, m, 0x01C001C0; lop3.b32 $0, s, 0x80008000, m, 0xEA;
shl.b32 s, u, 8; shl.b32 m, u, 2; and.b32 m, m, 0x01C001C0; lop3.b32 $2, s, 0x80008000, m, 0xEA;
shl.b32 s, u, 4; shr.b32 m, u, 2; and.b32 m, m, 0x01C001C0; lop3.b32 $1, s, 0x80008000, m, 0xEA;
shr.b32 m, u, 6; and.b32 m, m, 0x01C001C0; lop3.b32 $3, u, 0x80008000, m, 0xEA; }
"""
)
_E2M1_F16 = tl.constexpr(
    _SORTED
    + """
shl.b32 s, u, 12; shl.b32 m, u, 9; and.b32 m, m, 0x0E000E00; lop3.b32 $0, s, 0x80008000, m, 0xEA;
shl.b32 s, u, 8; shl.b32 m, u, 5; and.b32 m, m, 0x0E000E00; lop3.b32 $2, s, 0x80008000, m, 0xEA;
shl.b32 s, u, 4; shl.b32 m, u, 1; and.b32 m, m, 0x0E000E00; lop3.b32 $1, s, 0x80008000, m, 0xEA;
shr.b32 m, u, 3; and.b32 m, m, 0x0E000E00; lop3.b32 $3, u, 0x80008000, m, 0xEA; }
"""
)
_INT4 = """
lop3.b32 $0, u, 0x000F000F, ONE, 0xEA; shr.b32 m, u, 4; lop3.b32 $2, m, 0x000F000F, ONE, 0xEA;
shr.b32 m, u, 8; lop3.b32 $1, m, 0x000F000F, ONE, 0xEA;
shr.b32 s, u, 12; lop3.b32 $3, s, 0x000F000F, ONE, 0xEA; }
"""
_INT4_BF16 = tl.constexpr(_SORTED + _INT4.replace("ONE", "0x43004300"))  # 128 + code
_INT4_F16 = tl.constexpr(_SORTED + _INT4.replace("ONE", "0x64006400"))  # 1024 + code
# Register $2: four e4m3.  $0, $1: two 16-bit floats each, in order.
_SPREAD = "{ .reg .b32 u, m; prmt.b32 u, $2, 0, 0x1404;"
_AGAIN = "prmt.b32 u, $2, 0, 0x3424;"
_TO_BF16 = "shr.b32 m, u, 4; and.b32 m, m, 0x07F007F0; lop3.b32 {0}, u, 0x80008000, m, 0xEA;"
_TO_F16 = "shr.b32 m, u, 1; and.b32 m, m, 0x3F803F80; lop3.b32 {0}, u, 0x80008000, m, 0xEA;"
_E4M3_BF16 = tl.constexpr(_SPREAD + _TO_BF16.format("$0") + _AGAIN + _TO_BF16.format("$1") + "}")
_E4M3_F16 = tl.constexpr(_SPREAD + _TO_F16.format("$0") + _AGAIN + _TO_F16.format("$1") + "}")


@triton.jit
def _constant(value: tl.constexpr, BF16: tl.constexpr):
    HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    return tl.full((), value, HALF)


@triton.jit
def _placed(code, SIGN: tl.constexpr, LEFT: tl.constexpr, BF16: tl.constexpr):
    """Bit SIGN of a small integer as the sign, the bits below it moved left by LEFT."""
    HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    wide = code.to(tl.int32)
    bits = (((wide >> SIGN) & 1) << 15) | ((wide & ((1 << SIGN) - 1)) << LEFT)
    return bits.to(tl.int16).to(HALF, bitcast=True)


@triton.jit
def e2m1_halves(codes, BF16: tl.constexpr, ASM: tl.constexpr):
    """Low and high nibbles of a uint8 tile; bfloat16: times 2^-126, float16: times 2^-14."""
    if ASM and BF16:
        halves = tl.inline_asm_elementwise(
            _E2M1_BF16, _FOUR, [codes], (tl.bfloat16, tl.bfloat16), True, 4
        )
    elif ASM:
        halves = tl.inline_asm_elementwise(
            _E2M1_F16, _FOUR, [codes], (tl.float16, tl.float16), True, 4
        )
    else:
        LEFT: tl.constexpr = 6 if BF16 else 9
        halves = _placed(codes, 3, LEFT, BF16), _placed(codes >> 4, 3, LEFT, BF16)
    return halves


@triton.jit
def int4_halves(codes, BF16: tl.constexpr, ASM: tl.constexpr):
    """Low and high nibbles of a uint8 tile, 0..15, plus 128 in bfloat16, 1024 in float16."""
    if ASM and BF16:
        halves = tl.inline_asm_elementwise(
            _INT4_BF16, _FOUR, [codes], (tl.bfloat16, tl.bfloat16), True, 4
        )
    elif ASM:
        halves = tl.inline_asm_elementwise(
            _INT4_F16, _FOUR, [codes], (tl.float16, tl.float16), True, 4
        )
    else:
        HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
        OFFSET: tl.constexpr = 128.0 if BF16 else 1024.0
        low, high = (codes & 15).to(tl.float32) + OFFSET, (codes >> 4).to(tl.float32) + OFFSET
        halves = low.to(HALF), high.to(HALF)
    return halves


@triton.jit
def less_zero(value, zero, BF16: tl.constexpr):
    """`int4_halves` less their offset and the zero point, None: 8; exact for all 256 of them."""
    OFFSET: tl.constexpr = 128.0 if BF16 else 1024.0
    if zero is None:
        less = value - _constant(OFFSET + 8.0, BF16)
    else:  # 128 + zero may need more than bfloat16's 8 bits
        less = (value - _constant(OFFSET, BF16)) - zero
    return less


@triton.jit
def e4m3_wide(codes, BF16: tl.constexpr, ASM: tl.constexpr):
    """A uint8 tile of e4m3; float16: times 2^-8.  NaN codes read as 480."""
    if ASM and BF16:
        value = tl.inline_asm_elementwise(_E4M3_BF16, "=r,=r,r", [codes], tl.bfloat16, True, 4)
    elif ASM:
        value = tl.inline_asm_elementwise(_E4M3_F16, "=r,=r,r", [codes], tl.float16, True, 4)
    else:
        value = _placed(codes, 7, 4 if BF16 else 7, BF16)
    if BF16:
        value = value * _constant(2.0**120, BF16)
    return value


@triton.jit
def e4m3_factor(codes, BF16: tl.constexpr, ASM: tl.constexpr):
    """Scales of `e2m1_halves`: e4m3 times 2^119 in bfloat16, 2^7 in float16."""
    return e4m3_wide(codes, BF16, ASM) * _constant(2.0**119 if BF16 else 2.0**15, BF16)


@triton.jit
def e8m0_factor(codes):
    """2^(code - 127) in bfloat16; code 0 is 0, and 255, NaN, is infinity."""
    return (codes.to(tl.int32) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def along(factor, ROWS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr):
    """[ROWS, GROUPS] -> [ROWS, GROUPS * EACH]: each value EACH times."""
    wide = tl.broadcast_to(factor[:, :, None], (ROWS, GROUPS, EACH))
    return tl.reshape(wide, (ROWS, GROUPS * EACH))


@triton.jit
def pair_halves(x, BF16: tl.constexpr):
    """Even and odd columns of 16-bit floats that were loaded as pairs, int32."""
    HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    even = (x & 0xFFFF).to(tl.int16).to(HALF, bitcast=True)
    odd = (x >> 16).to(tl.int16).to(HALF, bitcast=True)
    return even, odd
