"""Every fatbin and raw cubin in a file, wherever it lies, each looked at once."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sparkwell.doctor.binary import cubin, elf, fatbin, ptx
from sparkwell.doctor.binary.memo import Memo
from sparkwell.doctor.binary.unpack import Budget, unpack
from sparkwell.doctor.binary.view import Damage, View
from sparkwell.doctor.images import Image, Level

IMAGE_LIMIT = 100_000  # images of one file
PROBLEM_LIMIT = 1_000
PATTERNS = {magic: re.compile(re.escape(magic)) for magic in (fatbin.MAGIC, elf.MAGIC64)}
Span = tuple[int, int]


class GaveUp(Exception):
    """More of something than any real file has; the text says of what."""


class Search:
    """What has been found in one file, and how much may still be spent on it."""

    def __init__(self, view: View, level: Level, relocatable: Iterable[Span] = ()) -> None:
        self.view, self.level, self.relocatable = view, level, merged(relocatable)
        self.images: list[Image] = []
        self.problems: list[str] = []
        self.memo = Memo()
        self.budget = Budget.of(len(view))
        self.containers = 0
        self.resume = 0
        # Bytes that only look like cubins cost their section tables: no more of those than fit.
        self.sections_left = 65536 + 4 * (len(view) // elf.SECTION.size)

    def run(self) -> None:
        """Fill `images` and `problems`."""
        try:
            for place, magic in self.places():
                take = self.take_fatbin if magic is fatbin.MAGIC else self.take_cubin
                self.resume = take(place)
        except GaveUp as stop:
            self.problems.append(str(stop))

    def places(self) -> Iterator[tuple[int, bytes]]:
        """Where a magic stands, in order; after each the search goes on at `resume`."""
        ahead: dict[bytes, int] = dict.fromkeys(PATTERNS, -1)
        while True:
            for magic, place in list(ahead.items()):
                if place < self.resume:
                    found = PATTERNS[magic].search(self.view.data, self.resume)
                    if found:
                        ahead[magic] = found.start()
                    else:
                        del ahead[magic]
            if not ahead:
                return
            magic = min(ahead, key=lambda m: ahead[m])
            yield ahead[magic], magic

    def take_fatbin(self, at: int) -> int:
        """Its images; returns where to go on."""
        found = fatbin.read_header(self.view, at)
        if found is None:
            return at + len(fatbin.MAGIC)
        container, end = self.containers, at + fatbin.HEADER.size
        self.containers += 1
        before = bisect_right(self.relocatable, (at, len(self.view)))
        inside = before > 0 and at < self.relocatable[before - 1][1]
        try:
            for entry in fatbin.read_entries(self.view, found):
                if isinstance(entry, Damage):
                    self.problem(entry)
                else:
                    self.keep(self.read_image(entry, container, inside))
                    end = entry.payload_at + entry.stored
        except Damage as damage:
            self.problem(damage)
            return end
        return max(end, min(found.end, len(self.view)))

    def take_cubin(self, at: int) -> int:
        """The cubin that lies at `at` outside any fatbin; returns where to go on."""
        rest = View(self.view.data[at:], at)
        if not cubin.is_cubin(rest):
            return at + len(elf.MAGIC)
        try:
            whole = rest.part(0, elf.extent(rest, self.spend), "cubin")
            self.keep(read_cubin(whole, self.level, self.memo))
        except Damage as damage:
            self.problem(damage)
            return at + len(elf.MAGIC)
        return at + len(whole)

    def spend(self, sections: int) -> None:
        """Account for the section table of what may be a cubin."""
        self.sections_left -= sections
        if self.sections_left < 0:
            raise GaveUp("more section tables than fit into the file: gave up looking for cubins")

    def read_image(self, entry: fatbin.Entry, container: int, relocatable: bool) -> Image:
        plain = Image(
            kind=entry.kind,
            target=f"{entry.sm}{entry.suffix}",
            offset=entry.payload_at,
            size=entry.stored,
            container=container,
            relocatable=relocatable,
            isa=entry.isa if entry.kind == "ptx" else None,
            toolkit=None,
            identifier=self.identifier(entry),
            kernels=None,
            problems=(),
        )
        if self.level == Level.HEADERS or entry.kind not in ("sass", "ptx"):
            return plain
        try:
            return self.deepen(plain, entry)
        except Damage as damage:
            where = "in the unpacked image, " if entry.packing else ""
            return replace(plain, problems=(where + str(damage),))

    def identifier(self, entry: fatbin.Entry) -> str | None:
        """The name of the source file; None, too, where a file has no room for more names."""
        try:
            return self.memo.name(entry.identifier, entry.at) if entry.identifier else None
        except Damage:
            return None

    def deepen(self, plain: Image, entry: fatbin.Entry) -> Image:
        """With what the payload says."""
        payload = self.view.part(entry.payload_at, entry.stored, "image")
        if entry.packing:
            payload = View(unpack(payload, entry.packing, entry.unpacked, self.budget))
        if entry.kind == "ptx":
            text = ptx.read_ptx(payload, self.level, self.memo)
            return replace(plain, isa=text.isa, toolkit=text.toolkit, kernels=text.kernels)
        code = cubin.read_cubin(payload, self.level, self.memo)
        problems = code.problems
        if code.sm != entry.sm:
            where = Damage(entry.at + 0x1C, "entry SM number", entry.sm, f"{code.sm} as inside")
            problems = (*problems, str(where))
        return replace(
            plain,
            relocatable=plain.relocatable or code.relocatable,
            toolkit=code.toolkit,
            kernels=code.kernels,
            problems=problems,
        )

    def keep(self, image: Image) -> None:
        if len(self.images) >= IMAGE_LIMIT:
            raise GaveUp(f"at {image.offset:#x}: more than {IMAGE_LIMIT} images: gave up")
        self.images.append(image)

    def problem(self, damage: Damage) -> None:
        if len(self.problems) >= PROBLEM_LIMIT:
            raise GaveUp(f"at {damage.offset:#x}: more than {PROBLEM_LIMIT} problems: gave up")
        self.problems.append(str(damage))


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes as spans in order that do not touch."""
    found: list[Span] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def read_cubin(view: View, level: Level, memo: Memo) -> Image:
    """A cubin that lies in no fatbin.  Raises Damage where it does not parse."""
    code = cubin.read_cubin(view, level, memo)
    return Image(
        kind="sass",
        target=f"{code.sm}{code.suffix}",
        offset=view.base,
        size=len(view),
        container=None,
        relocatable=code.relocatable,
        isa=None,
        toolkit=code.toolkit,
        identifier=None,
        kernels=code.kernels,
        problems=code.problems,
    )


def read_ptx(view: View, level: Level, memo: Memo) -> Image:
    """A PTX text that is a file by itself."""
    text = ptx.read_ptx(view, level, memo)
    return Image(
        kind="ptx",
        target=f"{text.sm}{text.suffix}",
        offset=view.base,
        size=len(view),
        container=None,
        relocatable=False,
        isa=text.isa,
        toolkit=text.toolkit,
        identifier=None,
        kernels=text.kernels,
        problems=(),
    )
