"""FP8 products that are not: operands widened to FP16, then multiplied as FP16.

Where a target has no FP8 `mma.sync` the assembler turns one into F2FP.F16.E4M3.UNPACK_B (or E5M2)
of both operands and HMMA on what comes out.  So: an HMMA all of whose A and B registers were last
written by such a widening.  Code that widens FP8 weights and scales them before the product does
not match.
"""

import re
from struct import Struct

HMMA, F2FP = 0x03C, 0x03E
A_REGISTERS, B_REGISTERS = 4, 2  # of HMMA.16816
NO_REGISTER = 0xFF  # RZ, which is always zero
PAIR = Struct("<QQ")
WIDENING = re.compile(rb"\x3e.{7}\xff[\x04\x06].[\x02\x03]", re.DOTALL)


def is_widening(low: int, high: int) -> bool:
    """F2FP.F16.E4M3.UNPACK_B or its E5M2 twin."""
    return low & 0x1FF == F2FP and high >> 8 & 0xF in (4, 6) and bool(high >> 25 & 1)


def widens_before_product(code: memoryview) -> bool:
    if not WIDENING.search(code):
        return False
    widened: set[int] = set()
    for low, high in PAIR.iter_unpack(code[: len(code) - len(code) % PAIR.size]):
        opcode, written = low & 0x1FF, low >> 16 & 0xFF
        if opcode == HMMA:
            a, b = low >> 24 & 0xFF, low >> 32 & 0xFF
            operands = {a + i for i in range(A_REGISTERS)} | {b + i for i in range(B_REGISTERS)}
            if operands <= widened:
                return True
        if is_widening(low, high) and written != NO_REGISTER:
            widened.add(written)
        else:
            widened.discard(written)
    return False
