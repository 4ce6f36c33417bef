"""PE32+, the Windows executable: the CPU it is for and its sections."""

from struct import Struct
from typing import NamedTuple

from sparkwell.doctor.binary.view import Damage, View

MAGIC = b"MZ"
POINTER = Struct("<I")  # at 0x3c: where the PE header is
COFF = Struct("<4sHHIIIHH")
SECTION = Struct("<8sIIIIIIHHI")
AMD64, ARM64 = 0x8664, 0xAA64


class PeSection(NamedTuple):
    name: bytes
    offset: int
    size: int


def read_pe(view: View) -> tuple[int, list[PeSection]]:
    """(machine, sections)."""
    (at,) = view.unpack(POINTER, 0x3C, "e_lfanew")
    signature, machine, count, _, _, _, optional, _ = view.unpack(COFF, at, "PE header")
    if signature != b"PE\0\0":
        raise Damage(view.base + at, "PE signature", signature.hex(" "), b"PE\0\0".hex(" "))
    table = view.part(at + COFF.size + optional, count * SECTION.size, "PE section table")
    return machine, [
        PeSection(raw[0].rstrip(b"\0"), raw[4], raw[3]) for raw in SECTION.iter_unpack(table.data)
    ]
