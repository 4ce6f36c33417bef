"""The fatbin: a header, then one entry an image, each with its own header.

| fatbin header: 16 bytes | u32 magic, u16 version 1, u16 header size, u64 bytes of all entries |
| entry header, 64 bytes or more | see ENTRY below; options and the identifier lie in its tail |

All little endian.  Kind, target and sizes are in the entry's header, so nothing needs unpacking to
say for which GPUs there is code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from sparkwell.doctor.binary.view import Damage, View
from sparkwell.doctor.images import Kind

MAGIC = b"\x50\xed\x55\xba"
HEADER = Struct("<IHHQ")
ENTRY = Struct("<HHIQIIHHIIIQQQ")
# kind, version, header size, payload size, packed size, options at, ISA minor, ISA major, SM,
# identifier at, identifier size, flags, reserved, unpacked size
KINDS: dict[int, Kind] = {1: "ptx", 2: "sass", 8: "lto", 128: "tile"}
LZ4, ZSTD = 1 << 13, 1 << 15
ARCHITECTURE, FAMILY = 1 << 20, 1 << 21  # the suffixes "a" and "f"
SM_LIMIT = 999
NAME_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its header, and where its payload lies (counted as the View counts)."""

    at: int
    kind: Kind
    sm: int
    suffix: str
    isa: tuple[int, int]
    payload_at: int
    stored: int  # bytes of payload to read
    packing: str  # "", "lz4", "zstd"
    unpacked: int
    identifier: bytes


@dataclass(frozen=True, slots=True)
class Fatbin:
    at: int
    end: int  # where a search for the next one goes on


def read_header(view: View, at: int) -> Fatbin | None:
    """The fatbin at `at`; None if the bytes only look like its magic."""
    if at + HEADER.size > len(view.data):
        return None
    _, version, header, size = view.unpack(HEADER, at, "fatbin header")
    if version != 1 or header != HEADER.size or not size:
        return None
    return Fatbin(at, at + header + size)


def read_entries(view: View, fatbin: Fatbin) -> Iterator[Entry | Damage]:
    """Its entries in order.  Damage of one entry's facts is given and passed over; Damage of the
    sizes that lead to the next entry is raised."""
    at, end = fatbin.at + HEADER.size, fatbin.end
    if end > len(view):
        yield Damage(
            view.base + fatbin.at + 8,
            "fatbin size",
            fatbin.end - at,
            f"at most the {len(view) - at} bytes that follow",
        )
        end = len(view)
    while at < end:
        raw = view.unpack(ENTRY, at, "fatbin entry header")
        header, payload = raw[2], raw[3]
        if header < ENTRY.size:
            raise Damage(view.base + at + 4, "entry header size", header, "64 or more")
        if at + header + payload > end:
            wanted = f"at most the {max(0, end - at - header)} left in the fatbin"
            raise Damage(view.base + at + 8, "entry payload size", payload, wanted)
        yield read_entry(view, at, raw)
        at += header + payload


def read_entry(view: View, at: int, raw: tuple[int, ...]) -> Entry | Damage:
    number, _, header, payload, packed, _, minor, major, sm, name_at, name_size = raw[:11]
    flags, _, unpacked = raw[11:]
    kind = KINDS.get(number)
    if kind is None:
        known = ", ".join(f"{n} {name}" for n, name in KINDS.items())
        return Damage(view.base + at, "entry kind", number, f"one of {known}")
    if not 0 < sm <= SM_LIMIT:
        return Damage(view.base + at + 0x1C, "entry SM number", sm, f"1 to {SM_LIMIT}")
    packing = "zstd" if flags & ZSTD else "lz4" if flags & LZ4 else ""
    stored = packed if packing and packed else payload
    if stored > payload:
        return Damage(view.base + at + 0x10, "entry packed size", packed, f"at most {payload}")
    identifier = b""
    if name_size and ENTRY.size <= name_at and name_at + name_size <= header:
        first = at + name_at
        identifier = bytes(view.data[first : first + min(name_size, NAME_LIMIT)]).rstrip(b"\0")
    return Entry(
        at=at,
        kind=kind,
        sm=sm,
        suffix="a" if flags & ARCHITECTURE else "f" if flags & FAMILY else "",
        isa=(major, minor),
        payload_at=at + header,
        stored=stored,
        packing=packing,
        unpacked=unpacked if packing else stored,
        identifier=identifier,
    )
