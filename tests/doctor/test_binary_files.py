"""Every form in which GPU code lies in files, built from nothing and read back."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fatbins
from fatbins import DFMA, EXIT, HMMA, IDLE, NOP, PTX, STORE, WORKS, code, cubin, entry, fatbin
from sparkwell.doctor.binary import sass, search
from sparkwell.doctor.binary.view import View
from sparkwell.doctor.images import File, Image, Kernel, Level
from sparkwell.doctor.scan import scan, scan_bytes
from sparkwell.errors import Unreadable

KERNELS = {"_Z4workPf": WORKS, "_Z4idlePf": IDLE}


def read(data: bytes, level: Level = Level.INSTRUCTIONS) -> File:
    return scan_bytes(data, level, "file")


def only(file: File) -> Image:
    assert file.problems == () and len(file.images) == 1, file
    return file.images[0]


def kernels(image: Image) -> dict[str, Kernel]:
    assert image.problems == () and image.kernels is not None, image
    return {kernel.name: kernel for kernel in image.kernels}


@pytest.mark.parametrize("packing", ["", "lz4", "zstd"])
@pytest.mark.parametrize("suffix", ["", "a", "f"])
def test_machine_code_in_a_library(packing: str, suffix: str) -> None:
    inside = cubin(120, KERNELS, suffix=suffix)
    box = fatbin(entry("sass", 120, inside, suffix=suffix, packing=packing, identifier="a.cu"))
    data = fatbins.library({".text": bytes(100), ".nv_fatbin": box})
    file = read(data)
    assert (file.path, file.format, file.host) == ("file", "elf", "x86_64")
    image = only(file)
    assert (image.kind, image.target, image.container) == ("sass", "120" + suffix, 0)
    assert (image.relocatable, image.isa, image.toolkit) == (False, None, "13.0.88")
    assert image.identifier == "a.cu"
    assert data[image.offset : image.offset + image.size].startswith(
        {"": b"\x7fELF", "zstd": b"\x28\xb5\x2f\xfd"}.get(packing, b"")
    )
    assert kernels(image) == {
        "_Z4workPf": Kernel("_Z4workPf", len(WORKS), False, frozenset(), frozenset()),
        "_Z4idlePf": Kernel("_Z4idlePf", len(IDLE), True, frozenset(), frozenset()),
    }


@pytest.mark.parametrize("packing", ["", "lz4", "zstd"])
def test_ptx_in_a_library(packing: str) -> None:
    one = entry("ptx", 120, PTX.encode(), suffix="f", packing=packing, options="-O3 ")
    image = only(read(fatbins.library({".nv_fatbin": fatbin(one)})))
    assert (image.kind, image.target, image.isa) == ("ptx", "120f", (8, 8))
    assert image.toolkit == "13.0.88"
    assert kernels(image) == {"scale": Kernel("scale", None, False, frozenset(), frozenset())}


@pytest.mark.parametrize("kind", ["lto", "tile"])
def test_images_that_are_not_looked_into(kind: str) -> None:
    image = only(read(fatbin(entry(kind, 100, b"scrambled", suffix="a", packing="zstd"))))
    assert (image.kind, image.target, image.kernels) == (kind, "100a", None)
    assert image.isa is None and image.problems == ()


def test_levels_say_more_and_more() -> None:
    data = fatbin(entry("sass", 90, cubin(90, {"k": code(HMMA, STORE, EXIT)}), packing="lz4"))
    shallow = only(read(data, Level.HEADERS))
    assert (shallow.kernels, shallow.toolkit, shallow.target) == (None, None, "90")
    middle = kernels(only(read(data, Level.KERNELS)))["k"]
    assert middle.code_bytes == 48 and middle.families is None
    assert kernels(only(read(data, Level.INSTRUCTIONS)))["k"].families == {"hmma"}


@pytest.mark.parametrize("machine, host", [(62, "x86_64"), (183, "aarch64"), (21, None)])
def test_host_of_elf(machine: int, host: str | None) -> None:
    assert read(fatbins.library({}, machine)).host == host


@pytest.mark.parametrize("machine, host", [(0x8664, "x86_64"), (0xAA64, "aarch64"), (0x14C, None)])
def test_windows_libraries(machine: int, host: str | None) -> None:
    one = fatbin(entry("sass", 89, cubin(89, KERNELS)))
    two = fatbin(entry("sass", 89, cubin(89, KERNELS)))
    data = fatbins.windows({"__nv_relfatbin": one, ".nv_fatbin": two}, machine)
    file = read(data)
    assert (file.format, file.host, file.problems) == ("pe", host, ())
    assert [image.relocatable for image in file.images] == [True, False]


@pytest.mark.parametrize("section", [".nv_fatbin", ".lrodata", ".rodata", ".data.rel.ro", ".odd"])
def test_fatbins_lie_in_any_section(section: str) -> None:
    box = fatbin(entry("sass", 80, cubin(80, KERNELS)), entry("ptx", 120, PTX.encode()))
    file = read(fatbins.library({".text": bytes(64), section: bytes(24) + box + bytes(40) + box}))
    assert [(i.kind, i.container, i.relocatable) for i in file.images] == [
        ("sass", 0, False),
        ("ptx", 0, False),
        ("sass", 1, False),
        ("ptx", 1, False),
    ]


def test_sections_of_relocatable_fatbins_may_lie_over_each_other() -> None:
    assert search.merged([(5, 9), (0, 2), (8, 12), (2, 3), (6, 7)]) == [(0, 3), (5, 12)]
    box = fatbin(entry("ptx", 80, PTX.encode()))
    data = fatbins.library({".a": box, "__nv_relfatbin": box, ".b": box})
    found = search.Search(View(memoryview(data)), Level.HEADERS)
    found.run()
    starts = [image.offset - 80 for image in found.images]
    for spans in ([(starts[1], starts[1] + 1)], [(0, 1), (starts[1], starts[2]), (starts[1], 1)]):
        found = search.Search(View(memoryview(data)), Level.HEADERS, spans)
        found.run()
        assert [image.relocatable for image in found.images] == [False, True, False]


def test_relocatable_images_by_section_and_by_their_own_header() -> None:
    one = fatbin(entry("ptx", 80, PTX.encode()), entry("sass", 80, cubin(80, KERNELS)))
    data = fatbins.library({"__nv_relfatbin": one, ".nv_fatbin": one})
    assert [i.relocatable for i in read(data).images] == [True, True, False, False]
    inside = cubin(80, KERNELS, relocatable=True)
    assert only(read(fatbin(entry("sass", 80, inside, packing="zstd")))).relocatable


@pytest.mark.parametrize("abi", [7, 8])
@pytest.mark.parametrize("suffix", ["", "a", "f"])
@pytest.mark.parametrize("sm", [75, 90, 121])
def test_loose_cubins(sm: int, suffix: str, abi: int) -> None:
    file = read(cubin(sm, KERNELS, suffix=suffix, abi=abi))
    image = only(file)
    assert (file.format, file.host) == ("cubin", None)
    assert (image.target, image.container, image.offset) == (f"{sm}{suffix}", None, 0)
    assert set(kernels(image)) == set(KERNELS)


def test_the_suffix_a_stands_in_flags_or_in_an_attribute() -> None:
    flags_only = bytearray(cubin(100, KERNELS, toolkit=None))
    assert only(read(bytes(flags_only))).target == "100"
    flags_only[48] |= 8
    assert only(read(bytes(flags_only))).target == "100a"
    attribute_only = cubin(100, KERNELS, suffix="a", toolkit=None)
    assert only(read(attribute_only)).target == "100a"


def test_cubins_in_data_outside_any_fatbin() -> None:
    inside = cubin(90, KERNELS, suffix="a")
    data = fatbins.library({".rodata": b"text\0" + inside + b"\xff" * 99 + inside})
    file = read(data)
    assert file.problems == () and [i.target for i in file.images] == ["90a", "90a"]
    for image in file.images:
        assert image.container is None and image.size == len(inside)
        assert data[image.offset : image.offset + image.size] == inside
        assert set(kernels(image)) == set(KERNELS)


def test_what_lies_inside_a_cubin_is_part_of_it() -> None:
    inside = cubin(90, {"k": cubin(80, KERNELS)})
    (image,) = read(b"data" + inside + bytes(9)).images
    assert (image.target, image.size) == ("90", len(inside))
    (image,) = read(fatbin(entry("sass", 90, inside))).images
    assert image.target == "90" and image.container == 0


def test_a_host_library_inside_another_is_no_cubin() -> None:
    assert read(fatbins.library({".rodata": fatbins.library({})})).images == ()


def test_more_sections_than_the_header_can_count() -> None:
    image = only(read(cubin(90, KERNELS, extended=True)))
    assert set(kernels(image)) == set(KERNELS) and image.toolkit == "13.0.88"


def test_loose_fatbins_and_archives() -> None:
    box = fatbin(entry("sass", 86, cubin(86, KERNELS)))
    assert read(box).format == "fatbin" and len(read(box).images) == 1
    archive = read(b"!<arch>\nmember.o/ 100644 `\n" + fatbins.library({".nv_fatbin": box}))
    assert (archive.format, archive.host) == ("other", None) and len(archive.images) == 1


def test_loose_ptx() -> None:
    file = read(PTX.encode())
    image = only(file)
    assert (file.format, image.target, image.isa) == ("ptx", "120f", (8, 8))
    assert (image.toolkit, image.container, image.size) == ("13.0.88", None, len(PTX))
    assert list(kernels(image)) == ["scale"]
    assert read(b"/* a\n * b */\n.version 7.0\n.target sm_75\n").images[0].target == "75"


def test_a_library_that_starts_with_ptx_is_a_library() -> None:
    file = read(fatbins.library({".rodata": PTX.encode()}))
    assert (file.format, file.images) == ("elf", ())


def test_files_without_gpu_code() -> None:
    for data, form in ((b"plain text", "other"), (fatbins.library({".text": bytes(99)}), "elf")):
        file = read(data)
        assert (file.format, file.images, file.problems) == (form, (), ())


def test_names_that_are_not_utf8_are_kept_readable() -> None:
    data = cubin(90, {"kern": WORKS}).replace(b"\0kern\0", b"\0ke\xffn\0")
    assert list(kernels(only(read(data)))) == ["ke\\xffn"]


def test_files_are_read_from_disk_under_the_name_given(tmp_path: Path) -> None:
    path = tmp_path / "a.cubin"
    path.write_bytes(cubin(90, KERNELS))
    assert scan(path).path == str(path) and scan(path, name="w.whl!a.cubin").path == "w.whl!a.cubin"
    assert scan(path).images == read(path.read_bytes(), Level.KERNELS).images
    (tmp_path / "empty.so").touch()
    assert scan(tmp_path / "empty.so").problems == ("the file is empty",)


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "closed", "nul"])
def test_what_cannot_be_opened(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.so"
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)  # opening one to read would wait for a writer
    if what == "closed":
        path.touch(mode=0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    if what == "nul":
        path = tmp_path / "a\0b"
    said = {
        "missing": "file is No such file or directory, want a readable file",
        "folder": "file is no regular file, want a regular file",
        "pipe": "file is no regular file, want a regular file",
        "closed": "file is Permission denied, want a readable file",
        "nul": "file is embedded null byte, want a readable file",
    }[what]
    with pytest.raises(Unreadable, match="^member: " + said) as caught:
        scan(path, name="member")
    assert caught.value.offset is None


def test_scanning_imports_nothing_heavy() -> None:
    run = "import sys, sparkwell.doctor.scan; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    heavy = {"torch", "triton", "numpy", "transformers", "rich", "typer"}
    assert "zstandard" in done.stdout.split() and not heavy & set(done.stdout.split())


# What kernels do.


def facts(data: bytes, name: str = "k") -> Kernel:
    return kernels(only(read(data)))[name]


def test_families_of_what_a_kernel_calls_count() -> None:
    data = cubin(
        90,
        {"k": WORKS, "other": code(HMMA, EXIT)},
        functions={"f": code(NOP, EXIT), "g": code(DFMA, EXIT), "h": code((0x7BF0, 0), EXIT)},
        calls=[("k", "f"), ("f", "g"), ("g", "f")],
    )
    assert facts(data).families == {"fp64"}
    assert facts(data, "other").families == {"hmma"}
    assert set(kernels(only(read(data)))) == {"k", "other"}


def test_a_kernel_without_memory_access_is_a_stub() -> None:
    assert facts(cubin(90, {"k": IDLE})).stub
    assert not facts(cubin(90, {"k": WORKS})).stub
    assert not facts(cubin(90, {"k": code(NOP)})).stub  # no way out: unread, not empty
    assert facts(cubin(90, {"k": code((0x795C, 0), NOP)})).stub  # a trap
    long = cubin(90, {"k": IDLE + code(NOP) * 64})
    assert not facts(long).stub
    assert not facts(cubin(70, {"k": IDLE})).stub  # an older encoding


@pytest.mark.parametrize("callee, stub", [("vprintf", True), ("__assertfail", True), ("f", False)])
def test_a_kernel_that_prints_is_a_stub(callee: str, stub: bool) -> None:
    body = code(fatbins.CALL, EXIT)
    for calls in ([("k", callee)], None):  # None: an assembler that left no call graph
        data = cubin(90, {"k": body, "z": WORKS}, outside=[callee], calls=calls)
        assert facts(data).stub == stub
        assert only(read(data, Level.KERNELS)).kernels == tuple(
            Kernel(name, size, is_stub, None, frozenset())
            for name, size, is_stub in (("k", 32, stub), ("z", 32, False))
        )


def test_a_kernel_that_calls_code_here_is_a_stub_only_if_that_is_idle() -> None:
    for function, stub in ((IDLE, True), (WORKS, False)):
        data = cubin(90, {"k": IDLE}, functions={"f": function}, calls=[("k", "f")])
        assert facts(data).stub == stub


def test_tma_through_the_driver_is_noted_for_the_kernels_that_do_it() -> None:
    stem = "__cuda_syscall_cp_async_bulk_tensor_2d_tile_"
    data = cubin(
        120,
        {"m": WORKS, "u": WORKS, "none": WORKS},
        outside=[stem + "multicast", stem + "unicast", "elsewhere"],
        calls=[("m", stem + "multicast"), ("u", stem + "unicast"), ("none", "elsewhere")],
    )
    for level in (Level.KERNELS, Level.INSTRUCTIONS):
        notes = {k.name: set(k.notes) for k in only(read(data, level)).kernels or ()}
        assert notes == {"m": {"multicast-syscall"}, "u": {"tma-syscall"}, "none": set()}


def test_old_machine_code_has_no_known_families() -> None:
    assert facts(cubin(70, {"k": code(HMMA, EXIT)})).families is None
    assert facts(cubin(75, {"k": code(HMMA, EXIT)})).families == {"hmma"}


def test_an_opcode_that_changed_its_meaning() -> None:
    for sm, families in ((75, {"hmma"}), (80, set()), (90, set())):
        assert facts(cubin(sm, {"k": code((0x7236, 0), STORE, EXIT)})).families == families


OPCODES = {
    "hmma": [0x23C], "imma": [0x237], "bmma": [0x23D], "dmma": [0x23F], "qmma": [0x27A],
    "omma": [0x27F, 0x47F], "qmma.sf": [0x47A], "wgmma": [0x9F0, 0x9F1, 0x9F2, 0x9F3],
    "tcgen05": [0x5EA, 0x9EE, 0x9ED, 0x5E7, 0x5E3, 0x9E9],
    "tma": [0x5B4, 0x3B4, 0x3B5, 0x3B6, 0x3BA],
    "clusters": [0x9C7, 0xDBD], "setmaxnreg": [0x9C8], "cp.async": [0xFAE], "ldmatrix": [0x83B],
    "stmatrix": [0x844], "multimem": [0x9A5], "pdl": [0x82D, 0x82E], "fp64": [0x228, 0x229, 0x22B],
}  # fmt: skip


@pytest.mark.parametrize(
    "family, opcode", [(f, o) for f, found in OPCODES.items() for o in found]
)  # fmt: skip
def test_families_by_opcode_whatever_the_predicate(family: str, opcode: int) -> None:
    for predicate in (0x7000, 0x0000, 0x9000):
        body = code((opcode | predicate, 0), STORE, EXIT)
        assert facts(cubin(100, {"k": body})).families == {family}


def test_long_code_is_looked_at_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "CHUNK", 32)
    for count in range(5):
        body = code(*[STORE] * count, HMMA, EXIT)
        assert facts(cubin(90, {"k": body})).families == {"hmma"}
        found = sass.opcodes(memoryview(body + b"tail"))
        assert found == Counter({0x23C: 1, 0x94D: 1, 0x986: count})


def unpack(register: int, source: int, form: int = 6, half: int = 2) -> tuple[int, int]:
    """F2FP.F16.E4M3.UNPACK_B (form 4: E5M2; half 3: of the upper half)."""
    return source << 32 | 0xFF000000 | register << 16 | 0x723E, half << 24 | form << 8 | 0xFF


def product(a: int, b: int) -> tuple[int, int]:
    return b << 32 | a << 24 | 0x0004723C, 0x18FF


def test_fp8_products_widened_to_fp16_are_noted() -> None:
    widen = [unpack(r, 20, 4 + 2 * (r % 2), 2 + r // 2 % 2) for r in (4, 5, 6, 7, 8, 9)]
    whole = [*widen, product(4, 8), STORE, EXIT]

    def notes(*instructions: tuple[int, int], sm: int = 90) -> set[str]:
        return set(facts(cubin(sm, {"k": code(*instructions)})).notes)

    assert notes(*whole) == {"emulated-fp8"}
    for missing in range(6):  # one operand that comes from elsewhere
        assert notes(*whole[:missing], *whole[missing + 1 :]) == set()
    scaled = (0x0008_0832, 0)  # HMUL2 R8: what was widened is scaled before the product
    assert notes(*widen, scaled, product(4, 8), EXIT) == set()
    assert notes(*widen, product(4, 10), EXIT) == set()
    assert notes(*whole[:-2], (0x727A, 0), EXIT) == set()  # it has the real thing, too
    plain = [(low, high & ~(1 << 25)) for low, high in widen]  # the other way: FP16 to FP8
    six_bit = [unpack(r, 20, 5) for r in range(4, 10)]
    elsewhere = unpack(40, 20)
    assert notes(elsewhere, *plain, product(4, 8), EXIT) == set()
    assert notes(elsewhere, *six_bit, product(4, 8), EXIT) == set()


# PTX.


def text(*routines: str, isa: str = "8.8", target: str = "sm_120a") -> bytes:
    return (
        f".version {isa}\n.target {target}\n.address_size 64\n".encode()
        + "\n".join(routines).encode()
    )


def ptx_kernel(body: str) -> Kernel:
    return facts(text(f".visible .entry k(.param .u64 p)\n{{\n{body}\nret;\n}}\n"))


PTX_FAMILIES = [
    ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 1;", {"wgmma"}),
    ("tcgen05.mma.cta_group::1.kind::f16 [%r1], %rd1, %rd2, %r2, 1;", {"tcgen05"}),
    ("cp.async.bulk.tensor.2d.shared::cta.global [%r1], [%rd1, {%r2, %r3}], [%r4];", {"tma"}),
    ("cp.reduce.async.bulk.global.shared::cta.add.u32 [%rd1], [%r1], 16;", {"tma"}),
    ("barrier.cluster.arrive;", {"clusters"}),
    ("@%p1 mapa.u64 %rd1, %rd2, 1;", {"clusters"}),
    ("st.async.shared::cluster.mbarrier.u32 [%r1], %r2, [%r3];", {"clusters"}),
    ("setmaxnreg.inc.sync.aligned.u32 232;", {"setmaxnreg"}),
    ("cp.async.ca.shared.global [%r1], [%rd1], 4;", {"cp.async"}),
    ("cp.async.cg.shared.global [%r1], [%rd1], 16;", {"cp.async"}),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r2];", {"ldmatrix"}),
    ("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2], {%r1};", {"stmatrix"}),
    ("multimem.ld_reduce.global.add.f32 %f1, [%rd1];", {"multimem"}),
    ("griddepcontrol.wait;", {"pdl"}),
    ("fma.rn.f64 %fd1, %fd2, %fd3, %fd4;", {"fp64"}),
    ("add.f64 %fd1, %fd2, %fd3; mul.f64 %fd1, %fd2, %fd3;", {"fp64"}),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1};", {"hmma"}),
    ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1};", {"hmma"}),
    ("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1];", set()),
    ("wmma.store.d.sync.aligned.row.m16n16k16.f32 [%rd1], {%f1};", set()),
    ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f1};", {"hmma"}),
    ("wmma.mma.sync.aligned.row.col.m16n16k16.f16.f16 {%f1};", {"hmma"}),
    ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1};", {"hmma"}),
    ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1};", {"imma"}),
    ("mma.sync.aligned.m16n8k64.row.col.s32.u4.u4.s32 {%r1};", {"imma"}),
    ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {%r1};", {"bmma"}),
    ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1};", {"dmma"}),
    ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%f1};", {"qmma"}),
    ("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e2m1.e2m1.f32 {%f1};", {"qmma"}),
    ("mma.sync.aligned.kind::mxf8f6f4.block_scale.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0 {%f1};",
     {"qmma.sf"}),
    ("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.f32.e2m1.e2m1.f32 {%f1};",
     {"omma"}),
]  # fmt: skip


@pytest.mark.parametrize("line, families", PTX_FAMILIES, ids=lambda v: str(v)[:40])
def test_families_of_ptx(line: str, families: set[str]) -> None:
    assert ptx_kernel(line).families == families


def test_names_of_files_and_of_variables_are_no_instructions() -> None:
    kernel = ptx_kernel(
        '.file 1 "/src/tcgen05.mma.cuh"\nld.param.u64 %my_griddepcontrol.wait, [p];'
    )
    assert kernel.families == frozenset()


def test_ptx_families_of_functions_that_are_called() -> None:
    long = "_Z" + "very" * 500
    source = text(
        ".func (.param .b32 r) deep(.param .b32 a)\n{\nadd.f64 %fd1, %fd2, %fd3;\nret;\n}",
        f".func middle(.param .b32 a)\n{{\ncall.uni (r), {long}, (a);\ncall middle, (a);\nret;}}",
        f".func {long}()\n{{\ncall.uni\n(r),\ndeep,\n(a);\nret;\n}}",
        ".func never()\n{\nsetmaxnreg.inc.sync.aligned.u32 24;\nret;\n}",
        ".visible .entry k()\n{\ncall.uni middle, (a);\nst.global.u32 [%rd1], 1;\nret;\n}",
        ".entry alone()\n{\nst.global.u32 [%rd1], 1;\nret;\n}",
    )
    assert facts(source).families == {"fp64"}
    assert facts(source, "alone").families == frozenset()
    assert len(kernels(only(read(source)))) == 2


PTX_STUBS = [
    ("", True),
    ("ld.param.u64 %rd1, [p];", True),
    ("{ .param .b64 q; st.param.b64 [q], %rd1; call.uni (r), vprintf, (q, z); }", True),
    ("call.uni __assertfail, (q);", True),
    ("trap;", True),
    ("st.global.f32 [%rd1], %f1;", False),
    ("@%p1 red.global.add.f32 [%rd1], %f1;", False),
    ("call.uni (r), compute, (q);", False),
    ("bar.sync 0;", False),
    ("st.local.u32 [%rd1], 1;" + "// long\n" * 600, False),
]


@pytest.mark.parametrize("body, stub", PTX_STUBS, ids=range(len(PTX_STUBS)))
def test_ptx_stubs(body: str, stub: bool) -> None:
    assert ptx_kernel(body).stub == stub


def test_kernels_come_sorted_and_once() -> None:
    source = text(".entry b();", ".entry a() { ret; }", ".entry b() { ret; }")
    assert [kernel.name for kernel in only(read(source)).kernels or ()] == ["a", "b"]
    bodies = dict.fromkeys(("z", "m", "a"), WORKS)
    assert list(kernels(only(read(cubin(90, bodies))))) == ["a", "m", "z"]


def test_lz4_blocks_of_every_shape() -> None:
    """The builder's own packing against the reader: literals and copies of all lengths."""
    for literals, run in itertools.product(
        (0, 1, 14, 15, 16, 269, 270, 271, 600), (0, 1, 18, 19, 600)
    ):
        noise = bytes((i * 37 + i // 7) % 251 for i in range(literals))
        data = PTX.encode() + noise + b"ab" * run + noise + bytes(run)
        assert only(read(fatbin(entry("ptx", 90, data, packing="lz4")))).problems == ()
