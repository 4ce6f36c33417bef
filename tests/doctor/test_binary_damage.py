"""Damaged and hostile files: an error that names the place and the field, and bounded work."""

import re
import struct
import time
import tracemalloc

import pytest
import zstandard

import fatbins
from fatbins import IDLE, PTX, WORKS, cubin, entry, fatbin
from sparkwell.doctor.binary import cubin as cubin_module
from sparkwell.doctor.binary import elf, ptx, search, unpack
from sparkwell.doctor.binary.memo import Memo
from sparkwell.doctor.binary.unpack import Budget
from sparkwell.doctor.binary.view import View
from sparkwell.doctor.images import File, Level
from sparkwell.doctor.scan import scan_bytes
from sparkwell.errors import BadInput, Unreadable

GOOD = cubin(90, {"k": WORKS})


def read(data: bytes, level: Level = Level.INSTRUCTIONS) -> File:
    return scan_bytes(data, level, "file")


def put(data: bytes, form: str, at: int, value: int) -> bytes:
    """`data` with one field changed."""
    out = bytearray(data)
    struct.pack_into(form, out, at, value)
    return bytes(out)


def table_at(data: bytes, name: bytes) -> int:
    """Where the section header of `name` is."""
    shoff, count, names = (struct.unpack_from(f, data, a)[0]
                           for f, a in (("<Q", 40), ("<H", 60), ("<H", 62)))  # fmt: skip
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + 64 * i) for i in range(count)]
    strings = data[rows[names][4] : rows[names][4] + rows[names][5]]
    found = [i for i, row in enumerate(rows) if strings[row[0] :].startswith(name + b"\0")]
    return shoff + 64 * found[0]


def entry_damage(one: bytes, form: str, at: int, value: int) -> tuple[str, ...]:
    """Problems of a fatbin of two images, the first with one header field changed."""
    file = read(fatbin(put(one, form, at, value), entry("ptx", 80, PTX.encode())))
    return file.problems + tuple(p for image in file.images for p in image.problems)


# Loose files that cannot be read at all.

LOOSE = [
    ("<H", 58, 40, "e_shentsize", "40", "64", 58),
    ("<H", 60, 60000, "e_shnum", "60000", f"at most {len(GOOD) // 64}, what the file can hold", 60),
    ("<H", 60, 15, "e_shnum", "15", f"at most {len(GOOD) // 64}, what the file can hold", 60),
    (
        "<Q",
        40,
        1 << 40,
        "section table",
        "512 bytes long",
        "at most the 0 bytes that follow",
        1 << 40,
    ),
]


@pytest.mark.parametrize("form, at, value, field, came, wanted, offset", LOOSE)
def test_a_loose_cubin_that_does_not_parse(
    form: str, at: int, value: int, field: str, came: str, wanted: str, offset: int
) -> None:
    assert struct.unpack_from("<H", GOOD, 60)[0] == 8  # sections
    with pytest.raises(Unreadable) as caught:
        read(put(GOOD, form, at, value))
    said = caught.value
    assert isinstance(said, BadInput)
    assert (said.file, said.offset, said.field) == ("file", offset, field)
    assert (said.came, said.wanted) == (came, wanted)
    assert str(said) == f"file: at offset {offset:#x} {field} is {came}, want {wanted}"


def test_a_cubin_cut_off_anywhere_is_unreadable_or_says_so() -> None:
    for size in range(20, len(GOOD)):
        with pytest.raises(Unreadable):
            read(GOOD[:size])


def test_the_section_count_of_a_large_table_may_be_damaged() -> None:
    large = cubin(90, {"k": WORKS}, extended=True)
    at = struct.unpack_from("<Q", large, 40)[0]
    with pytest.raises(Unreadable, match="e_shnum is 1099511627776, want at most"):
        read(put(large, "<Q", at + 32, 1 << 40))
    with pytest.raises(Unreadable, match="section 0 is cut off after 0 bytes, want 64 bytes"):
        read(put(large, "<Q", 40, len(large)))


def test_ptx_that_lacks_its_directives() -> None:
    with pytest.raises(Unreadable, match=r"PTX \.target is missing, want one in the first 65536"):
        read(b".version 8.0\n.address_size 64\n")
    with pytest.raises(Unreadable, match=r"PTX \.version is missing"):
        read(b".version x\n.target sm_90\n")


# Cubins whose tables hold, with one bad part: the image stays, with a problem.

PARTS = [
    (b".note.nv.tkinfo", 32, "<Q", 1 << 40, ".note.nv.tkinfo size is 1099511627776 bytes long"),
    (b".nv.compat", 24, "<Q", 1 << 40, ".nv.compat size is 36 bytes long, want at most the 0"),
    (b".symtab", 32, "<Q", 1 << 40, "symbol table size is 1099511627776 bytes long"),
    (b".symtab", 40, "<I", 99, "symbol table's string section is 99, want below 8"),
    (b".strtab", 32, "<Q", 1 << 40, "string table size is 1099511627776 bytes long"),
    (b".text.k", 32, "<Q", 1 << 40, "code section size is 1099511627776 bytes long"),
    (b".nv.callgraph", 32, "<Q", 1 << 40, "call graph size is 1099511627776 bytes long"),
]


@pytest.mark.parametrize("section, field, form, value, said", PARTS, ids=lambda v: str(v)[:20])
def test_a_cubin_with_one_bad_part(
    section: bytes, field: int, form: str, value: int, said: str
) -> None:
    image = read(put(GOOD, form, table_at(GOOD, section) + field, value)).images[0]
    assert image.target == "90" and image.kernels is None
    assert len(image.problems) == 1 and said in image.problems[0]
    assert re.match(r"at 0x[0-9a-f]+: ", image.problems[0])


def test_a_cubin_with_a_useless_name_table_has_its_kernels() -> None:
    image = read(put(GOOD, "<H", 62, 999)).images[0]
    assert image.problems == () and image.kernels is not None and image.toolkit is None


def test_sections_that_are_the_same_bytes_are_not_read_again_and_again() -> None:
    many = {f"k{i}": b"" for i in range(500)}
    data = bytearray(cubin(90, many))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    for i in range(500):  # each kernel's code is said to be the whole file
        struct.pack_into("<QQ", data, shoff + 64 * (i + 1) + 24, 0, len(data))
    image = read(bytes(data)).images[0]
    assert image.kernels is None
    assert image.problems == (
        f"at 0x0: code sections is longer, want at most {len(data)} bytes together, "
        "as the image has",
    )


def test_symbols_that_share_one_long_name() -> None:
    names = {"x" * 60000: WORKS, **{f"k{i}": WORKS for i in range(50)}}
    data = bytearray(cubin(90, names))
    at = struct.unpack_from("<Q", data, table_at(bytes(data), b".symtab") + 24)[0]
    for i in range(2, 52):
        struct.pack_into("<I", data, at + 24 * i, i)  # a different end of the long name
    image = read(bytes(data)).images[0]
    assert image.kernels is None
    assert "symbol names is longer together, want at most" in image.problems[0]


def test_a_name_without_end_is_cut() -> None:
    data = cubin(90, {"y" * 80000: WORKS})
    (kernel,) = read(data).images[0].kernels or ()
    assert len(kernel.name) == elf.NAME_LIMIT


def test_limits_of_kernels_and_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    several = cubin(90, {f"kernel{i}": IDLE for i in range(9)})

    def problem(**limits: int) -> str:
        monkeypatch.setattr(search, "Memo", lambda: Memo(**limits))
        (image,) = read(fatbin(entry("sass", 90, several))).images
        assert image.kernels is None
        return image.problems[0]

    assert "kernels is too many, want at most 400,000 a file" in problem(kernels_left=8)
    assert "kernel names is too long together, want at most 64 MiB" in problem(name_bytes_left=62)
    monkeypatch.setattr(search, "Memo", lambda: Memo(kernels_left=9, name_bytes_left=63))
    assert read(fatbin(entry("sass", 90, several))).images[0].problems == ()


def test_limits_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_module, "OUTSIDE_LIMIT", 2)
    for count, problems in ((2, 0), (3, 1)):
        data = cubin(90, {"k": WORKS}, outside=[f"o{i}" for i in range(count)])
        found = read(data).images[0].problems
        assert len(found) == problems
        assert all("undefined symbols is too many, want at most 2" in text for text in found)
    monkeypatch.setattr(elf, "SECTION_LIMIT", 8)
    assert read(GOOD).problems == ()
    monkeypatch.setattr(elf, "SECTION_LIMIT", 7)
    with pytest.raises(Unreadable, match="offset 0x3c e_shnum is 8, want at most 7"):
        read(GOOD)


def test_limits_of_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptx, "ROUTINE_LIMIT", 3)
    head = b".version 8.0\n.target sm_90\n"
    assert len(read(head + b".entry a();.entry b();.func c();").images[0].kernels or ()) == 2
    with pytest.raises(Unreadable, match="PTX routines is too many, want at most 3 a text"):
        read(head + b".entry a();.entry b();.entry c();.func d();")
    monkeypatch.setattr(ptx, "IMAGE_LIMIT", 40)
    assert read(head + b" " * (40 - len(head))).images[0].kernels == ()
    with pytest.raises(Unreadable, match="PTX text is 41 bytes long, want at most 40"):
        read(head + b" " * (41 - len(head)))


def test_symbols_whose_section_stands_in_a_table_of_its_own() -> None:
    body = fatbins.code(fatbins.HMMA, fatbins.EXIT)
    data = bytearray(cubin(90, {"k": body}, calls=None, toolkit="1.2.3"))
    symbols = struct.unpack_from("<Q", data, table_at(bytes(data), b".symtab") + 24)[0]
    note = table_at(bytes(data), b".note.nv.tkinfo")  # becomes the table
    place = struct.unpack_from("<Q", data, note + 24)[0]
    struct.pack_into("<H", data, symbols + 24 + 6, 0xFFFF)
    struct.pack_into("<I", data, note + 4, elf.SYMBOL_SECTIONS)
    struct.pack_into("<II", data, place, 0, 1)
    (kernel,) = read(bytes(data)).images[0].kernels or ()
    assert kernel.families == {"hmma"}
    struct.pack_into("<Q", data, note + 32, 4)
    assert "symbol's section is cut off after 0 bytes" in read(bytes(data)).images[0].problems[0]


def test_a_host_library_with_endless_section_names_takes_little_memory() -> None:
    count = 20_000
    good = fatbins.library({f".{i}": b"" for i in range(9)})
    head, names = bytearray(good[:64]), b"n" * 500_000
    struct.pack_into("<Q", head, 40, 64 + len(names))
    struct.pack_into("<HH", head, 60, count, 1)
    rows = [
        struct.pack("<IIQQQQIIQQ", i, 1, 2, 0, 64, len(names), 0, 0, 1, 0) for i in range(count)
    ]
    tracemalloc.start()
    try:
        file = read(bytes(head) + names + b"".join(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.problems == () and peak < 40e6


def test_names_met_before_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "Memo", lambda: Memo(name_bytes_left=1))
    file = read(fatbin(entry("sass", 90, GOOD), entry("sass", 90, GOOD)))
    first, second = ((image.kernels or ())[0].name for image in file.images)
    assert first is second


DENSE = "call graph is too dense, want at most 4,000,000 calls followed from all kernels"


def test_a_call_graph_that_is_too_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {f"f{i}": IDLE for i in range(5)}
    calls = [("a", "f0"), ("b", "f0"), *((f"f{i}", f"f{i + 1}") for i in range(4))]
    one = fatbin(entry("sass", 90, cubin(90, {"a": IDLE, "b": IDLE}, functions=chain, calls=calls)))
    for limit, problems in ((10, 0), (9, 1)):  # two kernels with five calls each to follow
        monkeypatch.setattr(search, "Memo", lambda limit=limit: Memo(calls_left=limit))
        found = read(one).images[0].problems
        assert len(found) == problems and all(DENSE in text for text in found)


def test_symbols_and_sections_that_are_not_there() -> None:
    data = bytearray(cubin(90, {"k": WORKS}, calls=[("k", "k")]))
    graph = struct.unpack_from("<Q", data, table_at(bytes(data), b".nv.callgraph") + 24)[0]
    struct.pack_into("<IIII", data, graph, 1, 0xFFFFFFFE, 0xFFFFFFFE, 1)
    symbols = struct.unpack_from("<Q", data, table_at(bytes(data), b".symtab") + 24)[0]
    struct.pack_into("<H", data, symbols + 24 + 6, 0xFF00)  # the kernel's section
    (kernel,) = read(bytes(data)).images[0].kernels or ()
    assert (kernel.name, kernel.families) == ("k", frozenset())


def test_code_without_bytes_in_the_file() -> None:
    data = put(GOOD, "<I", table_at(GOOD, b".text.k") + 4, elf.NOBITS)
    (kernel,) = read(data).images[0].kernels or ()
    assert kernel.families == frozenset() and not kernel.stub


def test_attributes_may_be_longer_than_their_section() -> None:
    at = struct.unpack_from("<Q", GOOD, table_at(GOOD, b".nv.compat") + 24)[0]
    assert read(put(GOOD, "<I", at, 0xFFFF0904)).images[0].problems == ()


# Fatbins.

ONE = entry("sass", 90, GOOD, packing="zstd", identifier="a.cu")
FIELDS = [
    ("<H", 0, 16, "at 0x10: entry kind is 16, want one of 1 ptx, 2 sass, 8 lto, 128 tile"),
    ("<I", 4, 63, "at 0x14: entry header size is 63, want 64 or more"),
    ("<Q", 8, 1 << 40, "at 0x18: entry payload size is 1099511627776, want at most the"),
    ("<I", 16, 1 << 30, "at 0x20: entry packed size is 1073741824, want at most"),
    ("<I", 28, 0, "at 0x2c: entry SM number is 0, want 1 to 999"),
    ("<I", 28, 1000, "at 0x2c: entry SM number is 1000, want 1 to 999"),
    ("<I", 28, 89, "at 0x2c: entry SM number is 89, want 90 as inside"),
]


@pytest.mark.parametrize("form, at, value, said", FIELDS)
def test_damaged_entry_headers(form: str, at: int, value: int, said: str) -> None:
    (problem,) = entry_damage(ONE, form, at, value)
    assert problem.startswith(said)


def test_damage_of_one_image_leaves_the_others() -> None:
    file = read(fatbin(put(ONE, "<H", 0, 16), ONE))
    assert [image.target for image in file.images] == ["90"] and len(file.problems) == 1
    file = read(fatbin(ONE, put(ONE, "<I", 4, 63)) + bytes(5) + fatbin(ONE))
    assert [image.container for image in file.images] == [0, 1] and len(file.problems) == 1


def test_an_identifier_outside_its_header_is_left_out() -> None:
    for at, value in ((32, 60), (32, 1 << 20), (36, 1 << 20)):
        file = read(fatbin(put(ONE, "<I", at, value)))
        assert file.images[0].identifier is None and file.problems == ()


def test_a_long_identifier_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fatbin(entry("lto", 90, b"x", identifier="n" * 9000))
    assert read(one).images[0].identifier == "n" * 4096
    monkeypatch.setattr(search, "Memo", lambda: Memo(name_bytes_left=4095))
    assert read(one).images[0].identifier is None


def test_a_fatbin_that_is_cut_off() -> None:
    whole = fatbin(ONE, ONE)
    for size in range(16, len(whole)):
        file = read(whole[:size])
        assert file.problems[0] == (
            f"at 0x8: fatbin size is {len(whole) - 16}, "
            f"want at most the {size - 16} bytes that follow"
        )
        assert len(file.images) == (size >= 16 + len(ONE))
    file = read(whole[: 16 + len(ONE) + 10])
    assert file.problems[1] == (
        f"at {16 + len(ONE):#x}: fatbin entry header is cut off after 10 bytes, want 64 bytes"
    )


def test_bytes_that_only_look_like_a_fatbin() -> None:
    magic = fatbin()[:4]
    odd = struct.pack("<4sHHQ", magic, 1, 24, len(ONE)) + bytes(8) + ONE
    none = struct.pack("<4sHHQ", magic, 1, 16, 0) + ONE
    for data in (
        odd,
        none,
        magic,
        magic + bytes(9),
        magic + bytes(99),
        fatbin(),
        fatbin(ONE)[4:] + magic,
    ):
        assert read(b"----" + data).images == read(b"----" + data).problems == ()
    assert len(read(magic + fatbin(ONE)).images) == 1


def test_payload_that_is_no_cubin_and_no_ptx() -> None:
    for kind, said in (
        ("sass", "ELF identification is 6e 6f 74 68 69 6e 67, want 7f 45 4c 46 02 01 01"),
        ("ptx", "PTX .version is missing, want one in the first 65536 bytes"),
    ):
        for packing, where in (("", "at 0x50: "), ("lz4", "in the unpacked image, at 0x0: ")):
            (image,) = read(fatbin(entry(kind, 90, b"nothing", packing=packing))).images
            assert image.problems == (where + said,) and image.kernels is None
    (image,) = read(fatbin(entry("sass", 90, b""))).images
    assert image.problems == ("at 0x50: ELF identification is empty, want 7f 45 4c 46 02 01 01",)


# Packed images.


def unpacked(packing: str, stored: bytes, size: int) -> str:
    """The problem of an image whose stored bytes are these; "" for none."""
    padded = stored + bytes(-len(stored) % 8)
    one = bytearray(entry("ptx", 80, b"", packing=packing, unpacked=size)[:64])
    struct.pack_into("<QI", one, 8, len(padded), len(stored))
    (image,) = read(fatbin(bytes(one) + padded)).images
    return " ".join(image.problems)


TEXT = PTX.encode()
FRAME = zstandard.ZstdCompressor().compress(TEXT)
BLOCK = fatbins.lz4(TEXT)
BAD_PACKING = [
    ("zstd", FRAME, len(TEXT), ""),
    ("zstd", FRAME, len(TEXT) - 1, f"data is longer unpacked, want {len(TEXT) - 1} bytes"),
    ("zstd", FRAME, len(TEXT) + 1, f"Zstandard data is {len(TEXT)} bytes unpacked, want"),
    ("zstd", b"\0" * 20, 9, "at 0x50: Zstandard data is unreadable ("),
    ("zstd", FRAME[:-9], len(TEXT), "Zstandard data is"),
    ("lz4", BLOCK, len(TEXT), ""),
    ("lz4", BLOCK, len(TEXT) - 1, "LZ4 data is"),
    ("lz4", BLOCK, len(TEXT) + 1, f"LZ4 data is {len(TEXT)} bytes unpacked, want {len(TEXT) + 1}"),
    ("lz4", BLOCK[:-1], len(TEXT), "LZ4 literals is"),
    ("lz4", b"\x10a\0\0", 99, "at 0x54: LZ4 offset is 0, want 1 to 1"),
    ("lz4", b"\x10a\x02\0", 99, "at 0x54: LZ4 offset is 2, want 1 to 1"),
    ("lz4", b"\x10a\x01", 99, "at 0x53: LZ4 data is cut off, want a whole block"),
    ("lz4", b"\xf0\xff", 99, "LZ4 data is cut off"),
    ("lz4", b"\x1fa\x01\0", 99, "LZ4 data is cut off"),
    ("lz4", b"\x1fa\x01\0\xff\xff\x00\0", 99, "LZ4 data is more than 1 bytes unpacked, want 99"),
    ("lz4", b"\0" * 27, 10, "at 0x50: LZ4 data is 27 bytes long, want at most 26"),
    ("lz4", b"", 1, "LZ4 data is 0 bytes unpacked, want 1"),
]  # fmt: skip


@pytest.mark.parametrize("packing, stored, size, said", BAD_PACKING, ids=range(len(BAD_PACKING)))
def test_packing(packing: str, stored: bytes, size: int, said: str) -> None:
    problem = unpacked(packing, stored, size)
    assert said in problem and bool(problem) == bool(said)


def test_a_claim_costs_nothing_beyond_the_budget() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    started = time.monotonic()
    said = unpacked("zstd", bomb, 1 << 60)
    assert said.endswith(f"unpacked size is {1 << 60}, want at most {unpack.IMAGE_LIMIT}")
    assert "Zstandard data is longer unpacked, want 1000 bytes" in unpacked("zstd", bomb, 1000)
    assert time.monotonic() - started < 1


def test_all_images_of_a_file_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "FLOOR", 3 * len(TEXT) - 1)
    monkeypatch.setattr(unpack, "RATIO", 0)
    one = entry("ptx", 80, TEXT, packing="zstd")
    first, second, third = read(fatbin(one, one, one)).images
    assert first.problems == second.problems == ()
    assert third.problems[0].endswith(
        f"unpacked size is {len(TEXT)}, want at most {len(TEXT) - 1}, "
        "what is left of 0 times the file"
    )
    assert Budget.of(1 << 30).left == unpack.FLOOR
    monkeypatch.setattr(unpack, "RATIO", 32)
    assert Budget.of(1 << 30).left == 32 << 30


# Host files.


def test_host_libraries_with_damaged_tables_are_searched_all_the_same() -> None:
    good = fatbins.library({".nv_fatbin": fatbin(ONE)})
    for data, host, said in (
        (put(good, "<H", 58, 1), None, "at 0x3a: e_shentsize is 1, want 64"),
        (put(good, "<B", 4, 1), None, "at 0x0: ELF identification is 7f 45 4c 46 01 01 01, want"),
        (put(good, "<Q", 40, 1 << 50), "x86_64", "at 0x4000000000000: section table is 192 bytes"),
    ):
        file = read(data)
        assert (file.format, file.host, len(file.images)) == ("elf", host, 1)
        assert said in file.problems[0]


def test_windows_libraries_with_damaged_tables() -> None:
    good = fatbins.windows({".nv_fatb": fatbin(ONE)})
    for data, said in (
        (
            put(good, "<I", 0x3C, 1 << 30),
            "at 0x40000000: PE header is cut off after 0 bytes, want 24",
        ),
        (put(good, "<I", 0x40, 7), "at 0x40: PE signature is 07 00 00 00, want 50 45 00 00"),
        (put(good, "<H", 0x46, 60000), "at 0xc8: PE section table is 2400000 bytes long"),
    ):
        file = read(data)
        assert said in file.problems[0] and len(file.images) == 1 and file.format == "pe"
    assert "e_lfanew is cut off after 1 bytes, want 4 bytes" in read(good[:0x3D]).problems[0]


def test_a_damaged_cubin_in_data_is_told_and_passed_over() -> None:
    data = fatbins.library({".rodata": put(GOOD, "<Q", 40, 1 << 40) + GOOD})
    file = read(data)
    assert [image.size for image in file.images] == [len(GOOD)]
    assert "section table is 512 bytes long" in file.problems[0]


def test_a_cubin_that_ends_beyond_the_file() -> None:
    (said,) = read(b"data" + GOOD[:-1]).problems
    assert said.endswith("section table is 512 bytes long, want at most the 511 bytes that follow")
    grown = put(GOOD, "<Q", table_at(GOOD, b".text.k") + 32, 1 << 20)
    (said,) = read(b"data" + grown).problems
    assert said.startswith("at 0x4: ELF file is 1048") and "want at most the" in said


def test_a_cubin_in_data_that_says_its_count_lies_in_its_table_and_has_none() -> None:
    odd = put(put(GOOD, "<H", 60, 0), "<H", 62, 0xFFFF)
    (said,) = read(b"data" + odd).problems
    assert said.endswith("section 0 is cut off after 0 bytes, want 64 bytes")


def test_sections_without_bytes_do_not_lengthen_a_cubin() -> None:
    at = table_at(GOOD, b".nv.compat")
    shared = put(put(GOOD, "<I", at + 4, elf.NOBITS), "<Q", at + 32, 1 << 40)
    file = read(b"data" + shared)
    assert file.problems == () and [image.size for image in file.images] == [len(GOOD)]


# Bounded work.


def test_many_section_tables_over_each_other_end_the_search() -> None:
    """Headers whose tables all lie over the same bytes, the last section of each out of bounds."""
    count, table = 8000, bytes(64 * 8000)
    head = bytearray(GOOD[:64])
    struct.pack_into("<HH", head, 60, count, 0)
    heads = bytearray()
    for i in range(2000):
        struct.pack_into("<Q", head, 40, 64 * (2000 - i))
        heads += head
    bad = struct.pack("<IIQQQQIIQQ", 0, 1, 0, 0, 1 << 60, 1 << 60, 0, 0, 0, 0)
    started = time.monotonic()
    file = read(b"data" + heads + table[:-64] + bad)
    assert file.problems[-1].startswith("more section tables than fit into the file")
    assert time.monotonic() - started < 5


def test_many_sections_and_many_fatbins() -> None:
    """Each fatbin is not held against each section that may hold it."""
    box = fatbin(entry("lto", 90, b"x"))
    data = bytearray(fatbins.library({"__nv_relfatbin": box * 5000, ".x": b""}))
    at = table_at(bytes(data), b"__nv_relfatbin")
    row, count = bytes(data[at : at + 64]), 50_000
    rows = bytes(64) + b"".join(
        row[:24] + struct.pack("<Q", 64 + i) + row[32:] for i in range(count)
    )
    rows += bytes(data[at + 128 : at + 192])  # the names
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<HH", data, 60, count + 2, count + 1)
    started = time.monotonic()
    file = read(bytes(data) + rows)
    assert len(file.images) == 5000 and file.problems == ()
    assert all(image.relocatable for image in file.images[1:])
    assert time.monotonic() - started < 5


def test_limits_of_images_and_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "IMAGE_LIMIT", 3)
    monkeypatch.setattr(search, "PROBLEM_LIMIT", 2)
    file = read(fatbin(*[ONE] * 9))
    assert len(file.images) == 3 and "more than 3 images: gave up" in file.problems[0]
    bad = put(ONE, "<H", 0, 99)
    assert len(read(fatbin(bad, bad)).problems) == 2
    file = read(fatbin(bad, bad, bad, ONE))
    assert len(file.problems) == 3 and "more than 2 problems: gave up" in file.problems[2]


def test_tiny_entries_without_number() -> None:
    tiny = put(entry("lto", 90, b""), "<H", 0, 77)
    started = time.monotonic()
    file = read(fatbin(*[tiny] * 200_000))
    assert len(file.problems) == search.PROBLEM_LIMIT + 1 and time.monotonic() - started < 5


PTX_FLOODS = [
    b".entry " * 300_000,
    b".entry" + b" " * 1_000_000,
    b".func (" * 200_000,
    b"mma." * 300_000,
    b"tcgen05" * 200_000 + b"xtcgen05." * 200_000,
    b".entry k() {" + b"call " * 300_000,
    b"/*" * 500_000,
    b"// , V1" * 200_000,
    b" " * 1_000_000,
]


@pytest.mark.parametrize("flood", PTX_FLOODS, ids=lambda v: v[:9].decode())
def test_floods_of_text_take_linear_time(flood: bytes) -> None:
    started = time.monotonic()
    read(b".version 8.0\n.target sm_90\n" + flood)
    read(flood + b".version 8.0\n.target sm_90\n")
    assert time.monotonic() - started < 5


def test_ptx_that_calls_everything_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    body = " ".join(f"call f{i}, (a);" for i in range(10))
    text = ".version 8.0\n.target sm_90\n" + "\n".join(
        [f".func f{i}() {{ {body} ret; }}" for i in range(10)]
        + [f".entry k{i}() {{ {body} ret; }}" for i in range(4)]
    )
    one = fatbin(entry("ptx", 90, text.encode()))
    for limit, problems in (
        (580, 0),
        (579, 1),
    ):  # 14 routines name ten; four kernels follow 10 x 11
        monkeypatch.setattr(search, "Memo", lambda limit=limit: Memo(calls_left=limit))
        found = read(one).images[0].problems
        assert len(found) == problems and all(DENSE in text for text in found)


def test_a_view_checks_its_bounds() -> None:
    view = View(memoryview(b"abcdef"), 100)
    assert bytes(view.part(2, 3, "x").data) == b"cde" and view.part(2, 3, "x").base == 102
    for at, size in ((-1, 2), (2, -1), (3, 4), (7, 0)):
        with pytest.raises(Exception, match=f"at {100 + at:#x}: x is {size} bytes long"):
            view.part(at, size, "x")
    with pytest.raises(Exception, match="at 0x66: f is cut off after 4 bytes, want 8 bytes"):
        view.unpack(struct.Struct("<Q"), 2, "f")
