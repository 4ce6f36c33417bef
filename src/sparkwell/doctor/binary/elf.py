"""ELF64, little endian: header, sections, names.  For host libraries and for cubins alike.

Layout: the System V ABI's ELF-64 tables.  A cubin is an ELF file of machine 190.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from sparkwell.doctor.binary.view import Damage, View

MAGIC = b"\x7fELF"
MAGIC64 = b"\x7fELF\x02\x01\x01"  # 64-bit, little endian, version 1
HEADER = Struct("<16sHHIQQQIHHHHHH")
SECTION = Struct("<IIQQQQIIQQ")
CUDA, X86_64, AARCH64 = 190, 62, 183
RELOCATABLE = 1  # e_type of an object that a linker has not seen
SYMBOLS, NOTES, NOBITS, SYMBOL_SECTIONS = 2, 7, 8, 18
IN_TABLE = 0xFFFF  # a section's number that stands elsewhere, having more than 16 bits
NAME_LIMIT = 1 << 16
SECTION_LIMIT = 1 << 18


class Header(NamedTuple):
    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    program_at: int
    sections_at: int
    flags: int
    size: int
    program_size: int
    programs: int
    section_size: int
    sections: int
    names: int


class Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


@dataclass(frozen=True, slots=True)
class Elf:
    view: View
    header: Header
    sections: list[Section]
    names: memoryview

    def is_named(self, section: Section, name: bytes) -> bool:
        return self.names[section.name : section.name + len(name) + 1] == name + b"\0"

    def body(self, section: Section, field: str) -> View:
        """The section's bytes in the file."""
        return self.view.part(section.offset, section.size, field)


def read_header(view: View) -> Header:
    if not view.starts(MAGIC64):
        came = bytes(view.data[:7]).hex(" ") or "empty"
        raise Damage(view.base, "ELF identification", came, MAGIC64.hex(" "))
    header = Header(*view.unpack(HEADER, 0, "ELF header"))
    if header.sections_at and header.section_size != SECTION.size:
        raise Damage(view.base + 58, "e_shentsize", header.section_size, str(SECTION.size))
    return header


def counted(view: View, header: Header) -> tuple[int, int]:
    """How many sections there are and which one holds their names, large tables included."""
    count, names = header.sections, header.names
    if header.sections_at and (not count or names == IN_TABLE):
        first = Section(*view.unpack(SECTION, header.sections_at, "section 0"))
        count, names = count or first.size, first.link if names == IN_TABLE else names
    if count * SECTION.size > len(view):
        wanted = f"at most {len(view) // SECTION.size}, what the file can hold"
        raise Damage(view.base + 60, "e_shnum", count, wanted)
    if count > SECTION_LIMIT:
        raise Damage(view.base + 60, "e_shnum", count, f"at most {SECTION_LIMIT}")
    return count, names


def read_elf(view: View) -> Elf:
    """The sections of one ELF file.  An unusable name table leaves them nameless."""
    header = read_header(view)
    if not header.sections_at:
        return Elf(view, header, [], memoryview(b""))
    count, names = counted(view, header)
    table = view.part(header.sections_at, count * SECTION.size, "section table")
    sections = [Section(*raw) for raw in SECTION.iter_unpack(table.data)]
    if names >= count:
        return Elf(view, header, sections, memoryview(b""))
    strings = view.part(sections[names].offset, sections[names].size, "section name table")
    return Elf(view, header, sections, strings.data)


def name_at(strings: memoryview, at: int) -> bytes:
    """The zero-terminated name at `at`, at most NAME_LIMIT long; empty outside the table."""
    short = bytes(strings[at : at + 256])
    if b"\0" in short:
        return short[: short.index(b"\0")]
    return bytes(strings[at : at + NAME_LIMIT]).split(b"\0", 1)[0]


def extent(view: View, spend: Callable[[int], None]) -> int:
    """Length of the ELF file that starts the view; Damage if it has no end there.

    The length is not recorded: the file ends with the last of its tables and sections.  `spend` is
    told how many sections that takes a look at, before it is taken.
    """
    header = read_header(view)
    count, _ = counted(view, header)
    end = HEADER.size
    if header.programs and header.program_at:
        end = max(end, header.program_at + header.program_size * header.programs)
    if header.sections_at:
        table = view.part(header.sections_at, count * SECTION.size, "section table")
        end = max(end, header.sections_at + count * SECTION.size)
        spend(count)
        for raw in SECTION.iter_unpack(table.data):
            if raw[1] != NOBITS:
                end = max(end, raw[4] + raw[5])
    view.part(0, end, "ELF file")
    return end
