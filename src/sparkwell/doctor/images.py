"""The GPU code found in one file: facts as they stand in its bytes, no judgement."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Kind = Literal["sass", "ptx", "lto", "tile"]
Format = Literal["elf", "pe", "fatbin", "cubin", "ptx", "other"]
Host = Literal["x86_64", "aarch64"]


class Level(IntEnum):
    """How deep to look; each level costs about five times the one before."""

    HEADERS = 0  # kind, target and size of every image; nothing is decompressed
    KERNELS = 1  # and names and code sizes of the kernels, toolkit
    INSTRUCTIONS = 2  # and the instruction families each kernel uses


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of one image.

    name: str, mangled, as in the symbol table
    code_bytes: int or None, machine code including padding; None for PTX
    stub: bool, the body is there but does nothing (returns, prints or traps): what a kernel is
        left with where the source guards it by architecture.  A kernel that is empty in every
        image of its fatbin is empty by design.
    families: instruction families it uses, names in `binary.sass.FAMILIES`; None below
        INSTRUCTIONS.  Code it calls in the same image counts.
    notes: "multicast-syscall": TMA multicast goes through a call into the driver;
        "tma-syscall": so does a TMA load if its target lies in another block of the cluster;
        "emulated-fp8": FP8 operands of a matrix product are widened to FP16 first
    """

    name: str
    code_bytes: int | None
    stub: bool
    families: frozenset[str] | None
    notes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Image:
    """One program for one target.

    kind: "sass" machine code, "ptx" text, "lto" link-time intermediate, "tile" Tile IR
    target: str, as files spell it: "90", "90a", "120f"
    offset, size: int, where its bytes lie in the file, as stored (compressed or not)
    container: int or None, which fatbin of the file holds it, in order; None: not in a fatbin
    relocatable: bool, an object for the device linker; not loadable by itself
    isa: (major, minor) of the PTX language; None for other kinds
    toolkit: str or None, version of the compiler that made it; None below KERNELS or unsaid
    identifier: str or None, the name of the source file, where it is recorded
    kernels: None below KERNELS, for LTO and Tile IR, and where the image could not be read
    problems: what is wrong with it, each with offset and field
    """

    kind: Kind
    target: str
    offset: int
    size: int
    container: int | None
    relocatable: bool
    isa: tuple[int, int] | None
    toolkit: str | None
    identifier: str | None
    kernels: tuple[Kernel, ...] | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    """One scanned file.  `host` is the CPU its host code is for; None: no host code."""

    path: str
    format: Format
    host: Host | None
    images: tuple[Image, ...]
    problems: tuple[str, ...]
