"""A cubin: an ELF file of machine 190 with one section of code for each kernel.

| fact | where |
|---|---|
| SM | e_flags: low byte (ABI 7), second byte (ABI 8, from CUDA 12.9) |
| suffix "a" | e_flags bit 11 (ABI 7), bit 3 (ABI 8), or attribute 9 of `.nv.compat` |
| suffix "f" | only the command line in `.note.nv.tkinfo`, or the fatbin entry around it |
| kernels | `.symtab`: functions with bit 4 of st_other |
| compiler | `.note.nv.tkinfo`: text "..., V13.0.88" |
"""

import re
from array import array
from dataclasses import dataclass
from struct import Struct

from sparkwell.doctor.binary import elf, sass
from sparkwell.doctor.binary.code import Code
from sparkwell.doctor.binary.memo import Memo
from sparkwell.doctor.binary.view import Damage, View, text
from sparkwell.doctor.images import Kernel, Level

SYMBOL = Struct("<IBBHQQ")
NUMBER = Struct("<I")
FUNCTION, ENTRY = 2, 0x10  # type in st_info, mark in st_other
ATTRIBUTE = Struct("<BBH")
WITH_BODY, ONE_BYTE = 4, 2  # formats of an attribute whose value follows, or is one byte
ACCELERATED = 9  # attribute of .nv.compat: the code is for this SM alone
TOOL, COMPAT = b".note.nv.tkinfo", b".nv.compat"
COMPAT_BYTES = 4096  # it holds a dozen attributes
OUTSIDE_LIMIT = 1 << 16  # names an image uses and does not define
ABI8_OSABI, ABI8 = 0x41, 8
TMA_SYSCALL = "__cuda_syscall_cp_async_bulk"
PRINTS = {"vprintf", "__assertfail"}
VERSION = re.compile(rb", V(\d{1,3}\.\d{1,3}\.\d{1,5})")
TARGET = re.compile(rb"-arch[ =]{1,9}sm_\d{1,3}([af])")


@dataclass(frozen=True, slots=True)
class Cubin:
    sm: int
    suffix: str
    relocatable: bool
    toolkit: str | None
    kernels: tuple[Kernel, ...] | None  # None below Level.KERNELS, and where the table is damaged
    problems: tuple[str, ...]


def is_cubin(view: View) -> bool:
    return view.starts(elf.MAGIC64) and view.starts(elf.CUDA.to_bytes(2, "little"), 18)


def read_cubin(view: View, level: Level, memo: Memo) -> Cubin:
    """Facts of one cubin.  Raises Damage where its header or section table does not parse."""
    whole = elf.read_elf(view)
    sm, suffix = target(whole)
    problems: list[str] = []
    toolkit, kernels = None, None
    try:
        toolkit, said = tool(whole)
        suffix = suffix or accelerated(whole) or said
        if level >= Level.KERNELS:
            kernels = read_kernels(whole, sm, level, memo)
    except Damage as damage:
        problems.append(str(damage))
    relocatable = whole.header.type == elf.RELOCATABLE
    return Cubin(sm, suffix, relocatable, toolkit, kernels, tuple(problems))


def target(whole: elf.Elf) -> tuple[int, str]:
    """(SM, "a" or "") of e_flags."""
    flags, ident = whole.header.flags, whole.header.ident
    if ident[7] == ABI8_OSABI or ident[8] >= ABI8:
        return flags >> 8 & 0xFF, "a" if flags & 0x8 else ""
    return flags & 0xFF, "a" if flags & 0x800 else ""


def tool(whole: elf.Elf) -> tuple[str | None, str]:
    """(version of the compiler, suffix on its command line)."""
    for section in whole.sections:
        if section.type == elf.NOTES and whole.is_named(section, TOOL):
            body = whole.body(section, ".note.nv.tkinfo size").data
            version, given = VERSION.search(body), TARGET.search(body)
            return version and version[1].decode(), given[1].decode() if given else ""
    return None, ""


def accelerated(whole: elf.Elf) -> str:
    """ "a" if `.nv.compat` says so."""
    for section in whole.sections:
        if whole.is_named(section, COMPAT):
            body, at = whole.body(section, ".nv.compat size"), 0
            while at + ATTRIBUTE.size <= min(len(body), COMPAT_BYTES):
                form, number, value = body.unpack(ATTRIBUTE, at, ".nv.compat attribute")
                if number == ACCELERATED and form != WITH_BODY:
                    return "a" if value & (0xFF if form == ONE_BYTE else 0xFFFF) else ""
                at += ATTRIBUTE.size + (value if form == WITH_BODY else 0)
            return ""
    return ""


@dataclass(frozen=True, slots=True)
class Symbol:
    name: bytes
    offset: int
    section: int
    size: int


@dataclass(slots=True)
class Functions:
    """What the symbol table says."""

    kernels: dict[bytes, Symbol]
    outside: dict[int, str]  # names that are not defined here, by symbol number
    sections_of: "array[int]"  # by symbol number


def functions(whole: elf.Elf, memo: Memo) -> Functions:
    found = Functions({}, {}, array("I"))
    tables = [section for section in whole.sections if section.type == elf.SYMBOLS]
    for table in tables[:1]:
        body = whole.body(table, "symbol table size")
        if table.link >= len(whole.sections):
            wanted = f"below {len(whole.sections)}"
            raise Damage(body.base, "symbol table's string section", table.link, wanted)
        strings = whole.body(whole.sections[table.link], "string table size").data
        large = [section for section in whole.sections if section.type == elf.SYMBOL_SECTIONS]
        numbers = whole.body(large[0], "symbol section table size") if large else None
        read_symbols(body, strings, numbers, found, memo)
    return found


def read_symbols(
    table: View, strings: memoryview, numbers: View | None, found: Functions, memo: Memo
) -> None:
    """Fill `found`.  `numbers` holds the section of each symbol where 16 bits do not."""
    left = 2 * len(strings)  # names that overlap could otherwise add up to any length
    whole = table.data[: len(table) - len(table) % SYMBOL.size]
    for number, raw in enumerate(SYMBOL.iter_unpack(whole)):
        at, info, other, section, _, size = raw
        if section == elf.IN_TABLE and numbers:
            (section,) = numbers.unpack(NUMBER, number * NUMBER.size, "symbol's section")
        found.sections_of.append(section)
        is_kernel = info & 15 == FUNCTION and other & ENTRY
        if not at or (section and not is_kernel):
            continue
        offset = table.base + number * SYMBOL.size
        name = elf.name_at(strings, at)
        left -= len(name)
        if left < 0:
            wanted = f"at most {len(strings)} bytes, the table's size"
            raise Damage(offset, "symbol names", "longer together", wanted)
        if section:
            memo.count(offset)
            found.kernels[name] = Symbol(name, offset, section, size)
        elif len(found.outside) < OUTSIDE_LIMIT:
            found.outside[number] = text(name)
        else:
            raise Damage(offset, "undefined symbols", "too many", f"at most {OUTSIDE_LIMIT}")


def read_kernels(whole: elf.Elf, sm: int, level: Level, memo: Memo) -> tuple[Kernel, ...]:
    found = functions(whole, memo)
    code = Code(whole, sm, found.sections_of, found.outside)
    deep = sm >= sass.FIRST_SM and level >= Level.INSTRUCTIONS
    kernels = []
    for symbol in found.kernels.values():
        sections, outside = code.reached(symbol.section, memo, symbol.offset)
        short = sm >= sass.FIRST_SM and symbol.size <= sass.STUB_BYTES and outside <= PRINTS
        facts = code.facts_of(sections) if deep or short else None
        notes = syscalls(outside)
        if deep and facts and facts.widens and "qmma" not in facts.families:
            notes.add("emulated-fp8")
        kernels.append(
            Kernel(
                name=memo.name(symbol.name, symbol.offset),
                code_bytes=symbol.size,
                stub=bool(short and facts and facts.idle),
                families=memo.family(facts.families) if deep and facts else None,
                notes=memo.family(frozenset(notes)),
            )
        )
    return tuple(sorted(kernels, key=lambda kernel: kernel.name))


def syscalls(outside: set[str]) -> set[str]:
    """Notes on TMA that goes through calls into the driver."""
    calls = [name for name in outside if name.startswith(TMA_SYSCALL)]
    return {"multicast-syscall" if "multicast" in name else "tma-syscall" for name in calls}
