"""Files, images and kernels made by hand, and wheels made of bytes."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparkwell.doctor.images import File, Format, Host, Image, Kernel, Kind
from sparkwell.doctor.verdict import Judged, judge
from sparkwell.hardware import target


def kernel(
    name: str = "k",
    *,
    stub: bool = False,
    families: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Kernel:
    return Kernel(
        name, 4096, stub, None if families is None else frozenset(families), frozenset(notes)
    )


def image(
    kind: Kind,
    target: str,
    *kernels: Kernel | str,
    container: int | None = 0,
    relocatable: bool = False,
    isa: tuple[int, int] | None = None,
    toolkit: str | None = None,
    listed: bool = True,
    problems: Sequence[str] = (),
    identifier: str | None = None,
    offset: int = 64,
) -> Image:
    """listed: whether its kernels' names were read."""
    made = tuple(kernel(k) if isinstance(k, str) else k for k in kernels)
    isa = isa or ((8, 7) if kind == "ptx" else None)
    return Image(
        kind, target, offset, 100, container, relocatable, isa, toolkit, identifier,
        made if listed else None, tuple(problems),
    )  # fmt: skip


def file(
    *images: Image,
    host: Host | None = "x86_64",
    path: str = "lib.so",
    format: Format = "elf",
    problems: Sequence[str] = (),
) -> File:
    return File(path, format, host, images, tuple(problems))


def judged(gpu: str, *images: Image, host: Host | None = None) -> dict[str, Judged]:
    """Verdicts by kernel."""
    return {one.name: one for one in judge(file(*images), target(gpu), host)}


def one(gpu: str, *images: Image) -> Judged:
    """The verdict of the only kernel."""
    (found,) = judge(file(*images), target(gpu))
    return found


def wheel(path: Path, members: Mapping[str, bytes], *, compress: bool = True) -> Path:
    """A wheel with these members and nothing else."""
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path
