"""Evidence of compiling at run time, and what a bundled assembler knows."""

import os
from pathlib import Path

import pytest

from doctor.made import wheel
from sparkwell.doctor.asked import Asked
from sparkwell.doctor.examine import LICENSED, examine
from sparkwell.doctor.images import Level
from sparkwell.doctor.jit import MOST_PLACES, Collector, assembler
from sparkwell.doctor.own import compile_own
from sparkwell.doctor.sources import FolderSource
from sparkwell.doctor.wheels import WheelSource
from sparkwell.errors import BadInput
from sparkwell.hardware import target

GPU = Asked("sm_90", "H200", target(90), None)


@pytest.mark.parametrize(
    ("source", "cuda", "way"),
    [
        (b"@triton.jit\ndef f(): pass", False, "Triton"),
        (b"@gluon.jit\ndef f(): pass", False, "Triton"),
        (b"import cutlass.cute as cute", False, "CuTe DSL"),
        (b"@cute.kernel\ndef f(): pass", False, "CuTe DSL"),
        (b"    from tilelang import x", False, "TileLang"),
        (b"@T.prim_func\ndef f(): pass", False, "TileLang"),
        (b"lib = nvrtcCompileProgram", False, "NVRTC"),
        (b"k = cupy.RawKernel('')", False, "NVRTC"),
        (b"from cuda.bindings import driver, nvrtc", False, "NVRTC"),
        (b"from torch.utils.cpp_extension import load", False, "nvcc"),
        (b"run('nvcc x.cu -gencode y')", False, "nvcc"),
        (b"__global__ void k() {}", True, "CUDA sources"),
    ],
)
def test_ways(source: bytes, cuda: bool, way: str) -> None:
    collector = Collector()
    collector.add("a", source, cuda)
    assert [one.way for one in collector.found()] == [way]
    other = Collector()
    other.add("a", source, not cuda)
    assert other.found() == ()


@pytest.mark.parametrize(
    "source",
    [
        b"# triton.jit is nice",
        b"import cutlass",
        b"import torch",
        b"the nvcc compiler",
        b"says = 'compiled by NVRTC'  # nvrtc",
    ],
)
def test_no_evidence(source: bytes) -> None:
    collector = Collector()
    collector.add("a", source, False)
    assert collector.found() == ()


def test_counts_places_and_hints() -> None:
    collector = Collector()
    for i in range(5):
        collector.add(f"f{i}.py", b"@triton.jit\n" + (b"tcgen05 sm_120a" if i == 4 else b""), False)
    collector.add("g.cu", b"__global__ wgmma", True)
    triton, cuda = collector.found()
    assert (triton.count, triton.places) == (5, ("f0.py", "f1.py", "f2.py"))
    assert len(triton.places) == MOST_PLACES
    assert triton.hints == ("sm12x", "tcgen05") and cuda.hints == ("wgmma",)


def test_the_targets_an_assembler_names(tmp_path: Path) -> None:
    path = tmp_path / "ptxas"
    path.write_bytes(
        b"\x7fELF\0sm_90a\0sm_121f\0sm_75\0xsm_999\0sm_1234\0sm_90\0sm_120a_x\0sm_90a\0"
    )
    found = assembler(path, "p")
    assert found.targets == ("sm_75", "sm_90", "sm_90a", "sm_121f") and found.newest == "sm_121f"
    path.write_bytes(b"")
    assert assembler(path, "p").targets == () and assembler(path, "p").newest == ""


def test_an_assembler_in_a_package_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "ptxas-blackwell"
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n# sm_103a")
    os.chmod(tool, 0o755)
    found = examine(FolderSource("f", tmp_path), [GPU], Level.KERNELS)
    assert [(a.place, a.newest) for a in found.assemblers] == [("bin/ptxas-blackwell", "sm_103a")]
    assert not (tmp_path / "ran").exists()


def test_code_is_looked_at_but_not_tests(tmp_path: Path) -> None:
    text = b"@triton.jit\ndef f(cc):\n assert cc >= 90"
    names = ["a.py", "tests/b.py", "x/test_c.py", "benchmarks/d.py", "contest/e.py"]
    path = wheel(tmp_path / "a.whl", dict.fromkeys(names, text) | {"k.cu": b"__global__ k"})
    found = examine(WheelSource("a", path), [GPU], Level.KERNELS)
    assert [gate.file for gate in found.gates] == ["a.py", "contest/e.py"]
    assert [(one.way, one.count) for one in found.evidence] == [("Triton", 2), ("CUDA sources", 1)]
    without = examine(WheelSource("a", path), [GPU], Level.KERNELS, code=False)
    assert not (without.gates or without.evidence or without.notes)


def test_python_that_is_left_out_is_noted(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("sparkwell.doctor.examine.MOST_TEXT", 100)
    path = wheel(tmp_path / "a.whl", {"big.py": b"#" * 101, "bad.py": b"arch = ("})
    found = examine(WheelSource("a", path), [GPU], Level.KERNELS)
    assert found.notes[0].startswith("bad.py: not understood as Python")
    assert found.notes[1] == "big.py: 101 bytes of Python are not looked at"
    assert not found.problems


@pytest.mark.parametrize("name", ["x/libcublas.so.12", "libcudnn_ops.so.9", "LIBNVRTC.so"])
def test_licensed_libraries_are_not_looked_into(tmp_path: Path, name: str) -> None:
    from fatbins import WORKS, cubin, entry, fatbin, library

    data = library({".nv_fatbin": fatbin(entry("sass", 90, cubin(90, {"k": WORKS})))})
    path = wheel(tmp_path / "a.whl", {name: data, "libown.so": data})
    levels = {
        one.file.path: one.level
        for one in examine(WheelSource("a", path), [GPU], Level.INSTRUCTIONS).files
    }
    assert levels == {name: Level.HEADERS, "libown.so": Level.INSTRUCTIONS}
    assert all(prefix.islower() for prefix in LICENSED)


# ---------------------------------------------------------------- our own kernels


class Done:
    def __init__(self, stdout: bytes, returncode: int = 0) -> None:
        self.stdout, self.returncode = stdout, returncode


def test_our_own_kernels_are_compiled_elsewhere(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    asked = []

    def run(words, **kwargs):  # type: ignore[no-untyped-def]
        asked.append(words[1:])
        cell = b'{"op": "norm", "target": "sm_121", "kernels": 4, "failures": 0, "refused": 1}'
        return Done(b'{"cells": [' + cell + b"]}")

    monkeypatch.setattr("subprocess.run", run)
    (found,) = compile_own((target(121), target(90)))
    assert (found.op, found.target, found.kernels, found.failures) == ("norm", "sm_121", 4, 0)
    words = ["-m", "sparkwell", "verify", "--json", "--target", "sm_121", "--target", "sm_90"]
    assert asked == [words]


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"not json"])
def test_our_own_kernels_where_they_cannot_be_compiled(monkeypatch, answer: bytes) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("subprocess.run", lambda words, **kwargs: Done(answer, 2))
    with pytest.raises(BadInput, match=r"verify --json --target sm_90` ended with 2 and no answer"):
        compile_own((target(90),))
