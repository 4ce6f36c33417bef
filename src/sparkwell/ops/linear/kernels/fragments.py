"""PTX that makes a lane's words of a weight its own share of mma.sync's operands, and multiplies.

A word holds 8 codes of 4 bits or 4 of 8, neighbours of a row.  Unpacked, code i shares a register
with the one half a word further on; x's pairs are put together the same way.  Which column of the
instruction a code then stands in does not matter, as x's value stands in the same.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def _numbered(*counts):
    """Names of inline assembly's operands, group by group."""
    names, first = [], 0
    for count in counts:
        names.append([f"${first + i}" for i in range(count)])
        first += count
    return names


@gluon.constexpr_function
def _signed(to, word, sign, size, mask):
    """Halves of a register: bit 15 of `word` moved by `sign` bits, `mask` of it moved by `size`."""
    lines = []
    for name, by in (("s", sign), ("t", size)):
        move = f"shl.b32 {name}, {word}, {by};" if by >= 0 else f"shr.b32 {name}, {word}, {-by};"
        lines.append(move)
    return [*lines, f"and.b32 t, t, {mask}; lop3.b32 {to}, s, 0x80008000, t, 0xEA;"]


@gluon.constexpr_function
def _e2m1(word, to, bf16):
    """Times 2^-126 in bfloat16, 2^-14 in float16."""
    if not bf16:
        moves = ((12, 9), (8, 5), (4, 1), (0, -3))
        return [x for i in range(4) for x in _signed(to[i], word, *moves[i], "0x0E000E00")]
    lines = [f"shr.b32 high, {word}, 8;"]
    for i in range(4):  # one multiplication moves sign and size: it has a unit of its own
        nibble, by = (("0x000F000F", 0x1040), ("0x00F000F0", 0x0104))[i % 2]
        lines.append(f"and.b32 t, {word if i < 2 else 'high'}, {nibble}; mul.lo.u32 t, t, {by};")
        lines.append(f"and.b32 {to[i]}, t, 0x81C081C0;")
    return lines


@gluon.constexpr_function
def _e4m3(word, to, bf16):
    """As it is in bfloat16, times 2^-8 in float16."""
    if not bf16:
        return _signed(to[0], word, 8, 7, "0x3F803F80") + _signed(to[1], word, 0, -1, "0x3F803F80")
    lines = _signed(to[0], word, 8, 4, "0x07F007F0") + _signed(to[1], word, 0, -4, "0x07F007F0")
    up = [f"mul.rn.bf16x2 {to[i]}, {to[i]}, s;" for i in range(2)]
    return [*lines, "mov.b32 s, 0x7B807B80;", *up]


@gluon.constexpr_function
def _int4(word, to, bf16, zero):
    """Codes less a zero point, in the halves of a register; None: 8."""
    kind, one, offset = ("bf16x2", 0x3F80, 0x4300) if bf16 else ("f16x2", 0x3C00, 0x6400)
    less = 0x8000 | offset | (0 if zero else 8)  # 128 or 1024, which the codes are put on
    twice = 0x10001
    lines = []
    for i in range(4):
        lines.append(
            f"shr.b32 t, {word}, {4 * i}; lop3.b32 t, t, 0x000F000F, {offset * twice}, 0xEA;"
        )
        lines.append(f"mov.b32 s, {one * twice}; mov.b32 high, {less * twice};")
        lines.append(f"fma.rn.{kind} {to[i]}, t, s, high;")
        if zero:
            lines.append(f"sub.rn.{kind} {to[i]}, {to[i]}, {zero};")
    return lines


@gluon.constexpr_function
def _factors(pair, to, bf16):
    """Two e4m3 scales, each in both halves of a register; times 2^119, 2^7 in float16."""
    lines = [f"cvt.u32.u16 high, {pair}; prmt.b32 high, high, 0, 0x1404;"]
    if bf16:
        lines += _signed("high", "high", 0, -4, "0x07F007F0")
        lines += [
            f"mov.b32 s, {by}; mul.rn.bf16x2 high, high, s;" for by in ("0x7B807B80", "0x7B007B00")
        ]
    else:
        lines += _signed("high", "high", 0, -1, "0x3F803F80")
        lines.append("mov.b32 s, 0x78007800; mul.rn.f16x2 high, high, s;")
    return [*lines, f"prmt.b32 {to[0]}, high, 0, 0x1010; prmt.b32 {to[1]}, high, 0, 0x3232;"]


@gluon.constexpr_function
def _program(kind, bf16, rows, tokens, chunks, grouped, zeros):
    """Sums plus the products of `chunks` chunks of 128 columns.

    Operands: sums, sums before, words, pairs of x, scales, zero points.  Registers of a group run
    over a word's place first, then chunks, then rows in steps of 8.
    """
    tiles, columns, words = rows // 16, tokens // 8, 8 if kind == "fp8" else 4
    pairs, half = 16 // words, "bf16" if bf16 else "f16"  # of a word
    each, scales = 2 * tiles * chunks, 2 * tiles * chunks if kind == "nvfp4" or grouped else 0
    size = 4 * tiles * columns
    out, before, word, x, scale, zero = _numbered(
        size, size, words * each, 16 * columns * chunks, scales, each if zeros else 0
    )
    chains = 2 if tiles * columns <= 2 else 1  # of sums that do not wait for each other
    lines = [
        f".reg .f32 c<{size}>, d<{size * chains}>; .reg .b32 s, t, high;",
        f".reg .b32 a<{4 * pairs}>, b<{pairs * columns}>, f<{4 * tiles}>, z<{2 * tiles}>;",
        *(f"mov.f32 c{i}, {before[i]};" for i in range(size)),
    ]
    clear = [f"mov.f32 d{i}, 0f00000000;" for i in range(size * chains)]
    lines += [] if grouped else clear
    for chunk in range(chunks):
        lines += clear if grouped else []
        for r in range(2 * tiles):
            at = r * chunks + chunk
            if kind == "nvfp4":
                lines += _factors(scale[at], [f"f{2 * r}", f"f{2 * r + 1}"], bf16)
            if zeros:
                lines.append(f"mov.b32 z{r}, {{{zero[at]}, {zero[at]}}};")
        for j in range(words):
            for col in range(columns):
                first = 16 * (col * chunks + chunk) + pairs * j
                for i in range(pairs):
                    low, high = x[first + i // 2], x[first + i // 2 + pairs // 2]
                    how = "0x7632" if i % 2 else "0x5410"
                    lines.append(f"prmt.b32 b{col * pairs + i}, {low}, {high}, {how};")
            for tile in range(tiles):
                for side in range(2):
                    r = 2 * tile + side
                    source = word[words * (r * chunks + chunk) + j]
                    to = [f"a{side * pairs + i}" for i in range(pairs)]
                    if kind == "nvfp4":
                        lines += _e2m1(source, to, bf16)
                        by = f"f{2 * r + j // 2}"
                        lines += [f"mul.rn.{half}x2 {name}, {name}, {by};" for name in to]
                    elif kind == "fp8":
                        lines += _e4m3(source, to, bf16)
                    else:
                        lines += _int4(source, to, bf16, f"z{r}" if zeros else None)
                for col in range(columns):
                    for step in range(pairs // 2):
                        i = 4 * (tile * columns + col)
                        other = (j * (pairs // 2) + step) % 2 * (chains - 1)
                        into = "c" if not grouped and not other else "d"
                        i += size * other if grouped else 0
                        sums = f"{{{', '.join(f'{into}{i + e}' for e in range(4))}}}"
                        a = [f"a{2 * step + e // 2 + e % 2 * pairs}" for e in range(4)]
                        b = [f"b{col * pairs + 2 * step + e}" for e in range(2)]
                        lines.append(
                            f"mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {sums}, "
                            f"{{{', '.join(a)}}}, {{{', '.join(b)}}}, {sums};"
                        )
        for i in range(size if grouped else 0):
            by = scale[(i // (4 * columns) * 2 + i % 4 // 2) * chunks + chunk]
            if chains == 2:
                lines.append(f"add.f32 d{i}, d{i}, d{i + size};")
            lines.append(f"fma.rn.f32 c{i}, d{i}, {by}, c{i};")
    for i in range(size):
        both = not grouped and chains == 2
        lines.append(f"add.f32 {out[i]}, c{i}, d{i};" if both else f"mov.f32 {out[i]}, c{i};")
    return "{" + "\n".join(lines) + "}"


@gluon.constexpr_function
def _widening(bf16, chunks, tiles):
    """NVFP4 words and pairs of scales to the halves that wgmma takes from registers."""
    half, each = "bf16" if bf16 else "f16", 2 * tiles * chunks
    out, word, scale = _numbered(32 * each, 4 * each, each)
    lines = [".reg .b32 s, t, high, a<8>, f<4>;"]
    for tile in range(tiles):
        for chunk in range(chunks):
            for side in range(2):
                at = (2 * tile + side) * chunks + chunk
                lines += _factors(scale[at], [f"f{2 * side}", f"f{2 * side + 1}"], bf16)
            for j in range(4):
                for side in range(2):
                    at = (2 * tile + side) * chunks + chunk
                    to = [f"a{4 * side + i}" for i in range(4)]
                    lines += _e2m1(word[4 * at + j], to, bf16)
                    by = f"f{2 * side + j // 2}"
                    lines += [f"mul.rn.{half}x2 {name}, {name}, {by};" for name in to]
                for i in range(8):  # an instruction's columns: rows in turn, then the next 8
                    first = 64 * (tile * chunks + chunk) + 16 * j + 2 * i
                    lines.append(
                        f"mov.b32 {{{out[first]}, {out[first + 1]}}}, a{i % 2 * 4 + i // 2};"
                    )
    return "{" + "\n".join(lines) + "}"


@gluon.jit
def widen_words(words, scales, like, BF16: gl.constexpr, CHUNKS: gl.constexpr):
    """NVFP4 as the left operand of wgmma, typed as `like`; times 2^-7."""
    TILES: gl.constexpr = like.shape[0] // (16 * gl.num_warps())
    program: gl.constexpr = _widening(BF16, CHUNKS, TILES)
    return gl.inline_asm(program, ("=h", "r", "h"), [words, scales], like.type, True)


@gluon.jit
def multiply_chunks(
    acc, words, x, scales, zeros, KIND: gl.constexpr, BF16: gl.constexpr, ROWS: gl.constexpr,
    TOKENS: gl.constexpr, CHUNKS: gl.constexpr,
):  # fmt: skip
    """acc plus products; scales: pairs of e4m3 (NVFP4), fp32 of each chunk, or None."""
    GROUPED: gl.constexpr = KIND != "nvfp4" and scales is not None
    program: gl.constexpr = _program(KIND, BF16, ROWS, TOKENS, CHUNKS, GROUPED, zeros is not None)
    if scales is None:
        acc = gl.inline_asm(program, ("=f", "f", "r", "r"), [acc, words, x], acc.type, True)
    elif KIND == "nvfp4":
        acc = gl.inline_asm(
            program, ("=f", "f", "r", "r", "h"), [acc, words, x, scales], acc.type, True
        )
    elif zeros is None:
        acc = gl.inline_asm(
            program, ("=f", "f", "r", "r", "f"), [acc, words, x, scales], acc.type, True
        )
    else:
        acc = gl.inline_asm(
            program, ("=f", "f", "r", "r", "f", "h"), [acc, words, x, scales, zeros], acc.type, True
        )
    return acc
