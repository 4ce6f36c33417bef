"""How each kernel of a file runs on a GPU.

The driver loads a fatbin as a whole: the best machine code it can load, else it compiles the newest
PTX it can.  So a fatbin has one chosen image, and a kernel runs if that image has it.  Cubins that
lie in a file by themselves are loaded one by one: each kernel has its own choice there.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparkwell.doctor.images import File, Host, Image, Kernel
from sparkwell.doctor.names import family_of
from sparkwell.doctor.rules import Code, Loading, Verdict, code_of, loading, preference
from sparkwell.errors import BadInput
from sparkwell.hardware import TARGETS, Feature, Target

EMULATED, MULTICAST, OLD_PTX, SUFFIX = "emulated-fp8", "multicast-call", "old-ptx", "a-suffix"
MARKS = {
    EMULATED: "FP8 matrix products are converted to FP16 first, and run at its rate",
    MULTICAST: "TMA multicast is a call into the driver, not an instruction: slow",
    OLD_PTX: "its PTX is of an older generation, and uses nothing that came with later ones",
    SUFFIX: 'code of the same generation is there, but its "a" suffix ties it to another GPU',
}
TURING = 75
NO_NAME = "(kernels not listed)"


@dataclass(frozen=True, slots=True)
class Judged:
    """One kernel of one file on one GPU.

    name: mangled; where the names were not read, the source file's name or the fatbin's number
    code: what runs ("sm_120f", "compute_80 PTX"); None where nothing does
    have: every code there is of it, as `code`
    marks: keys of MARKS
    uses: instruction families of the code that runs, or of all there is where none does; None
        where they were not read
    isa, toolkit: the PTX version and the compiler's version of what runs, where there are such
    """

    name: str
    family: str
    verdict: Verdict
    reason: str
    rule: str
    code: str | None
    have: tuple[str, ...]
    marks: frozenset[str]
    uses: frozenset[str] | None
    isa: tuple[int, int] | None
    toolkit: str | None


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that are instances or specialisations of one.

    verdict: the best of its kernels.  instead: some of them do not run, and a sibling does.
    """

    name: str
    verdict: Verdict
    kernels: tuple[Judged, ...]

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """How many kernels have each verdict, best first."""
        found = Counter(kernel.verdict for kernel in self.kernels)
        return {verdict: found[verdict] for verdict in Verdict if found[verdict]}

    @property
    def instead(self) -> bool:
        """Whether a kernel that does not run has a sibling that does."""
        return self.verdict.runs and any(not kernel.verdict.runs for kernel in self.kernels)

    @property
    def shown(self) -> Judged:
        """The kernel that speaks for the family: of its verdict, with the commonest reason."""
        of_verdict = [kernel for kernel in self.kernels if kernel.verdict == self.verdict]
        return _commonest(of_verdict)

    @property
    def left_out(self) -> Judged | None:
        """A kernel that speaks for those that do not run, or None."""
        lost = [kernel for kernel in self.kernels if not kernel.verdict.runs]
        return _commonest(lost) if lost else None

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks of any of its kernels that matter, sorted."""
        return tuple(sorted(set().union(*(kernel.marks for kernel in self.kernels))))


def _commonest(kernels: Sequence[Judged]) -> Judged:
    counts = Counter(kernel.reason for kernel in kernels)
    best = max(counts.values())
    return min(
        (kernel for kernel in kernels if counts[kernel.reason] == best),
        key=lambda kernel: (kernel.reason, kernel.name),
    )


def families(judged: Iterable[Judged]) -> tuple[Family, ...]:
    """Kernels by family, worst family first, then by name."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for kernel in judged:
        groups[kernel.family].append(kernel)
    found = [
        Family(name, min((k.verdict for k in group), key=lambda v: v.badness), tuple(group))
        for name, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.verdict.badness, one.instead, one.name)))


def judge(file: File, gpu: Target, host: Host | None = None) -> tuple[Judged, ...]:
    """Every kernel of `file` on `gpu`, by name.

    host: the CPU beside the GPU; a library for another one cannot be loaded at all.
    """
    if host is not None and file.host is not None and file.host != host:
        return _of_other_host(file, host)
    copies: dict[str, list[Judged]] = defaultdict(list)
    for images in _modules(file.images):
        for one in _judge_module(images, gpu):
            copies[one.name].append(one)
    for one in _judge_loose([image for image in file.images if image.container is None], gpu):
        copies[one.name].append(one)
    return tuple(_best(copies[name]) for name in sorted(copies))


def _modules(images: Iterable[Image]) -> list[list[Image]]:
    found: dict[int, list[Image]] = defaultdict(list)
    for image in images:
        if image.container is not None:
            found[image.container].append(image)
    return [found[number] for number in sorted(found)]


def _best(copies: list[Judged]) -> Judged:
    """The same kernel from several fatbins: the one that runs best speaks for it."""
    return min(copies, key=lambda one: (one.verdict.badness, one.reason))


def _of_other_host(file: File, host: Host) -> tuple[Judged, ...]:
    names = {kernel.name for image in file.images for kernel in image.kernels or ()}
    called = {name: family_of(name) for name in names}
    called = called or {_label(image): NO_NAME for image in file.images}
    reason = f"the library is for {file.host} hosts, and this GPU's is {host}"
    refused = Verdict.REFUSED
    return tuple(
        Judged(name, called[name], refused, reason, "host", None, (), frozenset(), None, None, None)
        for name in sorted(called)
    )


# ---------------------------------------------------------------- one module


@dataclass(frozen=True, slots=True)
class _Candidate:
    image: Image
    code: Code
    loading: Loading
    kernels: Mapping[str, Kernel]


def _candidates(images: Iterable[Image], gpu: Target) -> tuple[list[_Candidate], list[str]]:
    """Images that have a target, and what is wrong with the others."""
    found, wrong = [], []
    for image in images:
        try:
            code = code_of(image)
        except BadInput as error:
            wrong.append(str(error))
            continue
        kernels = {kernel.name: kernel for kernel in image.kernels or ()}
        how = loading(code, gpu)
        if image.relocatable and how.verdict.runs:
            reason = f"the driver links its {code.name} objects when the library is loaded"
            how = Loading(Verdict.LINK, reason, "relocatable")
        found.append(_Candidate(image, code, how, kernels))
    return found, wrong


def _judge_module(images: Sequence[Image], gpu: Target) -> list[Judged]:
    """Every kernel of one fatbin: one image is chosen for all of them."""
    candidates, wrong = _candidates(images, gpu)
    loads = [one for one in candidates if one.loading.verdict.runs]
    chosen = max(loads, key=_rank, default=None)
    # Several images for one target: which is taken is up to the driver; all of them count.
    taken = [one for one in loads if chosen is not None and _rank(one) == _rank(chosen)]
    names = sorted({name for one in candidates for name in one.kernels})
    if not names and candidates and not wrong and all(_no_kernels(one) for one in candidates):
        return []
    if not names or any(_unread(one) for one in taken):
        listed = [name for name in names if any(name in one.kernels for one in taken)]
        found = [_judged(name, candidates, taken, gpu) for name in listed]
        return [_unlisted(images, candidates, taken, wrong, gpu), *found]
    return [_judged(name, candidates, taken, gpu) for name in names]


def _judge_loose(images: Sequence[Image], gpu: Target) -> list[Judged]:
    """Every kernel of the cubins that lie by themselves: each has its own choice."""
    candidates, wrong = _candidates(images, gpu)
    having: dict[str, list[_Candidate]] = defaultdict(list)
    for one in candidates:
        for name in one.kernels:
            having[name].append(one)
    found = []
    for name in sorted(having):
        loads = [one for one in having[name] if one.loading.verdict.runs]
        taken = [max(loads, key=_rank)] if loads else []
        found.append(_judged(name, having[name], taken, gpu))
    # Those without names are alternatives of each other: one for each target, as far as is known.
    unnamed = [one for one in candidates if not one.kernels and not _no_kernels(one)]
    if unnamed or wrong:
        loads = [one for one in unnamed if one.loading.verdict.runs]
        taken = [max(loads, key=_rank)] if loads else []
        found.append(
            _unlisted([one.image for one in unnamed] or images, unnamed, taken, wrong, gpu)
        )
    return found


def _rank(one: _Candidate) -> tuple[bool, bool, int, int]:
    return (one.loading.verdict is not Verdict.LINK, *preference(one.code))


def _no_kernels(one: _Candidate) -> bool:
    """Whether it was read and holds none: data and functions alone."""
    return one.image.kernels == () and not one.image.problems


def _unread(one: _Candidate) -> bool:
    return one.image.kernels is None and bool(one.image.problems)


def _judged(
    name: str, candidates: Sequence[_Candidate], taken: Sequence[_Candidate], gpu: Target
) -> Judged:
    """One kernel, where `taken` is what the driver loads of `candidates`."""
    having = [one for one in candidates if name in one.kernels]
    running = next((one for one in taken if name in one.kernels), None)
    have = _codes(having)
    if running is None:
        verdict, reason, rule = _refusal(having, taken)
        marks = frozenset({SUFFIX}) if _suffix_trap(having, gpu) else frozenset()
        uses = _uses(one.kernels[name] for one in having)
        return Judged(
            name, family_of(name), verdict, reason, rule, None, have, marks, uses, None, None
        )
    kernel, how = running.kernels[name], running.loading
    verdict, reason, rule = how.verdict, how.reason, how.rule
    full = ", ".join(_codes(one for one in having if _has_body(one, name)))
    if kernel.stub and full:
        verdict, rule = Verdict.STUB, "stub"
        reason = f"its {running.code.name} body is empty; only {full} has one"
    return Judged(
        name,
        family_of(name),
        verdict,
        reason,
        rule,
        running.code.name,
        have,
        _marks(kernel, running, gpu),
        kernel.families,
        running.image.isa,
        running.image.toolkit,
    )


def _has_body(one: _Candidate, name: str) -> bool:
    """Whether a kernel does something there; machine code before Turing is not understood."""
    return not one.kernels[name].stub and (one.code.kind != "sass" or one.code.sm >= TURING)


def _unlisted(
    images: Sequence[Image],
    candidates: Sequence[_Candidate],
    taken: Sequence[_Candidate],
    wrong: Sequence[str],
    gpu: Target,
) -> Judged:
    """A module whose kernels have no names here, as one."""
    name = _label(images[0])
    have = _codes(candidates)
    problems = [problem for one in taken or candidates for problem in one.image.problems]
    if taken and not any(_unread(one) for one in taken):
        one = taken[0]
        marks = frozenset({OLD_PTX}) if _old_ptx(one, gpu) else frozenset()
        how = one.loading
        return Judged(
            name, NO_NAME, how.verdict, how.reason, how.rule, one.code.name, have, marks, None,
            one.image.isa, one.image.toolkit,
        )  # fmt: skip
    if problems or wrong:
        reason = f"cannot be read: {[*problems, *wrong][0]}"
        verdict, rule = Verdict.UNKNOWN, "unreadable"
    else:
        verdict, reason, rule = _refusal(candidates, ())
    marks = frozenset({SUFFIX}) if _suffix_trap(candidates, gpu) else frozenset()
    return Judged(name, NO_NAME, verdict, reason, rule, None, have, marks, None, None, None)


def _label(image: Image) -> str:
    if image.identifier:
        return image.identifier
    at = f"at offset {image.offset}"
    return f"{image.kind} {at}" if image.container is None else f"fatbin {image.container}"


def _codes(candidates: Iterable[_Candidate]) -> tuple[str, ...]:
    codes = {one.code for one in candidates}
    return tuple(code.name for code in sorted(codes, key=lambda c: (c.kind, c.sm, c.suffix)))


def _refusal(having: Sequence[_Candidate], taken: Sequence[_Candidate]) -> tuple[Verdict, str, str]:
    """Verdict, reason and rule where no image that loads has the kernel."""
    if taken:
        others = ", ".join(_codes(having))
        reason = f"the driver takes the {taken[0].code.name} code, and only {others} has the kernel"
        return Verdict.REFUSED, reason, "chosen-lacks-it"
    unknown = [one for one in having if one.loading.verdict is Verdict.UNKNOWN]
    if unknown:
        how = unknown[0].loading
        return Verdict.UNKNOWN, how.reason, how.rule
    if len(having) == 1 or len(_codes(having)) == 1:
        how = having[0].loading
        return Verdict.REFUSED, how.reason, how.rule
    nearest = max(having, key=lambda one: preference(one.code))
    return (
        Verdict.REFUSED,
        f"it has {', '.join(_codes(having))}, and none of them loads",
        nearest.loading.rule,
    )


def _suffix_trap(having: Iterable[_Candidate], gpu: Target) -> bool:
    """Whether an image would load, were it not for its "a"."""
    return any(
        one.code.suffix == "a"
        and not one.loading.verdict.runs
        and one.code.kind == "sass"
        and gpu.loads_cubin(f"sm_{one.code.sm}")
        for one in having
    )


def _marks(kernel: Kernel, running: _Candidate, gpu: Target) -> frozenset[str]:
    marks = set()
    if "emulated-fp8" in kernel.notes:
        marks.add(EMULATED)
    if "multicast-syscall" in kernel.notes:
        marks.add(MULTICAST)
    if running.code.kind == "ptx":
        fp8 = kernel.families is not None and "qmma" in kernel.families
        if fp8 and gpu.missing(Feature.FP8_MMA_SYNC):
            marks.add(EMULATED)
        if _old_ptx(running, gpu):
            marks.add(OLD_PTX)
    return frozenset(marks)


_FEATURES = {row.sm: row.features for row in TARGETS}


def _old_ptx(one: _Candidate, gpu: Target) -> bool:
    """Whether PTX for an older GPU runs on one that can do what that one could not."""
    if one.code.kind != "ptx":
        return False
    before = _FEATURES.get(one.code.sm, Feature(0))
    return bool(gpu.features & ~before & (Feature.TMA | Feature.FP8_MMA))


def _uses(kernels: Iterable[Kernel]) -> frozenset[str] | None:
    known = [kernel.families for kernel in kernels if kernel.families is not None]
    return frozenset().union(*known) if known else None
