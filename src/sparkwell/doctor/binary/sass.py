"""Instruction families in machine code, told by opcode; no disassembler.

From sm_75 on an instruction is 16 bytes and the low 9 bits of its first word name the operation;
bits 9 to 11 are the form of its operands and, for few, part of the name.  The opcodes were read
from a disassembler's listings; the equality script beside the tests compares them again.
"""

from collections import Counter
from collections.abc import Iterable

INSTRUCTION = 16
FIRST_SM = 75  # older machine code is laid out differently
FAMILIES: dict[str, frozenset[int]] = {
    "hmma": frozenset({0x03C}),  # FP16, BF16, TF32 by mma.sync
    "imma": frozenset({0x037}),  # integers by mma.sync
    "bmma": frozenset({0x03D}),  # single bits
    "dmma": frozenset({0x03F}),  # FP64 by mma.sync
    "qmma": frozenset({0x07A}),  # FP8, FP6, FP4 by mma.sync
    "omma": frozenset({0x07F}),  # FP4 with block scales by mma.sync
    "wgmma": frozenset({0x1F0, 0x1F1, 0x1F2, 0x1F3}),
    "tcgen05": frozenset({0x1E3, 0x1E7, 0x1E9, 0x1EA, 0x1ED, 0x1EE}),
    "tma": frozenset({0x1B4, 0x1B5, 0x1B6, 0x1BA}),
    "clusters": frozenset({0x1BD, 0x1C7}),
    "setmaxnreg": frozenset({0x1C8}),
    "cp.async": frozenset({0x1AE}),
    "ldmatrix": frozenset({0x03B}),
    "stmatrix": frozenset({0x044}),
    "multimem": frozenset({0x1A5}),
    "pdl": frozenset({0x02D, 0x02E}),
    "fp64": frozenset({0x028, 0x029, 0x02B}),
}
BLOCK_SCALED = {0x47A: "qmma.sf"}  # the whole 12 bits: QMMA with block scales
TURING = {0x036: "hmma"}  # below sm_80: HMMA.884; newer targets have an integer sum there
AMPERE_SM = 80
NAMES = frozenset(FAMILIES) | frozenset(BLOCK_SCALED.values())
FAMILY_OF = {opcode: name for name, opcodes in FAMILIES.items() for opcode in opcodes}
# What a body that only returns, prints or traps is made of: moves, integer sums, special registers,
# constants, its own stack, calls, the way out.
IDLE = frozenset(
    {0x002, 0x005, 0x010, 0x024, 0x025, 0x027, 0x031, 0x035, 0x082, 0x090, 0x097, 0x0B9, 0x0CA}
    | {0x118, 0x119, 0x143, 0x147, 0x14D, 0x14E, 0x15C, 0x182, 0x187, 0x1AC, 0x1C2, 0x1C3}
)
CALL_RELATIVE = 0x144
STUB_BYTES = 1024
CHUNK = 1 << 22  # bytes looked at together, a multiple of INSTRUCTION
EXIT, TRAP = 0x14D, 0x15C


def opcodes(code: memoryview) -> Counter[int]:
    """How often each 12-bit opcode stands in `code`."""
    whole = code[: len(code) - len(code) % INSTRUCTION]
    words: Counter[int] = Counter()
    for start in range(0, len(whole), CHUNK):
        words.update(whole[start : start + CHUNK].cast("H")[:: INSTRUCTION // 2].tolist())
    found: Counter[int] = Counter()
    for word, count in words.items():
        found[word & 0xFFF] += count
    return found


def counts(found: Counter[int], sm: int) -> Counter[str]:
    """Instructions of each family, in code for target `sm`."""
    family_of = FAMILY_OF | TURING if sm < AMPERE_SM else FAMILY_OF
    families: Counter[str] = Counter()
    for opcode, count in found.items():
        name = BLOCK_SCALED.get(opcode) or family_of.get(opcode & 0x1FF)
        if name:
            families[name] += count
    return families


def is_idle(found: Iterable[int]) -> bool:
    """Whether code of these opcodes leaves nothing behind: no load, store or barrier."""
    bases = {opcode & 0x1FF for opcode in found}
    return bool(bases) and bases <= IDLE and bool(bases & {EXIT, TRAP})
