"""PTX that does exactly what an instruction of newer GPUs does, in instructions that Hopper has.

Each function returns a block of statements in braces, with registers of its own.  Matrix products
read the fragments each lane would hand to the real instruction, form every scaled operand exactly
in bfloat16 and accumulate by mma.sync in fp32; so layouts and selectors are put to the proof, the
real hardware's order of additions is not.

Fragments of m16n8 products, for lane 4g + t: A register 0 and 1 hold rows g and g + 8, first half
of K, 2 and 3 the second half; B likewise column g.  Scales: A's row g comes from lane
4g + 2 * thread_id, row g + 8 from the lane after it; B's column g from lane 4g + thread_id.
"""

import struct
from collections.abc import Sequence

Vector = Sequence[str]


class Block:
    """Statements under way, and names for their registers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, statement: str) -> None:
        """One statement."""
        self.lines.append(f"{statement};")

    def new(self, kind: str = "b32") -> str:
        """A register of its own."""
        self.count += 1
        self.add(f".reg .{kind} emu{self.count}")
        return f"emu{self.count}"

    def do(self, opcode: str, *operands: str | int, kind: str = "b32") -> str:
        """The opcode's result in a new register."""
        out = self.new(kind)
        self.add(f"{opcode} {out}, {', '.join(map(str, operands))}")
        return out

    def text(self) -> str:
        """The block, in braces."""
        return "\n".join(["{", *self.lines, "}"])


def _twice(half: int) -> str:
    """A bfloat16's bits in both halves of a word."""
    return hex(half << 16 | half)


def _power(exponent: int) -> str:
    """2^exponent, as a pair of bfloat16."""
    return _twice((exponent + 127) << 7)


# ---------------------------------------------------------------- elements to bfloat16 pairs

# Format -> (sign bit, mask of the rest, shift that puts the mantissa at bfloat16's upper mantissa
# bits, power of two that corrects the exponent's bias, add that carries into bit 7 at inf and NaN)
_FORMATS = {
    "e4m3": (0x80, 0x7F, 4, 120, 0x01),
    "e5m2": (0x80, 0x7F, 5, 112, 0x04),
    "e2m1": (0x08, 0x07, 6, 126, None),
    "e2m3": (0x20, 0x1F, 4, 126, None),
    "e3m2": (0x20, 0x1F, 5, 124, None),
}


def _pair(b: Block, codes: str, fmt: str) -> str:
    """Two codes, in the low bits of each half of a word, as two bfloat16.  Exact."""
    sign, mask, shift, power, carry = _FORMATS[fmt]
    rest = b.do("and.b32", codes, _twice(mask))
    out = b.do("shl.b32", rest, shift)
    sign_at = b.do("and.b32", codes, _twice(sign))
    out = b.do("or.b32", out, b.do("shl.b32", sign_at, 16 - sign.bit_length()))
    power_of_two = b.do("mov.b32", _power(power))
    out = b.do("mul.rn.bf16x2", out, power_of_two)
    if carry is None:
        return out
    special = b.do("and.b32", b.do("add.u32", rest, _twice(carry)), _twice(0x80))
    return b.do("or.b32", out, b.do("mul.lo.u32", special, 0xFF))  # exponent all ones


def _nibbles(b: Block, word: str, j: int) -> str:
    """Codes 2j and 2j + 1 of eight, one in each half."""
    low = b.do("bfe.u32", word, 8 * j, 4)
    high = b.do("bfe.u32", word, 8 * j + 4, 4)
    return b.do("mad.lo.u32", high, 0x10000, low)


def _bytes(b: Block, word: str, j: int, fmt: str) -> str:
    """Bytes 2j and 2j + 1 of four, one in each half; e2m1 stands in bits 5:2 of its byte."""
    start, width = (2, 4) if fmt == "e2m1" else (0, 8)
    low = b.do("bfe.u32", word, 16 * j + start, width)
    high = b.do("bfe.u32", word, 16 * j + 8 + start, width)
    return b.do("mad.lo.u32", high, 0x10000, low)


def _scale(b: Block, word: str, shift: str | int, kind: str) -> str:
    """The scale in the byte `shift` bits up, in both halves: ue4m3 or ue8m0.  Exact."""
    byte = b.do("and.b32", b.do("shr.u32", word, shift), "0xff")
    twice = b.do("mad.lo.u32", byte, 0x10000, byte)
    if kind == "ue4m3":
        return _pair(b, b.do("and.b32", twice, _twice(0x7F)), "e4m3")
    out = b.do("shl.b32", twice, 7)  # an exponent alone, with bfloat16's own bias
    for code, bits in ((0, 0x0040), (255, 0x7FC0)):  # 2^-127 is subnormal; 255 is NaN
        is_code = b.do("setp.eq.u32", byte, code, kind="pred")
        out = b.do("selp.b32", _twice(bits), out, is_code)
    return out


# ---------------------------------------------------------------- matrix products


def _from_lane(b: Block, word: str, thread: str, extra: int) -> str:
    """The word that lane 4g + thread + extra holds."""
    lane = b.new()
    b.add(f"mov.u32 {lane}, %laneid")
    quad = b.do("and.b32", lane, 28)
    source = b.do("add.u32", quad, b.do("add.u32", b.do("mov.u32", thread), extra))
    return b.do("shfl.sync.idx.b32", word, source, 31, "0xffffffff")


def _product(b: Block, sums: Vector, a: Vector, second: Vector) -> None:
    b.add(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        f"{{{', '.join(sums)}}}, {{{', '.join(a)}}}, {{{', '.join(second)}}}, {{{', '.join(sums)}}}"
    )


def block_scaled_product(
    d: Vector, a: Vector, b_: Vector, c: Vector, *,
    formats: tuple[str, str], vector: int, scales: str | None,
    scale_a: str = "", byte_a: int = 0, thread_a: int = 0,
    scale_b: str = "", byte_b: int = 0, thread_b: int = 0,
) -> str:  # fmt: skip
    """d = a @ b_ + c with block scales, m16n8k64 of e2m1 nibbles or m16n8k32 of bytes.

    formats: of a and b_.  vector: scales along K: 4, 2 or 1.  scales: ue4m3, ue8m0 or None.
    scale_a, scale_b: registers of four scales; byte_*, thread_*: the instruction's selectors.
    """
    b = Block()
    sums = [b.do("mov.b32", value, kind="f32") for value in c]
    rows: list[list[str]] = [[], []]  # for each half of K: scales of rows g, g + 8 and column g
    if scales is not None:
        words = [
            _from_lane(b, scale_a, str(2 * thread_a), 0),
            _from_lane(b, scale_a, str(2 * thread_a), 1),
            _from_lane(b, scale_b, str(thread_b), 0),
        ]
        for half in (0, 1):
            rows[half] = [
                _scale(b, word, _block(b, 8 * byte, vector, half), scales)
                for word, byte in zip(words, (byte_a, byte_a, byte_b), strict=True)
            ]
    nibbles = vector != 1
    for j in range(4 if nibbles else 2):

        def operand(word: str, fmt: str, half: int, place: int, j: int = j) -> str:
            codes = _nibbles(b, word, j) if nibbles else _bytes(b, word, j, fmt)
            pair = _pair(b, codes, fmt)
            return b.do("mul.rn.bf16x2", pair, rows[half][place]) if rows[half] else pair

        first = [operand(a[i], formats[0], i // 2, i % 2) for i in range(4)]
        second = [operand(b_[i], formats[1], i, 2) for i in range(2)]
        _product(b, sums, first, second)
    for out, value in zip(d, sums, strict=True):
        b.add(f"mov.b32 {out}, {value}")
    return b.text()


def _block(b: Block, start: int, vector: int, half: int) -> str | int:
    """Bits up to the scale of this lane's K values in one half of K."""
    if vector == 1:
        return start
    if vector == 2:
        return start + 8 * half
    lane = b.new()  # four blocks of 16: lanes t = 0, 1 hold the first of a half, 2, 3 the other
    b.add(f"mov.u32 {lane}, %laneid")
    odd = b.do("bfe.u32", lane, 1, 1)
    return b.do("mad.lo.u32", odd, 8, start + 16 * half)


# ---------------------------------------------------------------- conversions, packed arithmetic


def to_e2m1(d: str, high: str, low: str) -> str:
    """cvt.rn.satfinite.e2m1x2.f32: nearest even, saturating; NaN becomes the largest, 6."""
    b = Block()
    codes = []
    for value in (high, low):
        size = b.do("abs.f32", value, kind="f32")
        code = b.do("mov.b32", 0)
        # up to and at a tie, the even code wins
        for limit, tie in ((0.25, 0), (0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5, 0)):
            over = b.do(f"set.{'geu' if tie else 'gtu'}.u32.f32", size, _float(limit))
            code = b.do("sub.u32", code, over)  # `set` gives -1
        negative = b.do("shr.u32", b.do("mov.b32", value), 31)
        number = b.do("setp.eq.f32", size, size, kind="pred")
        sign = b.do("selp.b32", b.do("shl.b32", negative, 3), 0, number)
        codes.append(b.do("or.b32", code, sign))
    both = b.do("mad.lo.u32", codes[0], 16, codes[1])
    b.add(f"cvt.u8.u32 {d}, {both}")
    return b.text()


def _float(value: float) -> str:
    return f"0f{struct.unpack('>I', struct.pack('>f', value))[0]:08X}"


def to_bf16(d: str, codes: str, fmt: str) -> str:
    """cvt.rn.bf16x2 of two FP8 codes, by fp16, which holds each of them.  Exact."""
    b = Block()
    halves = b.do(f"cvt.rn.f16x2.{fmt}", codes)
    low, high = b.new("b16"), b.new("b16")
    b.add(f"mov.b32 {{{low}, {high}}}, {halves}")
    wide = [b.do("cvt.f32.f16", half, kind="f32") for half in (high, low)]
    b.add(f"cvt.rn.bf16x2.f32 {d}, {', '.join(wide)}")
    return b.text()


def packed(opcode: str, operands: Vector) -> str:
    """An operation on two packed fp32, as two: operands[0] is the result."""
    b = Block()
    halves = []
    for operand in operands[1:]:
        low, high = b.new("f32"), b.new("f32")
        b.add(f"mov.b64 {{{low}, {high}}}, {operand}")
        halves.append((low, high))
    results = [b.do(f"{opcode}.f32", *(h[i] for h in halves), kind="f32") for i in (0, 1)]
    b.add(f"mov.b64 {operands[0]}, {{{results[0]}, {results[1]}}}")
    return b.text()


def mixed(opcode: str, half: str, operands: Vector) -> str:
    """An fp32 sum, difference or fma whose factors or first term are of type `half`.  Exact."""
    b = Block()
    last = operands[-1]
    wide = [b.do(f"cvt.f32.{half}", operand, kind="f32") for operand in operands[1:-1]]
    b.add(f"{opcode} {operands[0]}, {', '.join([*wide, last])}")
    return b.text()


def of_three(opcode: str, operands: Vector) -> str:
    """Minimum or maximum of three, as two of two."""
    b = Block()
    first = b.do(opcode, operands[1], operands[2], kind="f32")
    b.add(f"{opcode} {operands[0]}, {first}, {operands[3]}")
    return b.text()
