"""A tile of an expert's weight, in any format, as an operand of a product.

w = tile * factor, where `factor` is one number a row, of a group of columns (`group_factor`) or of
the whole row (`row_factor`): it multiplies fp32 sums, LEFT with it.  The tile is exact in its type:
  float    as it is
  e4m3     in bfloat16 as it is, else times 2^-8 unless the hardware converts; LEFT is 2^8 then
  NVFP4    e2m1 * block scale * 2^-7, LEFT is 2^7: a multiple of 2^-17 that needs six bits
  MXFP4    e2m1 * 2^(scale - 127), in bfloat16 or fp32
  INT4     code - zero
Two codes of a byte are neighbours of a row, the even column in the low bits.
"""

import triton
import triton.language as tl

from sparkwell.ops.kernels.nibbles import (
    e2m1_halves,
    e4m3_factor,
    e4m3_wide,
    int4_halves,
    less_zero,
)


@triton.jit
def inside(at, end, ALL: tl.constexpr):
    """Which of `at` come before `end`.  ALL: they do; loads are masked in whole vectors only."""
    if ALL:
        mask = at == at
    else:
        mask = at < end
    return mask


@triton.jit
def _columns(halves, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Low and high nibbles' tiles, [ROWS, COLS / 2] each, side by side.  -> [ROWS, COLS]"""
    return tl.reshape(tl.join(halves[0], halves[1]), (ROWS, COLS))


@triton.jit
def _e2m1(codes, MX: tl.constexpr, TYPE: tl.constexpr, ASM: tl.constexpr):
    """Halves of bytes: times 2^-126 in bfloat16, 2^-14 in float16 and fp32.  MX: as they are."""
    BF16: tl.constexpr = tl.bfloat16 == TYPE
    low, high = e2m1_halves(codes, BF16, ASM)
    low, high = low.to(TYPE), high.to(TYPE)
    if MX:
        LIFT: tl.constexpr = 8.507059173023462e37 if BF16 else 16384.0  # 2^126, 2^14
        low, high = (low * LIFT).to(TYPE), (high * LIFT).to(TYPE)
    return low, high


@triton.jit
def _int4(codes, zero_ptr, TYPE: tl.constexpr, ASM: tl.constexpr):
    """code - zero, halves of bytes.  zero_ptr: of each row, None: 8."""
    BF16: tl.constexpr = tl.bfloat16 == TYPE
    low, high = int4_halves(codes, BF16, ASM)
    zero = None
    if zero_ptr is not None:
        zero = tl.load(zero_ptr).to(low.dtype)[:, None]
    low, high = less_zero(low, zero, BF16), less_zero(high, zero, BF16)
    return low.to(TYPE), high.to(TYPE)


@triton.jit
def block_scale(scale, MX: tl.constexpr, TYPE: tl.constexpr, ASM: tl.constexpr):
    """Scale bytes as numbers; NVFP4's for `_e2m1`: times 2^119 in bfloat16, else 2^7."""
    if MX:  # exponent bits, but for the smallest (subnormal) and NaN
        bits = scale.to(tl.int32)
        bits = tl.where(bits == 0, 0x00400000, tl.where(bits == 255, 0x7FC00000, bits << 23))
        value = bits.to(tl.float32, bitcast=True)
    else:
        value = e4m3_factor(scale, tl.bfloat16 == TYPE, ASM)
    return value.to(TYPE)


@triton.jit
def _times_groups(tile, scales, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr):
    """tile[i, j] * scales[i, j // GROUP]"""
    grouped = tl.reshape(tile, (ROWS, COLS // GROUP, GROUP)) * scales[:, :, None]
    return tl.reshape(grouped, (ROWS, COLS))


@triton.jit
def e4m3_tile(code, CONVERT: tl.constexpr, ASM: tl.constexpr, TYPE: tl.constexpr):
    """Bytes of e4m3 as TYPE; but for bfloat16, and unless the hardware converts, times 2^-8."""
    if CONVERT:
        tile = code.to(tl.float8e4nv, bitcast=True).to(TYPE)
    else:
        tile = e4m3_wide(code, tl.bfloat16 == TYPE, ASM).to(TYPE)
    return tile


@triton.jit
def weight_tile(
    w_ptr, scale_ptr, zero_ptr, rows, first, k, stride_w, stride_s, stride_z,
    KIND: tl.constexpr, GROUP: tl.constexpr, CONVERT: tl.constexpr, ASM: tl.constexpr,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Columns first : first + COLS of `rows`, zeros from k on.  -> [ROWS, COLS] of TYPE

    EVEN: COLS divides k.
    """
    if KIND == "float":
        inner = first + tl.arange(0, COLS)[None, :]
        w = tl.load(
            w_ptr + rows[:, None] * stride_w + inner, mask=inside(inner, k, EVEN), other=0.0
        )
        tile = w.to(TYPE)
    elif KIND == "fp8-block" or KIND == "fp8-rows":
        inner = first + tl.arange(0, COLS)[None, :]
        code = tl.load(
            w_ptr + rows[:, None] * stride_w + inner, mask=inside(inner, k, EVEN), other=0
        )
        tile = e4m3_tile(code, CONVERT, ASM, TYPE)
    else:
        half = first // 2 + tl.arange(0, COLS // 2)[None, :]
        codes = tl.load(
            w_ptr + rows[:, None] * stride_w + half, mask=inside(half, k // 2, EVEN), other=0
        )
        if KIND == "int4":
            place = None
            if zero_ptr is not None:
                place = zero_ptr + rows * stride_z + first // GROUP
            tile = _columns(_int4(codes, place, TYPE, ASM), ROWS, COLS)
        else:
            group = first // GROUP + tl.arange(0, COLS // GROUP)[None, :]
            scale = tl.load(
                scale_ptr + rows[:, None] * stride_s + group,
                mask=inside(group, k // GROUP, EVEN),
                other=0,
            )
            tile = _columns(_e2m1(codes, KIND == "mxfp4", TYPE, ASM), ROWS, COLS)
            tile = _times_groups(
                tile, block_scale(scale, KIND == "mxfp4", TYPE, ASM), ROWS, COLS, GROUP
            )
    return tile


@triton.jit
def group_factor(
    scale_ptr, rows, first, stride_s, KIND: tl.constexpr, LEFT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What sums over the group of columns that begins before `first` are multiplied by, fp32."""
    if KIND == "fp8-block":
        scale = tl.load(scale_ptr + (rows // BLOCK_ROWS) * stride_s + first // GROUP) * LEFT
    else:
        scale = tl.load(scale_ptr + rows * stride_s + first // GROUP).to(tl.float32)
    return scale


@triton.jit
def row_factor(scale_ptr, row_scale_ptr, rows, KIND: tl.constexpr, LEFT: tl.constexpr):
    """What sums over a whole row are multiplied by, fp32."""
    if KIND == "nvfp4":
        scale = tl.load(row_scale_ptr + rows)
    else:
        scale = tl.load(scale_ptr + rows)
    return scale * LEFT
