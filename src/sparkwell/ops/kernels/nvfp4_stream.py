"""NVFP4 from a ring in shared memory to operands of mma.sync.

A thread takes 64 neighbouring codes of 256 with all their four scales.  Rows of x come with their
columns in the order that this makes: of 256, 64 t + 16 g + 8 j + 4 e + 2 b + h stands at
64 g + 32 j + 16 b + 8 h + 2 t + e.  Where they are float16, a code is fewer instructions away from
its value than for bfloat16.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from sparkwell.ops.kernels.barriers import arrive_alone, settled, wait_alone

STEP: gl.constexpr = gl.constexpr(256)  # columns at a time
LEFT: gl.constexpr = gl.constexpr(128.0)  # what tiles lack


@gluon.constexpr_function
def factors_text(BF16, ROWS):
    """PTX: words of four e4m3 scales of ROWS rows.  -> each of them, times 2^119 or 2^7, twice"""
    left, right, mask = (4, 4, "0x07F007F0") if BF16 else (7, 1, "0x3F803F80")
    lifts = ("0x7B807B80", "0x7B007B00") if BF16 else ("0x78007800",)
    kind = "bf16x2" if BF16 else "f16x2"
    text = ["{ .reg .b32 s, a, b, k;"]
    for row in range(ROWS):
        word = f"${4 * ROWS + row}"
        text += [f"shl.b32 a, {word}, {left}; and.b32 a, a, {mask}; shl.b32 s, {word}, 8;"]
        text += ["lop3.b32 a, s, 0x80008000, a, 0xEA;"]
        text += [f"shr.b32 b, {word}, {right}; and.b32 b, b, {mask};"]
        text += [f"lop3.b32 b, {word}, 0x80008000, b, 0xEA;"]
        for lift in lifts:
            text += [f"mov.b32 k, {lift}; mul.rn.{kind} a, a, k; mul.rn.{kind} b, b, k;"]
        for scale in range(4):
            pair, half = "ab"[scale % 2], ("0x1010", "0x3232")[scale // 2]
            text += [f"prmt.b32 ${ROWS * scale + row}, {pair}, {pair}, {half};"]
    return "\n".join(text) + " }"


@gluon.constexpr_function
def values_text(G, BF16, ROWS, TIMES):
    """PTX: 16 codes of ROWS rows, words 2 G and 2 G + 1 of 8, times their factors.

    -> operands of four instructions for two rows: pairs p and p + 1 of a word, of either row.
    In float16 a value's bits are those of one byte, so that codes move by four.
    TIMES: to bfloat16 by multiplications that move sign and size at once; they have a unit of
    their own.
    """
    text = ["{ .reg .b32 s, m, p<4>;"]
    for row in range(ROWS):
        for j in range(2):
            word = f"${16 * ROWS + 8 * row + 2 * G + j}"
            if BF16 and TIMES:
                text += [f"shr.b32 s, {word}, 8;"]
                for pair in range(4):
                    mask, by = (("0x000F000F", "0x1040"), ("0x00F000F0", "0x0104"))[pair % 2]
                    text += [f"and.b32 m, {word if pair < 2 else 's'}, {mask};"]
                    text += [f"mul.lo.u32 m, m, {by}; and.b32 p{pair}, m, 0x81C081C0;"]
            elif BF16:
                for pair in range(4):
                    shift = 6 - 4 * pair
                    text += [f"sh{'l' if shift > 0 else 'r'}.b32 m, {word}, {abs(shift)};"]
                    text += [f"and.b32 m, m, 0x01C001C0; shl.b32 s, {word}, {12 - 4 * pair};"]
                    text += [f"lop3.b32 p{pair}, s, 0x80008000, m, 0xEA;"]
            else:
                for odd in range(2):
                    text += [f"{('shl.b32 m, {0}, 1', 'shr.b32 m, {0}, 3')[odd].format(word)};"]
                    text += [f"and.b32 m, m, 0x0E0E0E0E; shl.b32 s, {word}, {4 - 4 * odd};"]
                    text += ["lop3.b32 m, s, 0x80808080, m, 0xEA;"]
                    text += [f"prmt.b32 p{odd}, m, 0, 0x2404; and.b32 p{odd + 2}, m, 0xFF00FF00;"]
            for pair in range(4):
                out = 32 * (row // 2) + 8 * (2 * j + pair // 2) + 4 * (pair % 2) + 2 * (row % 2)
                factor = f"${24 * ROWS + row}"
                text += [f"mul.rn.{'bf16x2' if BF16 else 'f16x2'} m, p{pair}, {factor};"]
                text += [f"mov.b32 {{${out}, ${out + 1}}}, m;"]
    return "\n".join(text) + " }"


@gluon.constexpr_function
def _operand(TYPE, TILE, layout):
    return gl.distributed_type(TYPE, [TILE, 64], layout)


@gluon.jit
def _values(
    words, factor, G: gl.constexpr, TYPE: gl.constexpr, EACH: gl.constexpr, TILE: gl.constexpr,
    TIMES: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    return gl.inline_asm(
        values_text(G, gl.bfloat16 == TYPE, EACH, TIMES), ("=h", "r", "r"), [words, factor],
        _operand(TYPE, TILE, layout), is_pure=True,
    )  # fmt: skip


@gluon.jit
def stream_sums(
    ws, ss, xs, ready, free, at, steps, of_words: gl.constexpr, of_scales: gl.constexpr,
    TILE: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, TYPE: gl.constexpr,
    TIMES: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """[TILE, ROWS], times 1 / LEFT, of `steps` stages, from the one of number `at` on.

    ws, ss, xs: words of codes, words of scales and rows of x of each stage.  of_words, of_scales:
    layouts in which a thread has 8 words and one, of its rows of `layout`.
    """
    EACH: gl.constexpr = TILE // (8 * gl.num_warps())  # rows of a thread
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    total = gl.zeros([TILE, ROWS], gl.float32, layout)
    for i in range(steps):
        stage, turn = (at + i) % STAGES, ((at + i) // STAGES) & 1
        wait_alone(ready.index(stage), turn)
        words = ws.index(stage).load(of_words)
        scales = ss.index(stage).load(of_scales)
        factors = gl.inline_asm(
            factors_text(gl.bfloat16 == TYPE, EACH), ("=r", "=r", "=r", "=r", "r"),
            [scales], (scales.type, scales.type, scales.type, scales.type), is_pure=True,
        )  # fmt: skip
        for g in gl.static_range(4):
            x = xs.index(stage).slice(64 * g, 64, 1).permute([1, 0]).load(right)
            total = mma_v2(_values(words, factors[g], g, TYPE, EACH, TILE, TIMES, left), x, total)
        settled(total, SUMS=True)
        arrive_alone(free.index(stage))
    return total
