"""What real compilers make, read back: Triton's images, and nvcc's where there is one."""

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import fatbins
from sparkwell.doctor.images import File, Image, Level
from sparkwell.doctor.scan import scan, scan_bytes

HERE = Path(__file__).parent
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")


def load(name: str) -> ModuleType:
    """A module of the equality script, or beside it."""
    sys.path.insert(0, str(HERE / "equality"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


tools, listing = load("tools"), load("listing")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, bytes]]:
    """(kernel and type, SM) -> {"cubin": bytes, "ptx": bytes}, by Triton in a process of its own:
    this one may have Triton's interpreter switched on."""
    folder = tmp_path_factory.mktemp("triton")
    run = [sys.executable, str(HERE / "compile_triton.py"), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for path in folder.glob("*.cubin"):
        name, sm = path.stem.rsplit("-", 1)
        found[name, int(sm)] = {
            "cubin": path.read_bytes(),
            "ptx": path.with_suffix(".ptx").read_bytes(),
        }
    return found


FAMILIES = {
    ("product-bf16", 80): {"hmma"},
    ("product-bf16", 90): {"wgmma"},
    ("product-bf16", 120): {"hmma"},
    ("product-fp8", 90): {"wgmma"},
    ("product-fp8", 120): {"qmma"},
    ("scaled", 120): {"omma"},
}
PRODUCTS = {"hmma", "imma", "qmma", "qmma.sf", "omma", "wgmma", "tcgen05"}


def test_triton_cubins_and_their_ptx(compiled: dict[tuple[str, int], dict[str, bytes]]) -> None:
    assert set(compiled) == set(FAMILIES)
    for (name, sm), made in compiled.items():
        suffix = "" if sm < 90 else "a"
        for kind in ("cubin", "ptx"):
            (image,) = scan_bytes(made[kind], Level.INSTRUCTIONS, name).images
            assert image.target == f"{sm}{suffix}" and image.problems == ()
            (kernel,) = image.kernels or ()
            assert kernel.name == name.split("-")[0] and not kernel.stub
            assert kernel.families is not None
            assert kernel.families & PRODUCTS == FAMILIES[name, sm], (name, sm, kind)
            assert (kernel.code_bytes or 1) % (128 if kind == "cubin" else 1) == 0


def test_instructions_of_triton_cubins_equal_the_disassembler(
    compiled: dict[tuple[str, int], dict[str, bytes]], tmp_path: Path
) -> None:
    if tools.find("nvdisasm") is None:
        pytest.skip("no nvdisasm on PATH, in its wheel or in Triton's")
    path, total = tmp_path / "one.cubin", Counter[str]()
    for made in compiled.values():
        path.write_bytes(made["cubin"])
        mine = listing.by_opcode(memoryview(made["cubin"]))
        assert mine == listing.listed(path)
        total += mine
    assert total["hmma"] and total["wgmma"] and total["qmma"] and total["omma"]


# nvcc: every packing, plain and relocatable, with every kind and suffix.

SOURCE = """
#include <cstdio>
__device__ __noinline__ double deep(double x) { return x * x + 1; }
__global__ void work(double *p) { p[threadIdx.x] = deep(p[0]); }
__global__ void empty(float *p) {}
__global__ void guarded(float *p, int n) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < n; i++) p[i * blockDim.x + threadIdx.x] = p[i] * 3.f;
#else
  printf("ERROR: not for this GPU\\n");
  __trap();
#endif
}
"""
NAMES = {"_Z4workPd", "_Z5emptyPf", "_Z7guardedPfi"}
PLAIN = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90a,code=sm_90a"]
FAMILY = ["arch=compute_120f,code=[sm_120f,compute_120f]"]
LINKED = ["arch=compute_90,code=[sm_90,compute_90,lto_90]"]


def build(folder: Path, mode: str, codes: list[str], *flags: str) -> Path:
    (folder / "k.cu").write_text(SOURCE)
    out = folder / f"{mode}{len(codes)}{''.join(flags)}.o"
    generate = [word for code in codes for word in ("-gencode", code)]
    run = [NVCC, "-c", *flags, "-o", str(out), str(folder / "k.cu"), *generate]
    done = subprocess.run([*run, f"--compress-mode={mode}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this nvcc does not know the option or target: {done.stderr[:200]}")
    return out


def check_same_as_cuobjdump(path: Path, ours: File) -> None:
    if tools.find("cuobjdump") is None:
        return
    theirs = tools.dump(path)
    for kind in ("sass", "ptx"):
        assert tools.targets(ours, kind) == theirs.targets[kind]
        assert tools.names(ours, kind) == theirs.names[kind]


@needs_nvcc
@pytest.mark.parametrize("mode", ["size", "speed", "balance", "none"])
def test_objects_of_nvcc_in_every_packing(tmp_path: Path, mode: str) -> None:
    path = build(tmp_path, mode, PLAIN + FAMILY)
    file = scan(path, Level.INSTRUCTIONS)
    assert [(i.kind, i.target, i.relocatable, i.container) for i in file.images] == [
        ("sass", "80", False, 0),
        ("ptx", "80", False, 0),
        ("sass", "90a", False, 0),
        ("sass", "120f", False, 0),
        ("ptx", "120f", False, 0),
    ]
    assert file.problems == () and file.format == "elf"
    for image in file.images:
        check_kernels(image)
    check_same_as_cuobjdump(path, file)


def check_kernels(image: Image) -> None:
    assert image.problems == ()
    kernels = {kernel.name: kernel for kernel in image.kernels or ()}
    assert set(kernels) == NAMES
    assert kernels["_Z4workPd"].families == {"fp64"} and not kernels["_Z4workPd"].stub
    assert kernels["_Z5emptyPf"].stub and kernels["_Z5emptyPf"].families == frozenset()
    assert kernels["_Z7guardedPfi"].stub == (image.target == "80")
    assert (image.toolkit is not None) == (image.kind == "sass")


@needs_nvcc
def test_relocatable_objects_of_nvcc(tmp_path: Path) -> None:
    path = build(tmp_path, "balance", LINKED, "-dc")
    file = scan(path, Level.INSTRUCTIONS)
    assert [(i.kind, i.target, i.relocatable) for i in file.images] == [
        ("sass", "90", True),
        ("ptx", "90", True),
        ("lto", "90", True),
    ]
    sass, ptx, lto = file.images
    assert lto.kernels is None
    for image in (sass, ptx):
        kernels = {kernel.name: kernel for kernel in image.kernels or ()}
        assert set(kernels) == NAMES  # and not deep(), which is a function there
        assert kernels["_Z4workPd"].families == {"fp64"}
        assert kernels["_Z7guardedPfi"].families == frozenset()
    check_same_as_cuobjdump(path, file)


FP8 = """.version 8.7
.target sm_{sm}
.address_size 64
.visible .entry k(.param .u64 p)
{{
 .reg .b32 %a<8>; .reg .f32 %f<8>; .reg .b64 %p; .reg .b16 %h<4>;
 ld.param.u64 %p,[p];
 ld.global.u32 %a0,[%p]; ld.global.u32 %a1,[%p+4]; ld.global.u32 %a2,[%p+8];
 ld.global.u32 %a3,[%p+12]; ld.global.u32 %a4,[%p+16]; ld.global.u32 %a5,[%p+20];
 mov.f32 %f0, 0f00000000;
 {body}
 st.global.f32 [%p],%f1; st.global.f32 [%p+4],%f2; st.global.f32 [%p+8],%f3;
 st.global.f32 [%p+12],%f4;
 ret;
}}
"""
DIRECT = """mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32
 {%f1,%f2,%f3,%f4},{%a0,%a1,%a2,%a3},{%a4,%a5},{%f0,%f0,%f0,%f0};"""
WEIGHTS = """mov.b32 {%h0,%h1}, %a4; cvt.rn.f16x2.e4m3x2 %a4, %h0; cvt.rn.f16x2.e4m3x2 %a5, %h1;
 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
 {%f1,%f2,%f3,%f4},{%a0,%a1,%a2,%a3},{%a4,%a5},{%f0,%f0,%f0,%f0};"""


@needs_nvcc
@pytest.mark.parametrize(
    "sm, body, family, emulated",
    [
        (89, DIRECT, "qmma", False),
        (90, DIRECT, "hmma", True),
        (100, DIRECT, "hmma", True),
        (120, DIRECT, "qmma", False),
        (90, WEIGHTS, "hmma", False),
    ],
)
def test_fp8_products_and_what_becomes_of_them(
    tmp_path: Path, sm: int, body: str, family: str, emulated: bool
) -> None:
    (tmp_path / "k.ptx").write_text(FP8.format(sm=sm, body=body))
    run = ["ptxas", f"-arch=sm_{sm}", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "k.cubin")]
    subprocess.run(run, check=True, capture_output=True)
    (kernel,) = scan(tmp_path / "k.cubin", Level.INSTRUCTIONS).images[0].kernels or ()
    assert kernel.families == {family}
    assert ("emulated-fp8" in kernel.notes) == emulated


TMA = """.version 8.7
.target sm_120
.address_size 64
.visible .entry k(.param .u64 d)
{{
 .reg .b32 %a<8>; .reg .b64 %r<8>; .reg .b16 %h<4>;
 .shared .align 128 .b8 buf[4096]; .shared .align 8 .b8 bar[8];
 ld.param.u64 %r0,[d];
 mov.u32 %a0, buf; mov.u32 %a1, bar; mov.u32 %a2, 0; mov.u16 %h0, 3;
 cp.async.bulk.tensor.2d.shared::{where}.global.mbarrier::complete_tx::bytes{more};
 ret;
}}
.visible .entry other(.param .u64 p)
{{ .reg .b64 %r<8>; ld.param.u64 %r0,[p]; st.global.u64 [%r0], %r0; ret; }}
"""
TMA_FORMS = [
    ("cluster", ".multicast::cluster [%a0], [%r0, {%a2,%a2}], [%a1], %h0", "multicast-syscall"),
    ("cluster", " [%a0], [%r0, {%a2,%a2}], [%a1]", "tma-syscall"),
    ("cta", " [%a0], [%r0, {%a2,%a2}], [%a1]", None),
]


@needs_nvcc
@pytest.mark.parametrize("where, more, note", TMA_FORMS)
def test_tma_that_goes_through_the_driver(
    tmp_path: Path, where: str, more: str, note: str | None
) -> None:
    text = TMA.format(where=where, more=more)
    if where == "cta":
        text = text.replace(".version 8.7", ".version 8.8")
    (tmp_path / "k.ptx").write_text(text)
    run = ["ptxas", "-arch=sm_120", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "k.cubin")]
    subprocess.run(run, check=True, capture_output=True)
    for level in (Level.KERNELS, Level.INSTRUCTIONS):
        one, other = scan(tmp_path / "k.cubin", level).images[0].kernels or ()
        assert one.notes == (frozenset([note]) if note else frozenset())
        assert other.notes == frozenset()


def test_the_builder_of_these_tests_agrees_with_cuobjdump(tmp_path: Path) -> None:
    """What the synthetic tests read is what NVIDIA's tool reads in the same bytes."""
    if tools.find("cuobjdump") is None:
        pytest.skip("no cuobjdump on PATH, in its wheel or in Triton's")
    bodies = {"one": fatbins.WORKS, "two": fatbins.IDLE}
    made = [
        fatbins.entry(
            "sass", 90, fatbins.cubin(90, bodies, suffix="a", abi=7), suffix="a", packing=p
        )
        for p in ("", "lz4", "zstd")
    ]
    text = fatbins.PTX.encode()
    made.append(fatbins.entry("ptx", 120, text, suffix="f", packing="lz4", options="-O3 "))
    path = tmp_path / "made.so"
    path.write_bytes(fatbins.library({".nv_fatbin": fatbins.fatbin(*made)}))
    ours = scan(path)
    assert tools.targets(ours, "sass") == ["90a"] * 3 and tools.targets(ours, "ptx") == ["120f"]
    check_same_as_cuobjdump(path, ours)
