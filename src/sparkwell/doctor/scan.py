"""One file's bytes to the GPU images in them.

The whole file is searched, whatever its section table says: fatbins lie in sections of several
names, in data of the large code model and in no section at all, and a damaged table must not hide
them.  The file is mapped, so its size costs no memory.
"""

import mmap
import os
import stat
from pathlib import Path

from sparkwell.doctor.binary import cubin, elf, fatbin, pe, ptx, search
from sparkwell.doctor.binary.memo import Memo
from sparkwell.doctor.binary.search import Search, Span
from sparkwell.doctor.binary.view import Damage, View
from sparkwell.doctor.images import File, Format, Host, Image, Level
from sparkwell.errors import Unreadable

RELOCATABLE = b"__nv_relfatbin"  # PE keeps 8 characters
HOSTS: dict[int, Host] = {
    elf.X86_64: "x86_64",
    elf.AARCH64: "aarch64",
    pe.AMD64: "x86_64",
    pe.ARM64: "aarch64",
}


def scan(path: Path, level: Level = Level.KERNELS, *, name: str | None = None) -> File:
    """The GPU images of one file.  `name` is how the result and errors call it.

    Raises Unreadable where there is nothing to read; damage inside stands in `problems`.  The file
    is mapped: do not scan one that is still being written.
    """
    called = name or str(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        came = getattr(error, "strerror", None) or str(error)
        raise Unreadable(called, field="file", came=came, wanted="a readable file") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(called, field="file", came="no regular file", wanted="a regular file")
        if not status.st_size:
            return File(called, "other", None, (), ("the file is empty",))
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    return scan_bytes(memoryview(mapped), level, called)


def scan_bytes(data: memoryview | bytes, level: Level, name: str) -> File:
    """The GPU images in bytes that are at hand."""
    view = View(memoryview(data).cast("B"))
    if cubin.is_cubin(view) or ptx.is_ptx(view):
        return single(view, level, name)
    form, host, relocatable, problems = recognise(view)
    found = Search(view, level, relocatable)
    found.run()
    return File(name, form, host, tuple(found.images), (*problems, *found.problems))


def single(view: View, level: Level, name: str) -> File:
    """A file that is one image."""
    try:
        if cubin.is_cubin(view):
            image: Image = search.read_cubin(view, level, Memo())
            return File(name, "cubin", None, (image,), ())
        return File(name, "ptx", None, (search.read_ptx(view, level, Memo()),), ())
    except Damage as damage:
        raise Unreadable(
            name, offset=damage.offset, field=damage.field, came=damage.came, wanted=damage.wanted
        ) from None


def recognise(view: View) -> tuple[Format, Host | None, tuple[Span, ...], tuple[str, ...]]:
    """(format, host CPU, where relocatable fatbins lie, problems) of a file of several images."""
    if view.starts(fatbin.MAGIC):
        return "fatbin", None, (), ()
    if not view.starts(elf.MAGIC) and not view.starts(pe.MAGIC):
        return "other", None, (), ()
    form: Format = "elf" if view.starts(elf.MAGIC) else "pe"
    host: Host | None = None
    try:
        if form == "elf":
            host = HOSTS.get(elf.read_header(view).machine)
            whole = elf.read_elf(view)
            found = [(s.offset, s.size) for s in whole.sections if whole.is_named(s, RELOCATABLE)]
        else:
            machine, sections = pe.read_pe(view)
            host = HOSTS.get(machine)
            found = [(s.offset, s.size) for s in sections if s.name == RELOCATABLE[:8]]
    except Damage as damage:
        return form, host, (), (str(damage),)
    return form, host, tuple((at, at + size) for at, size in found), ()
