"""The code sections of a cubin: what each kernel executes, itself and in what it calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from sparkwell.doctor.binary import elf, fp8, sass
from sparkwell.doctor.binary.view import Damage, View

EXECUTABLE = 4  # sh_flags
CALLS = 0x70000001  # section type of `.nv.callgraph`: pairs of symbols, caller and callee
CALL = Struct("<II")
REACHED_LIMIT = 1_000_000  # functions reached from all kernels of an image, counted each time


@dataclass(frozen=True, slots=True)
class Facts:
    """What one code section holds."""

    families: frozenset[str]
    widens: bool  # FP8 operands to FP16 right before a product
    idle: bool


NOTHING = Facts(frozenset(), False, False)


class Code:
    """Sections read at most once each, and no more bytes of them than the image has."""

    def __init__(self, whole: elf.Elf, sections_of: list[int]) -> None:
        """`sections_of` holds the section of each symbol, by the symbol's number."""
        self.whole, self.sections_of = whole, sections_of
        self.left, self.reached_left = len(whole.view), REACHED_LIMIT
        self.known: dict[int, Facts] = {}
        self.calls: dict[int, set[int]] | None = None

    def facts(self, number: int) -> Facts:
        """What section `number` holds; nothing if it is not code of this file."""
        found = self.known.get(number)
        if found is None:
            found = self.known[number] = self.read(number)
        return found

    def read(self, number: int) -> Facts:
        if number >= len(self.whole.sections):
            return NOTHING
        section = self.whole.sections[number]
        if section.type == elf.NOBITS or not section.flags & EXECUTABLE:
            return NOTHING
        body = self.whole.body(section, "code section size")
        self.left -= len(body)
        if self.left < 0:
            wanted = f"at most {len(self.whole.view)} bytes together, as the image has"
            raise Damage(body.base, "code sections", "longer", wanted)
        opcodes = sass.opcodes(body.data)
        families = frozenset(sass.counts(opcodes))
        widens = "hmma" in families and fp8.widens_before_product(body.data)
        return Facts(families, widens, sass.is_idle(opcodes))

    def of(self, number: int) -> Facts:
        """The section and all it can call in this image."""
        if self.calls is None:
            self.calls = self.read_calls()
        if number not in self.calls:
            return self.facts(number)
        all_facts = [self.facts(section) for section in self.reached(number)]
        return Facts(
            frozenset().union(*(facts.families for facts in all_facts)),
            any(facts.widens for facts in all_facts),
            all(facts.idle for facts in all_facts),
        )

    def reached(self, start: int) -> Iterable[int]:
        seen, ahead = {start}, [start]
        while ahead:
            for section in (self.calls or {}).get(ahead.pop(), ()):
                if section not in seen:
                    seen.add(section)
                    ahead.append(section)
        self.reached_left -= len(seen)
        if self.reached_left < 0:
            raise Damage(self.whole.view.base, "call graph", "too dense", f"{REACHED_LIMIT} calls")
        return seen

    def read_calls(self) -> dict[int, set[int]]:
        """Which code sections each one calls, from the call graphs of the image."""
        calls: dict[int, set[int]] = {}
        count = len(self.sections_of)
        for section in self.whole.sections:
            if section.type != CALLS:
                continue
            body: View = self.whole.body(section, "call graph size")
            for caller, callee in CALL.iter_unpack(body.data[: len(body) - len(body) % CALL.size]):
                if max(caller, callee) < count and self.sections_of[callee]:
                    calls.setdefault(self.sections_of[caller], set()).add(self.sections_of[callee])
        return calls
