"""What is kept once for all images of a file, and how much of it there may be."""

from dataclasses import dataclass, field

from sparkwell.doctor.binary.view import Damage, text

NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class Memo:
    """Names and sets met before, so that equal ones are kept once; and how many more may come."""

    kernels_left: int = 400_000
    name_bytes_left: int = 1 << 26
    calls_left: int = 4_000_000
    names: dict[bytes, str] = field(default_factory=dict)
    sets: dict[frozenset[str], frozenset[str]] = field(default_factory=dict)

    def name(self, raw: bytes, offset: int) -> str:
        found = self.names.get(raw)
        if found is None:
            self.name_bytes_left -= len(raw)
            if self.name_bytes_left < 0:
                raise Damage(offset, "kernel names", "too long together", "at most 64 MiB a file")
            found = self.names[raw] = text(raw)
        return found

    def count(self, offset: int) -> None:
        self.kernels_left -= 1
        if self.kernels_left < 0:
            raise Damage(offset, "kernels", "too many", "at most 400,000 a file")

    def spend_calls(self, count: int, offset: int) -> None:
        self.calls_left -= count
        if self.calls_left < 0:
            wanted = "at most 4,000,000 calls followed from all kernels of a file"
            raise Damage(offset, "call graph", "too dense", wanted)

    def family(self, names: frozenset[str]) -> frozenset[str]:
        return self.sets.setdefault(names, names)
