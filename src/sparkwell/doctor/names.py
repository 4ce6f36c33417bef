"""Kernel names: the readable base of a mangled name, and the family it belongs to.

A family is what a reader would call one kernel: all instances of a template, for all architectures
and shapes of the matrix instruction.  The base is the qualified name up to the first template
argument list; where that is a mere wrapper (CUTLASS launches everything through `device_kernel`),
its first argument's.
"""

import functools
import re

WRAPPERS = frozenset(
    {
        "cutlass::device_kernel",
        "cutlass::Kernel",
        "cutlass::Kernel2",
        "cutlass::KernelGrouped",
        "cub::DeviceKernel",
    }
)
_LONGEST = 65536  # characters that are looked at; real names end before
_DEEPEST = 64  # components of a name; real ones have fewer than 20
_STANDARD = {"t": "std", "a": "std::allocator", "b": "std::basic_string", "s": "std::string"}
_ENABLERS = re.compile(r"(?:^|::)enable_?sm_?\d+\w*$", re.IGNORECASE)  # guards, by architecture
_ARCH = re.compile(
    r"(?<![A-Za-z])[sS][mM]_?\d{2,4}[af]?(?:_\d{3,4}[af]?)*(?![A-Za-z0-9])"  # sm_90a, sm90
    r"|(?<![A-Za-z])S[mM]\d{2,3}[af]?(?=[A-Z])"  # Sm100FmhaFwd
    r"|(?<=[a-z0-9])Sm\d{2,3}[af]?(?![0-9a-z])"  # FwdSm90, fmhaSm100aKernel
    r"|(?<=[A-Za-z])_?SM(?:_\d{3,4})+"  # CUDASM_800_900
    r"|(?<=CUB_)\d{6}(?:_SM)?(?:_\d{3,4})+"  # CUB_200302_SM_800_900: its version, too
)
_SHAPE = re.compile(r"_?[mM]\d{1,3}[nN]\d{1,3}[kK]\d{1,3}(?![A-Za-z0-9])")


class _Stop(Exception):
    """The name has a form that is not taken apart here."""


class _Parser:
    """Takes apart as much of an Itanium name as its base needs."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.seen: list[str] = []  # what S_, S0_, ... stand for

    def peek(self, wanted: str) -> bool:
        return self.text.startswith(wanted, self.at)

    def take(self, wanted: str) -> bool:
        found = self.peek(wanted)
        self.at += len(wanted) * found
        return found

    def source_name(self) -> str:
        match = re.compile(r"\d{1,5}").match(self.text, self.at)
        if match is None:
            raise _Stop
        start, length = match.end(), int(match[0])
        if length == 0 or start + length > len(self.text):
            raise _Stop
        self.at = start + length
        name = self.text[start : self.at]
        return "(anonymous)" if name.startswith("_GLOBAL__N_") else name

    def substitution(self) -> str:
        """After "S": what was seen before, or a part of std."""
        match = re.compile(r"([0-9A-Z]{0,3})_").match(self.text, self.at)
        if match is None:
            letter = self.text[self.at : self.at + 1]
            if letter not in _STANDARD:
                raise _Stop
            self.at += 1
            return _STANDARD[letter]
        self.at = match.end()
        index = int(match[1], 36) + 1 if match[1] else 0
        if index >= len(self.seen):
            raise _Stop
        return self.seen[index]

    def name(self) -> str:
        """A qualified name up to its end or its first template arguments."""
        for qualifier in ("L", "K", "V", "r"):  # internal linkage, const, volatile
            self.take(qualifier)
        if not self.take("N"):
            prefix = ""
            if self.take("S"):
                prefix = self.substitution()
                if prefix != "std" or self.at >= len(self.text) or self.peek("I"):
                    return prefix
                prefix = "std::"
            found = prefix + self.source_name()
            self.seen.append(found)
            return found
        for qualifier in ("r", "V", "K"):
            self.take(qualifier)
        parts = self.substitution() if self.take("S") else ""
        for _ in range(_DEEPEST):
            if self.peek("I") or self.peek("E"):
                if not parts:
                    raise _Stop
                return parts
            self.take("L")
            word = self.source_name()
            parts = f"{parts}::{word}" if parts else word
            self.seen.append(parts)
        raise _Stop


@functools.lru_cache(maxsize=1 << 17)
def base_name(mangled: str) -> str:
    """The readable base of a kernel's name; the name as it is where it is not a mangled one."""
    if len(mangled) > _LONGEST:
        return mangled[:_LONGEST]
    start = mangled.find("_Z") if mangled.startswith("__nv_static_") else 0
    if not mangled.startswith("_Z", start) or start < 0:
        return mangled
    parser = _Parser(mangled[start + 2 :])
    if parser.take("Z"):  # something local to a function: its function's name
        pass
    found = mangled
    try:
        found = parser.name()
        while (found in WRAPPERS or _ENABLERS.search(found)) and parser.take("I"):
            found = parser.name()
    except _Stop:  # then the wrapper's name, if there was one, is all that is known
        pass
    return found


@functools.lru_cache(maxsize=1 << 17)
def family_of(mangled: str) -> str:
    """The family of a kernel: its base name, any architecture as "Sm*", without shapes."""
    return _SHAPE.sub("", _ARCH.sub("Sm*", base_name(mangled)))
