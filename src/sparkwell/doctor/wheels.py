"""Wheels: their members, one at a time, in a temporary file with a name of ours.

A member's name is never used as a path, so where it points to does not matter.  What is unpacked is
counted while it is: a member, and a wheel, that grows past its limit ends with an error.
"""

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sparkwell.doctor.sources import MOST_TEXT, Entry, printable
from sparkwell.errors import Unreadable

MOST_MEMBERS = 200_000
MOST_UNPACKED = 8 << 30  # bytes of one member
MOST_RATIO = 200  # bytes of all members a byte of the wheel; real wheels stay below 20
ALWAYS_ALLOWED = 1 << 30  # bytes of all members, however small the wheel
BLOCK = 1 << 20
ENCRYPTED = 0x1  # bit of a member's flags
# Others may ask for gigabytes of memory, and no tool makes wheels with them.
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What the standard library raises for a broken or unusual archive.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    UnicodeDecodeError,
    KeyError,
)


@dataclass
class _Allowance:
    """Bytes that may still be unpacked from one wheel."""

    left: int

    def take(self, count: int, wheel: str, member: str) -> None:
        self.left -= count
        if self.left < 0:
            raise bad_member(
                wheel,
                member,
                f"part of more than {MOST_RATIO} times the wheel's size",
                "a wheel that is no decompression bomb",
            )


def bad_member(wheel: str, member: str, came: str, wanted: str) -> Unreadable:
    """The error for one member: wheel, member, what came, what was wanted."""
    field = f"member {printable(member)!r}"
    return Unreadable(printable(wheel), field=field, came=came, wanted=wanted)


@dataclass(frozen=True)
class Member:
    """One member of an open wheel."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    wheel: str
    allowance: _Allowance

    @property
    def name(self) -> str:
        """As the wheel spells it, made printable."""
        return printable(self.info.filename)

    @property
    def size(self) -> int:
        """As the wheel says; what comes out is counted."""
        return self.info.file_size

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Unpacked into a temporary file, which is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="sparkwell-") as folder:
            path = Path(folder, "member")
            with path.open("wb") as out:
                for block in self._blocks(MOST_UNPACKED):
                    out.write(block)
            yield path

    def text(self) -> bytes:
        """Its first bytes, in memory."""
        return b"".join(self._blocks(None))

    def _blocks(self, most: int | None) -> Iterator[bytes]:
        """Its bytes in blocks; most: an error past it, None: the first MOST_TEXT bytes."""
        if self.info.flag_bits & ENCRYPTED:
            raise bad_member(self.wheel, self.name, "encrypted", "a plain one")
        if self.info.compress_type not in PACKINGS:
            came = f"packed by method {self.info.compress_type}"
            raise bad_member(self.wheel, self.name, came, "one that is stored or deflated")
        limit, done = most or MOST_TEXT, 0
        try:
            with self.archive.open(self.info) as member:
                while block := member.read(min(BLOCK, limit - done) or 1):
                    done += len(block)
                    if done > limit:
                        raise bad_member(
                            self.wheel,
                            self.name,
                            f"more than {most} bytes unpacked",
                            "at most that",
                        )
                    self.allowance.take(len(block), self.wheel, self.name)
                    yield block
                    if done == limit and most is None:
                        return
            if done != self.info.file_size:
                came = f"{done} bytes unpacked"
                wanted = f"the {self.info.file_size} that the archive lists"
                raise bad_member(self.wheel, self.name, came, wanted)
        except Unreadable:
            raise
        except BROKEN as error:
            text = str(error) or type(error).__name__
            raise bad_member(self.wheel, self.name, printable(text), "a whole one") from None


@dataclass(frozen=True)
class WheelSource:
    """A wheel on the disk."""

    name: str
    path: Path
    kind: str = field(default="wheel")

    def entries(self) -> Iterator[Entry]:
        """Its members but folders and links, by name; each must be used before the next."""
        try:
            archive = zipfile.ZipFile(self.path)
            allowed = max(ALWAYS_ALLOWED, MOST_RATIO * self.path.stat().st_size)
        except BROKEN as error:
            came = printable(str(error)) or type(error).__name__
            raise Unreadable(
                self.name, field="archive", came=came, wanted="a whole zip archive"
            ) from None
        with archive:
            infos = archive.infolist()
            if len(infos) > MOST_MEMBERS:
                raise Unreadable(
                    self.name,
                    field="number of members",
                    came=str(len(infos)),
                    wanted=f"at most {MOST_MEMBERS}",
                )
            allowance = _Allowance(allowed)
            for info in sorted(infos, key=lambda one: one.filename):
                if not info.is_dir() and not _is_link(info):
                    yield Member(archive, info, self.name, allowance)


def _is_link(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a symbolic link, by the Unix mode in its attributes."""
    return (info.external_attr >> 16) & 0o170000 == 0o120000
