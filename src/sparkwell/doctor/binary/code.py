"""The code sections of a cubin: what each kernel executes, itself and in what it calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct

from sparkwell.doctor.binary import elf, fp8, sass
from sparkwell.doctor.binary.memo import Memo
from sparkwell.doctor.binary.view import Damage, View

EXECUTABLE = 4  # sh_flags
CALLS = 0x70000001  # section type of `.nv.callgraph`: pairs of symbols, caller and callee
CALL = Struct("<II")


@dataclass(frozen=True, slots=True)
class Facts:
    """What one code section holds."""

    families: frozenset[str]
    widens: bool  # FP8 operands to FP16 right before a product
    idle: bool


@dataclass(frozen=True, slots=True)
class Calls:
    """What one code section calls: sections of this image, names from outside."""

    inside: set[int]
    outside: set[str]


class Code:
    """Sections read at most once each, and no more bytes of them than the image has."""

    def __init__(
        self, whole: elf.Elf, sm: int, sections_of: Sequence[int], outside: dict[int, str]
    ) -> None:
        """`sections_of` and `outside` hold, by symbol number, a symbol's section and the names of
        symbols that have none."""
        self.whole, self.sm = whole, sm
        self.left = len(whole.view)
        self.known: dict[int, Facts] = {}
        self.calls = self.read_calls(sections_of, outside)
        # Old assemblers leave no call graph: then anything may be called from anywhere.
        self.anywhere = frozenset() if self.calls else frozenset(outside.values())

    def facts(self, number: int) -> Facts:
        """What section `number` holds; nothing if it is not code of this file."""
        found = self.known.get(number)
        if found is None:
            found = self.known[number] = self.read(number)
        return found

    def read(self, number: int) -> Facts:
        nothing = Facts(frozenset(), False, False)
        if number >= len(self.whole.sections):
            return nothing
        section = self.whole.sections[number]
        if section.type == elf.NOBITS or not section.flags & EXECUTABLE:
            return nothing
        body = self.take(section, "code section")
        opcodes = sass.opcodes(body.data)
        families = frozenset(sass.counts(opcodes, self.sm))
        widens = "hmma" in families and fp8.widens_before_product(body.data)
        return Facts(families, widens, sass.is_idle(opcodes))

    def take(self, section: elf.Section, field: str) -> View:
        """A section's bytes; those of all sections taken are no more than the image has."""
        body = self.whole.body(section, f"{field} size")
        self.left -= len(body)
        if self.left < 0:
            wanted = f"at most {len(self.whole.view)} bytes together, as the image has"
            raise Damage(body.base, f"{field}s", "longer", wanted)
        return body

    def facts_of(self, sections: Iterable[int]) -> Facts:
        """What several sections hold together."""
        every = [self.facts(number) for number in sections]
        return Facts(
            frozenset().union(*(facts.families for facts in every)),
            any(facts.widens for facts in every),
            all(facts.idle for facts in every),
        )

    def reached(self, start: int, memo: Memo, offset: int) -> tuple[set[int], set[str]]:
        """(sections, names from outside) that section `start` calls, itself among them."""
        sections, names = {start}, set(self.anywhere)
        ahead = [start]
        memo.spend_calls(len(names), offset)
        while ahead:
            calls = self.calls.get(ahead.pop())
            if calls:
                memo.spend_calls(len(calls.inside) + len(calls.outside), offset)
                names |= calls.outside
                ahead += calls.inside - sections
                sections |= calls.inside
        return sections, names

    def read_calls(self, sections_of: Sequence[int], outside: dict[int, str]) -> dict[int, Calls]:
        """By section; pairs whose callee is no symbol are marks of other things."""
        found: dict[int, Calls] = {}
        count = len(sections_of)
        for section in self.whole.sections:
            if section.type != CALLS:
                continue
            body = self.take(section, "call graph")
            for caller, callee in CALL.iter_unpack(body.data[: len(body) - len(body) % CALL.size]):
                if caller >= count:
                    continue
                calls = found.setdefault(sections_of[caller], Calls(set(), set()))
                if callee in outside:
                    calls.outside.add(outside[callee])
                elif callee < count and sections_of[callee]:
                    calls.inside.add(sections_of[callee])
        return found
