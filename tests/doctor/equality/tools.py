"""NVIDIA's cuobjdump and nvdisasm, where they are to be had, and what they print."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparkwell.doctor.images import File, Image
from sparkwell.doctor.scan import scan

GPU_FILE = re.compile(r"(\.so(\.[\d.]+)?|\.pyd|\.dll|\.cubin|\.fatbin|\.ptx|\.a|\.o)$")
LISTED = re.compile(r"^(ELF|PTX) file +\d+: .*?\.sm_(\d+[af]?)\.(?:cubin|ptx)$", re.MULTILINE)
ENTRY = re.compile(r"^(?:STT_)?FUNC +\S+ +(?:\S+ +)?(?:STO_)?ENTRY +(\S+)$", re.MULTILINE)
PTX_ENTRY = re.compile(r"\.entry\s+([\w$%]+)")


@dataclass(frozen=True)
class Dump:
    """What cuobjdump says of a file; by kind."""

    targets: dict[str, list[str]]
    names: dict[str, set[str]]


def may_hold(name: str) -> bool:
    return bool(GPU_FILE.search(name))


def members(wheel: Path, into: Path) -> Iterator[tuple[str, Path]]:
    """Members of a wheel that may hold GPU code, each removed before the next is unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if may_hold(member.filename) and member.file_size:
                path = into / Path(member.filename).name
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                yield f"{wheel.name}!{member.filename}", path
                path.unlink()


@cache
def find(tool: str) -> str | None:
    """Where the tool is: PATH, its wheel, Triton's copy."""
    places = [shutil.which(tool)]
    for package, below in (("nvidia", "cu13/bin"), ("triton", "backends/nvidia/bin")):
        found = importlib.util.find_spec(package)
        folders = list(found.submodule_search_locations or []) if found else []
        places += [os.path.join(folder, below, tool) for folder in folders]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def run(tool: str, *arguments: str) -> str:
    path = find(tool)
    if path is None:
        raise SystemExit(f"{tool} is not on PATH; pip install nvidia-cuda-{tool}")
    done = subprocess.run([path, *arguments], capture_output=True, check=False)
    return done.stdout.decode("utf-8", "backslashreplace")


def version(tool: str) -> str:
    found = re.search(r"V([\d.]+)", run(tool, "--version"))
    return f"{tool} {found[1] if found else '?'}"


def dump(path: Path) -> Dump:
    listed = LISTED.findall(run("cuobjdump", "-all", "-lelf", "-lptx", str(path)))
    symbols = run("cuobjdump", "-all", "-symbols", str(path))
    text = run("cuobjdump", "-all", "-ptx", str(path)) if ("PTX" in dict(listed)) else ""
    return Dump(
        {
            "sass": [target for kind, target in listed if kind == "ELF"],
            "ptx": [target for kind, target in listed if kind == "PTX"],
        },
        {"sass": set(ENTRY.findall(symbols)), "ptx": set(PTX_ENTRY.findall(text))},
    )


def targets(file: File, kind: str) -> list[str]:
    """Targets of a kind in order, as cuobjdump says them: machine code without the suffix `f`."""
    return [
        image.target.removesuffix("f") if kind == "sass" else image.target
        for image in file.images
        if image.kind == kind and image.container is not None
    ]


def names(file: File, kind: str) -> set[str]:
    return {
        kernel.name
        for image in file.images
        if image.kind == kind and image.container is not None
        for kernel in image.kernels or ()
    }


def raw_cubins(path: Path, file: File) -> Iterator[tuple[Image, str, set[str]]]:
    """(image, target, kernels) of each cubin outside fatbins, as cuobjdump says of it alone.

    cuobjdump does not find these; given one as a file it reads most ("": it says nothing).
    """
    for image in file.images:
        if image.container is None and file.format not in ("cubin", "ptx"):
            with path.open("rb") as source, tempfile.TemporaryDirectory() as folder:
                source.seek(image.offset)
                alone = Path(folder) / "one.cubin"
                alone.write_bytes(source.read(image.size))
                found = dump(alone)
            yield image, next(iter(found.targets["sass"]), ""), found.names["sass"]


def digest(found: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def recorded(name: str, path: Path) -> dict[str, object]:
    """The record of one member, if there is GPU code in it."""
    found = dump(path)
    raw = [
        [image.offset, image.size, target, digest(names)]
        for image, target, names in raw_cubins(path, scan(path))
    ]
    if not raw and not any(found.targets.values()):
        return {}
    return {
        name.split("!")[1]: {
            "bytes": path.stat().st_size,
            "targets": {kind: " ".join(listed) for kind, listed in found.targets.items()},
            "kernels": {kind: len(names) for kind, names in found.names.items()},
            "names_sha256": {kind: digest(names) for kind, names in found.names.items()},
            "raw": raw,
        }
    }
