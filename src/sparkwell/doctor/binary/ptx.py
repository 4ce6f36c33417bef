"""PTX: version, target, kernels and instruction families of a text, told by searching it."""

import re
from dataclasses import dataclass
from functools import lru_cache

from sparkwell.doctor.binary.memo import NONE, Memo
from sparkwell.doctor.binary.unpack import IMAGE_LIMIT
from sparkwell.doctor.binary.view import Damage, View
from sparkwell.doctor.images import Kernel, Level

ROUTINE_LIMIT = 400_000
HEAD = 1 << 16  # the directives stand in the first bytes, behind comments
VERSION = re.compile(rb"^[ \t]*\.version[ \t]+(\d{1,3})\.(\d{1,3})\b", re.MULTILINE)
TARGET = re.compile(rb"^[ \t]*\.target[ \t]+sm_(\d{1,3})([af]?)\b", re.MULTILINE)
START = re.compile(rb"(?:\s++|//[^\n\0]*+\n|/\*[^*\0]*+(?:\*(?!/)[^*\0]*+)*+\*/)*+\.version\b")
TOOLKIT = re.compile(rb"^// [^\n]{0,200}, V(\d{1,3}\.\d{1,3}\.\d{1,5})", re.MULTILINE)
DIRECTIVES = (re.compile(rb"\.entry\b"), re.compile(rb"\.func\b"))
NAME = re.compile(
    rb"\.(?:entry|func)[ \t\r\n]{1,100}(?:\([^()]{0,1000}\)[ \t\r\n]{0,100})?"
    rb"([A-Za-z0-9_$%]{1,65536})"
)
BEFORE = b" \t\n;{}"  # what may stand before an instruction; not a quote or a slash of a file name
MARKS = (  # how an instruction starts, and its family
    (b"cp.async.ca.", "cp.async"),
    (b"cp.async.cg.", "cp.async"),
    (b"ldmatrix.", "ldmatrix"),
)
MARKS_90 = (  # from sm_90 on
    (b"wgmma.mma_async", "wgmma"),
    (b"tcgen05.", "tcgen05"),
    (b"cp.async.bulk.", "tma"),
    (b"cp.reduce.async.bulk.", "tma"),
    (b"barrier.cluster.", "clusters"),
    (b"mapa.", "clusters"),
    (b"st.async.", "clusters"),
    (b"setmaxnreg.", "setmaxnreg"),
    (b"stmatrix.", "stmatrix"),
    (b"multimem.", "multimem"),
    (b"griddepcontrol.", "pdl"),
)
MARKS_FP64 = tuple(
    (b"%b.f64" % start, "fp64") for start in (b"fma.rn", b"add", b"add.rn", b"mul", b"mul.rn")
)
PRODUCT = re.compile(rb"mma\.(?:sp[a-z_:]{0,30}\.)?sync[a-z0-9_.:]{0,200}")
PRODUCTS = (  # first that stands in the instruction's name
    ((b".kind::mxf4",), "omma"),
    ((b".kind::mxf8f6f4",), "qmma.sf"),
    ((b".kind::f8f6f4", b".e4m3", b".e5m2"), "qmma"),
    ((b".b1",), "bmma"),
    ((b".f64",), "dmma"),
    ((b".s8", b".u8", b".s4", b".u4"), "imma"),
    ((b".f16", b".bf16", b".tf32", b".f32"), "hmma"),  # wmma names no more than the sums' type
)
STUB_BYTES = 4096
WORK = re.compile(
    rb"\b(?:ld|st|red|atom|cp|multimem|mbarrier|wgmma|tcgen05|mma|barrier|bar)"
    rb"\.(?!param|local|volatile\.local)"
)
CALLED = re.compile(rb"\bcall(?:\.uni)?\s{1,100}(?:\([^()]{0,200}\),\s{0,100})?([\w$%]{1,65536})")
PRINTS = {b"vprintf", b"__assertfail"}


@dataclass(frozen=True, slots=True)
class Ptx:
    isa: tuple[int, int]
    sm: int
    suffix: str
    toolkit: str | None
    kernels: tuple[Kernel, ...] | None


def is_ptx(view: View) -> bool:
    """Whether a file is PTX text: nothing but comments before its `.version`."""
    return bool(START.match(view.data[:HEAD]))


def read_ptx(view: View, level: Level, memo: Memo) -> Ptx:
    """Facts of one PTX text.  Raises Damage where it names no version or no target."""
    head = view.data[:HEAD]
    version, target = VERSION.search(head), TARGET.search(head)
    if not version or not target:
        missing = ".version" if not version else ".target"
        raise Damage(view.base, f"PTX {missing}", "missing", f"one in the first {HEAD} bytes")
    toolkit = TOOLKIT.search(head)
    return Ptx(
        isa=(int(version[1]), int(version[2])),
        sm=int(target[1]),
        suffix=target[2].decode(),
        toolkit=toolkit and toolkit[1].decode(),
        kernels=read_kernels(view, int(target[1]), level, memo) if level >= Level.KERNELS else None,
    )


@dataclass(frozen=True, slots=True)
class Routine:
    """One .entry or .func: its text up to where the next one starts."""

    name: bytes
    entry: bool
    at: int
    body: bytes


def routines(view: View) -> list[Routine]:
    if len(view) > IMAGE_LIMIT:
        raise Damage(view.base, "PTX text", f"{len(view)} bytes long", f"at most {IMAGE_LIMIT}")
    source = bytes(view.data)
    starts = beginnings(source, view.base)
    found = []
    for start, end in zip(starts, [*starts[1:], len(source)], strict=False):
        name = NAME.match(source, start)
        if name:
            entry = source.startswith(b".entry", start)
            found.append(Routine(name[1], entry, view.base + start, source[name.end() : end]))
    return found


def beginnings(source: bytes, base: int) -> list[int]:
    """Where a routine's directive stands, in order."""
    starts: list[int] = []
    for directive in DIRECTIVES:
        for found in directive.finditer(source):
            starts.append(found.start())
            if len(starts) > ROUTINE_LIMIT:
                wanted = f"at most {ROUTINE_LIMIT} a text"
                raise Damage(base + found.start(), "PTX routines", "too many", wanted)
    return sorted(starts)


def read_kernels(view: View, sm: int, level: Level, memo: Memo) -> tuple[Kernel, ...]:
    found = routines(view)
    deep = level >= Level.INSTRUCTIONS
    called = Called(found, sm, memo) if deep else None
    kernels: dict[bytes, Kernel] = {}
    for routine in found:
        if not routine.entry:
            continue
        memo.count(routine.at)
        used = memo.family(called.families(routine)) if called else None
        name = memo.name(routine.name, routine.at)
        kernels[routine.name] = Kernel(name, None, is_stub(routine.body), used, NONE)
    return tuple(sorted(kernels.values(), key=lambda kernel: kernel.name))


class Called:
    """Families of routines with all they call by name."""

    def __init__(self, found: list[Routine], sm: int, memo: Memo) -> None:
        self.sm, self.memo = sm, memo
        self.functions = {routine.name: routine for routine in found if not routine.entry}
        self.known: dict[bytes, tuple[frozenset[str], frozenset[bytes]]] = {}

    def own(self, routine: Routine) -> tuple[frozenset[str], frozenset[bytes]]:
        """(families, names called) of a routine by itself."""
        calls = set()
        for call in CALLED.finditer(routine.body if self.functions else b""):
            self.memo.spend_calls(1, routine.at)
            calls.add(call[1])
        return families(routine.body, self.sm), frozenset(calls)

    def families(self, routine: Routine) -> frozenset[str]:
        used, ahead = self.own(routine)
        seen: set[bytes] = set()
        waiting = list(ahead)
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.functions:
                continue
            seen.add(name)
            if name not in self.known:
                self.known[name] = self.own(self.functions[name])
            more, calls = self.known[name]
            self.memo.spend_calls(1 + len(calls), routine.at)
            used |= more
            waiting.extend(calls)
        return used


def families(body: bytes, sm: int) -> frozenset[str]:
    """Families of the instructions that stand in one routine."""
    marks = MARKS + (MARKS_90 if sm >= 90 else ()) + (MARKS_FP64 if b".f64" in body else ())
    found = {name for mark, name in marks if stands(mark, body)}
    found.update(product(name[0]) for name in PRODUCT.finditer(body))
    return frozenset(found - {""})


def stands(mark: bytes, body: bytes) -> bool:
    """Whether an instruction starts with `mark`."""
    at = body.find(mark)
    while at >= 0:
        if at == 0 or body[at - 1] in BEFORE:
            return True
        at = body.find(mark, at + 1)
    return False


@lru_cache(maxsize=1024)
def product(name: bytes) -> str:
    """The family of one `mma` or `wmma` instruction; "" if its types are not known."""
    return next((family for marks, family in PRODUCTS if any(m in name for m in marks)), "")


def is_stub(body: bytes) -> bool:
    """Whether a kernel's text returns, prints or traps and nothing else."""
    if len(body) > STUB_BYTES or b"ret;" not in body and b"trap;" not in body:
        return False
    text = body[body.find(b"{") + 1 :]
    return not WORK.search(text) and set(CALLED.findall(text)) <= PRINTS
